"""Result files: OUTPUT/<model__name>/<revision>/<Dataset>.json, one per model and data set, for all splits.

A file has the format of mteb's result files, so that mteb's own tools read it, and in addition:
- splits: for each split, what the scores depend on (fingerprint of the data, settings) and the counts;
- per_query: scores by split, measure and query id;
- versions: versions of the packages that computed it.
The TREC run is saved next to it (<Dataset>.<split>.run: qid Q0 docid rank score tag, ranks from 1).

All code reads results through this module, which checks that fields have the right types and that means
agree with the queries' scores.

Source: https://github.com/embeddings-benchmark/mteb, mteb/results/task_result.py
"""

import contextlib
import datetime
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from stzoo.data import registry
from stzoo.data.beir import RetrievalDataset
from stzoo.errors import DataError, OutputError, abbreviated, quoted
from stzoo.evaluation.measures import MEASURES, Measure
from stzoo.evaluation.scoring import Scores, overall
from stzoo.utils.files import write_json
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import counted
from stzoo.utils.parts import check_manifest

SCHEMA_VERSION = 1
MTEB_LAYOUT = "2.20.0"  # the release of mteb whose file format this is; mteb does not compute the scores
META = "model_meta.json"
SCORE_AGAIN = "Score the system again with `stzoo bench --overwrite`."
WAY_OUT = "Use --overwrite, or another --output."
MAX_FOLDERS = 20_000  # searched for results; a folder with more is not an --output of bench
MAX_DEPTH = 40  # of nested objects and lists
PACKAGES = ("stzoo", "sentence-transformers", "transformers", "torch", "ir-measures", "bm25s")


_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


_Name = Annotated[str, Field(min_length=1, max_length=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Meta(_Strict):
    """The fields of model_meta.json that are read."""

    name: _Name
    revision: _Name


class _Split(_Strict):
    """The fields of a split in a result file that are read."""

    fingerprint: str
    settings: dict[str, Any]
    documents: NonNegativeInt
    queries: PositiveInt
    judgements: NonNegativeInt
    seconds: float
    self_hits_dropped: bool = False
    measures: dict[str, str] = {}
    notes: list[str] = []
    cost: dict[str, float | None] = {}
    recall_against_exact: dict[str, float] = {}
    date: str = ""
    versions: dict[str, Any] = {}


class _Stored(_Strict):
    """The fields of a result file that are read."""

    schema_version: Literal[1]
    task_name: _Name
    dataset_revision: str
    date: str
    versions: dict[str, Any]
    scores: dict[str, list[dict[str, Any]]]
    splits: dict[str, _Split]
    per_query: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Result:
    """A model's scores on one split of a data set.

    Attributes:
        model: Name of the model.
        revision: Revision of the model.
        dataset: Name of the data set.
        split: Split of the judgements, e.g. "test".
        documents: Number of passages searched.
        queries: Number of judged queries, which all count.
        judgements: Number of judged pairs.
        seconds: Time for encoding, searching and scoring.
        scores: Mean and per-query scores by measure.
        path: Path to the JSON file.
        reused: True if the file existed before.
        details: All that the file records of the split: fingerprint, settings, counts, costs, notes.
        corpus: Fingerprint of the corpus.
        folder: Folder of the data set, if it was read for this result; files do not record it.
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
    details: dict[str, Any]
    corpus: str
    folder: Path | None = field(default=None, compare=False)

    @property
    def data(self) -> tuple[str, str]:
        """Fingerprints of the corpus and of the judged queries; results with the same are comparable."""
        return self.corpus, self.details["fingerprint"]


def read(folder: str | Path) -> list[Result]:
    """Reads all results under a folder: an --output of bench, or a model's folder in it.

    Returns:
        The results, sorted by data set, split, model and revision.

    Raises:
        DataError: If there are no results, or a file's means disagree with its queries' scores.
        OutputError: If a file is not a result of this version.
    """
    folder, results = user_path(folder), []
    for path in list(_files(folder)):  # lists all before reading one, so that / is refused at once
        system = _system(path.with_name(META))
        stored = _read(path)
        if stored is None:
            raise OutputError(f"{path} was deleted while results were read. Try again.")
        results += [
            _result(path, system, stored["task_name"], split, stored, True) for split in stored["splits"]
        ]
    if not results:
        raise DataError(f"{folder} has no results; expected an --output of `stzoo bench`.")
    return sorted(results, key=lambda result: (result.dataset, result.split, result.model, result.revision))


def _files(folder: Path) -> Iterator[Path]:
    """The result files under a folder, in order, without those in hidden folders."""
    for number, (parent, folders, files) in enumerate(os.walk(folder)):
        if number == MAX_FOLDERS:
            raise DataError(
                f"{folder} has more than {MAX_FOLDERS} subfolders; expected an --output of `stzoo bench`."
            )
        names = files + folders
        if META in names:
            results = sorted(name for name in names if name.endswith(".json") and name != META)
            yield from (Path(parent, name) for name in results)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def find(
    path: Path, system: tuple[str, str], judged: RetrievalDataset, settings: dict[str, Any]
) -> Result | None:
    """Reads the result at `path`; returns None if the file or this split does not exist.

    Args:
        path: Path to the JSON file.
        system: Name and revision of the model.
        judged: The data set.
        settings: What the scores depend on besides the model and the data.

    Raises:
        DataError: If the file's means disagree with its queries' scores.
        OutputError: If the file belongs to another system, other data or settings, or is not a result.
    """
    meta = path.with_name(META)
    if meta.is_file() and (other := _system(meta)) != system:
        raise OutputError(
            f"{path.parent} has results of {' '.join(other)}, not {' '.join(system)}. {WAY_OUT}"
        )
    stored = _read(path)
    if stored is None:
        return None
    details = stored["splits"].get(judged.split, {})
    now = {
        "name": judged.name,
        "corpus": judged.corpus_fingerprint,
        "fingerprint": judged.fingerprint,
        "self_hits_dropped": judged.shares_ids,
    }
    # older versions recorded less
    then = now | details | {"name": stored["task_name"], "corpus": stored["dataset_revision"]}
    check_manifest(path, then, now, fault="is the result of other data", advice=WAY_OUT)
    if details:
        check_manifest(path, details["settings"], settings, exact=True, advice=WAY_OUT)
    return _result(path, system, judged.name, judged.split, stored, True) if details else None


def _keys(path: Path) -> set[str] | None:
    """The keys of the object in a JSON file; None if the file is damaged or is not an object."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        return set(stored) if isinstance(stored, dict) else None
    return None


def check_replaceable(path: Path) -> None:
    """Refuses to replace a file of the user's.

    A result may be replaced, and so may a damaged file among its model's results. JSON of another kind is
    not a damaged result but a file of the user's.

    Raises:
        OutputError: If the file is neither.
    """
    if not os.path.lexists(path):
        return
    keys = _keys(path)
    is_result = keys is not None and {"task_name", "scores"} <= keys
    is_damaged = keys is None or keys <= {"name", *_Stored.model_fields}
    was_result = is_damaged and {"name", "revision"} <= (_keys(path.with_name(META)) or set())
    if not (is_result or was_result) or not path.is_file():
        raise OutputError(
            f"{path} is not a result and is not replaced. Move it elsewhere, or use another --output."
        )


def store(
    path: Path | None,
    system: tuple[str, str],
    judged: RetrievalDataset,
    settings: dict[str, Any],
    scores: Scores,
    measures: Sequence[Measure],
    seconds: float,
    run_info: dict[str, Any],
) -> Result:
    """Writes a result, and keeps the file's other splits if they are of the same corpus.

    Args:
        path: Path to the JSON file; None writes no file.
        system: Name and revision of the model.
        judged: The data set.
        settings: What the scores depend on; only a run with the same settings reuses them.
        scores: Scores of the run.
        measures: Measures with mteb's keys; other scores are stored under their names.
        seconds: Time that the scores took.
        run_info: More to record of the split, e.g. the device.
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
    except (DataError, OutputError):
        old = None  # a damaged file is overwritten
    if old and any(old[key] != stored[key] for key in ("task_name", "dataset_revision")):
        old = None
    stored |= {part: old[part] if old else {} for part in ("scores", "splits", "per_query")}
    keys = {name: name for name in scores.mean} | {measure.name: measure.mteb for measure in measures}
    stored["scores"][judged.split] = [
        {key: scores.mean[name] for name, key in keys.items()}
        | {"main_score": scores.mean[measures[0].name], "hf_subset": "default"}
        | {"languages": ["eng-Latn"] if registry.find(judged.name) else []}  # the registry's are all English
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
        **run_info,
    }
    stored["per_query"][judged.split] = {key: scores.per_query[name] for name, key in keys.items()}
    if path:
        write_json(path, stored)
    return _result(path or Path(), system, judged.name, judged.split, stored, False)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    stored = _load(path, _Stored)
    with _damage_as_output_error(path):
        for split in stored["splits"]:
            _check_means(path, _result(path, ("", ""), "", split, stored, True))
    return stored


def _check_means(path: Path, result: Result) -> None:
    """Checks that all measures have the same queries and that each mean agrees with the queries' scores.

    Raises:
        DataError: If not.
    """
    queries = next(iter(result.scores.per_query.values()), {}).keys()
    for name, mean in result.scores.mean.items():
        scores = result.scores.per_query[name]
        if scores.keys() != queries or len(scores) != result.queries:
            raise DataError(
                f"{path} ({result.split}) has {name} scores of {counted(len(scores), 'query')}; expected "
                f"the same {counted(result.queries, 'query')} for every measure. {SCORE_AGAIN}"
            )
        if isinstance(mean, bool) or not isinstance(mean, int | float):
            raise ValueError(f"its {name} is {quoted(mean)}")
        value = overall(name, scores.values())
        if not math.isclose(value, mean, rel_tol=1e-6, abs_tol=1e-6):
            raise DataError(
                f"{path} ({result.split}) states a {name} of {mean}, but the scores of its queries give "
                f"{value:.6f}. {SCORE_AGAIN}"
            )


def _system(meta: Path) -> tuple[str, str]:
    record = _load(meta, _Meta)
    return record["name"], record["revision"]


def _load(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """Reads a JSON file and checks its types; no number may be infinite or NaN.

    Raises:
        OutputError: If the file does not fit the schema.
    """
    with _damage_as_output_error(path):
        if not path.is_file():
            raise ValueError("it is not a file")
        text = path.read_text(encoding="utf-8")
        stored = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if isinstance(stored, dict | list):
            _check_depth(stored, MAX_DEPTH)
        if _SURROGATE.search(text):  # a lone surrogate can be neither shown nor written, and becomes "?"
            stored = json.loads(json.dumps(stored, ensure_ascii=False).encode("utf-8", "replace"))
        schema.model_validate(stored)
    checked: dict[str, Any] = stored
    return checked


def _check_depth(value: dict[str, Any] | list[Any], limit: int) -> None:
    if not limit:
        raise RecursionError
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            _check_depth(part, limit - 1)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"it contains the number {abbreviated(number)}")
    return value


@contextlib.contextmanager
def _damage_as_output_error(path: Path) -> Iterator[None]:
    """Turns the errors of reading a damaged file into an OutputError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, OSError) as error:
        raise OutputError(
            f"{path} is not a result of this version of stzoo: {_reason(error)}. {WAY_OUT}"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return abbreviated(f"{place}: {first['msg']}") if place else "it is not a JSON object"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return abbreviated(f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip("."))


def _result(
    path: Path, system: tuple[str, str], dataset: str, split: str, stored: dict[str, Any], reused: bool
) -> Result:
    mean, per_query = stored["scores"][split][0], stored["per_query"][split]
    general = {part: stored[part] for part in ("date", "versions")}
    general["measures"] = {measure.name: measure.mteb for measure in MEASURES}
    details = general | stored["splits"][split]
    keys = details["measures"]
    return Result(
        model=system[0],
        revision=system[1],
        dataset=dataset,
        split=split,
        documents=details["documents"],
        queries=details["queries"],
        judgements=details["judgements"],
        seconds=details["seconds"],
        scores=Scores(
            {name: mean[key] for name, key in keys.items()},
            {name: per_query[key] for name, key in keys.items()},
        ),
        path=path,
        reused=reused,
        details=details,
        corpus=stored["dataset_revision"],
    )
