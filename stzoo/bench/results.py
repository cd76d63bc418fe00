"""Results: OUTPUT/<model__name>/<revision>/<Dataset>.json, one file a model and data set, all splits in it.

It has the shape of mteb's result files, so that mteb's own tools read it, and beside that:
- splits: by split, what the scores depend on (fingerprint of the data, settings) and the counts;
- per_query: by split, measure and query id;
- versions of what computed it.
A TREC run (<Dataset>.<split>.run: qid Q0 docid rank score tag, ranks from 1) lies beside it.

Source: https://github.com/embeddings-benchmark/mteb, mteb/results/task_result.py
"""

import contextlib
import datetime
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import DataError, OutputError
from ..files import write_json
from ..judged import JudgedSet
from ..measures import MEASURES, Measure
from ..metrics import Scores
from ..opened import slug

SCHEMA_VERSION = 1
MTEB_LAYOUT = "2.20.0"  # the release of mteb whose layout this is; mteb had no part in the scores
WAY_OUT = "Use --overwrite, or another --output."
PACKAGES = ("stzoo", "sentence-transformers", "transformers", "torch", "ir-measures", "bm25s")


@dataclass(frozen=True)
class Result:
    """How a model does on one split of a judged set.

    Attributes:
        model: the model's name.
        revision: of the model.
        dataset: the judged set's name.
        split: e.g. "test".
        documents: passages searched.
        queries: judged queries, all of which count.
        judgements: judged pairs.
        seconds: taken by encoding, searching and scoring.
        scores: mean and per query, by measure.
        path: the JSON file.
        reused: True if it was there already.
        facts: all that the file notes of the split: fingerprint, settings, counts, how it was made, notes.
        corpus: fingerprint of the corpus searched.
    """

    model: str
    revision: str
    dataset: str
    split: str
    documents: int
    queries: int
    judgements: int
    seconds: float
    scores: Scores
    path: Path
    reused: bool
    facts: dict[str, Any]
    corpus: str

    @property
    def data(self) -> tuple[str, str]:
        """Fingerprints of corpus and of judged queries with their grades: equal where results compare."""
        return self.corpus, self.facts["fingerprint"]


def read(folder: str | Path) -> list[Result]:
    """All results under a folder (an --output of bench, or one model's in it), by data set, split and model.

    Raises:
        DataError: if there is none.
        OutputError: if a file there is no result of this version.
    """
    folder, found = Path(folder), []
    for path in sorted(folder.rglob("*.json")):
        meta = path.with_name("model_meta.json")
        if path == meta or not meta.is_file():
            continue
        with _whole(meta):
            named = json.loads(meta.read_text(encoding="utf-8"))
            system = (named["name"], named["revision"])
        stored = _read(path)
        assert stored is not None, "it was listed"
        found += [
            _result(path, system, stored["task_name"], split, stored, True) for split in stored["splits"]
        ]
    if not found:
        raise DataError(f"{folder} holds no results; expected an --output of `stzoo bench`.")
    return sorted(found, key=lambda result: (result.dataset, result.split, result.model, result.revision))


def result_file(output: Path, model: str, revision: str, judged: JudgedSet) -> Path:
    """Where a result lies."""
    return output / slug(model) / slug(revision) / f"{slug(judged.name)}.json"


def run_file(path: Path, split: str) -> Path:
    """Where the TREC run of a result lies."""
    return path.with_name(f"{path.stem}.{split}.run")


def find(path: Path, system: tuple[str, str], judged: JudgedSet, settings: dict[str, Any]) -> Result | None:
    """The result that lies at `path`, or None if this split is not there.

    Args:
        path: of the JSON file.
        system: name and revision of the model.
        judged: what is to be searched.
        settings: what the scores depend on beside the model and the data.

    Raises:
        OutputError: if what lies there came from other data or settings, or is no result.
    """
    stored = _read(path)
    if stored is None:
        return None
    facts = stored["splits"].get(judged.split, {})
    fingerprint = facts.get("fingerprint", judged.fingerprint)
    if (stored["dataset_revision"], fingerprint) != (judged.corpus_fingerprint, judged.fingerprint):
        raise OutputError(f"{path} holds the result of other data under the same name. {WAY_OUT}")
    if facts and facts["settings"] != settings:
        raise OutputError(f"{path} was made with {facts['settings']}, not {settings}. {WAY_OUT}")
    return _result(path, system, judged.name, judged.split, stored, True) if facts else None


def check_replaceable(path: Path) -> None:
    """Sees that a file may be replaced by a result.

    Raises:
        OutputError: if it is whole JSON of another kind. A damaged result is replaced.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(stored, dict) or not {"task_name", "scores"} <= stored.keys():
        raise OutputError(
            f"{path} is not a result and is not replaced. Move it away, or use another --output."
        )


def store(
    path: Path | None,
    system: tuple[str, str],
    judged: JudgedSet,
    settings: dict[str, Any],
    scores: Scores,
    measures: Sequence[Measure],
    seconds: float,
    how: dict[str, Any],
) -> Result:
    """Writes a result, and keeps the other splits that the file holds of the same corpus.

    Args:
        path: of the JSON file; None writes none.
        system: name and revision of the model.
        judged: what was searched.
        settings: what the scores depend on; another run must have the same to reuse them.
        scores: of the run.
        measures: those of the scores that have a key of their own in the file; others are filed by name.
        seconds: taken.
        how: what else to note, e.g. the device.
    """
    stored: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dataset_revision": judged.corpus_fingerprint,
        "task_name": judged.name,
        "mteb_version": MTEB_LAYOUT,
        "stzoo_version": version("stzoo"),
        "evaluation_time": round(seconds, 1),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    try:
        old = _read(path) if path else None
    except OutputError:
        old = None  # only reached to overwrite it
    same_corpus = old is not None and old["dataset_revision"] == judged.corpus_fingerprint
    stored |= {part: old[part] if old and same_corpus else {} for part in ("scores", "splits", "per_query")}
    keys = {name: name for name in scores.mean} | {measure.name: measure.mteb for measure in measures}
    stored["scores"][judged.split] = [
        {key: scores.mean[name] for name, key in keys.items()}
        | {"main_score": scores.mean[measures[0].name], "hf_subset": "default", "languages": ["eng-Latn"]}
    ]
    stored["splits"][judged.split] = {
        "fingerprint": judged.fingerprint,
        "settings": settings,
        "documents": len(judged.corpus_ids),
        "queries": len(judged.queries),
        "judgements": judged.judgements,
        "self_hits_dropped": judged.shares_ids,
        "notes": list(judged.notes),
        "seconds": round(seconds, 1),
        "measures": keys,
        "date": stored["date"],
        "versions": stored["versions"],
        **how,
    }
    stored["per_query"][judged.split] = {key: scores.per_query[name] for name, key in keys.items()}
    if path:
        write_json(path, stored)
    return _result(path or Path(), system, judged.name, judged.split, stored, False)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with _whole(path):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["schema_version"] != SCHEMA_VERSION:
            raise ValueError("of another version")
        for part in ("task_name", "dataset_revision", "scores", "splits", "per_query"):
            stored[part]
        for split, facts in stored["splits"].items():
            facts["settings"], stored["versions"], facts.get("date", stored["date"])[:10]
            scores = _result(path, ("", ""), "", split, stored, True).scores
            if not all(
                isfinite(mean + fmean(scores.per_query[name].values())) for name, mean in scores.mean.items()
            ):
                raise ValueError("a score is no number")
    return dict(stored)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Makes what a file lacks that a program or a person has damaged an OutputError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise OutputError(f"{path} is no result of this version of stzoo. {WAY_OUT}") from error


def _result(
    path: Path, system: tuple[str, str], dataset: str, split: str, stored: dict[str, Any], reused: bool
) -> Result:
    mean, per_query = stored["scores"][split][0], stored["per_query"][split]
    facts = {"measures": {measure.name: measure.mteb for measure in MEASURES}} | stored["splits"][split]
    keys = facts["measures"]
    return Result(
        model=system[0],
        revision=system[1],
        dataset=dataset,
        split=split,
        documents=facts["documents"],
        queries=facts["queries"],
        judgements=facts["judgements"],
        seconds=facts["seconds"],
        scores=Scores(
            {name: mean[key] for name, key in keys.items()},
            {name: per_query[key] for name, key in keys.items()},
        ),
        path=path,
        reused=reused,
        facts=facts,
        corpus=stored["dataset_revision"],
    )
