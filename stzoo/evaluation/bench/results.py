"""Results: OUTPUT/<model__name>/<revision>/<Dataset>.json, one file a model and data set, all splits in it.

It has the shape of mteb's result files, so that mteb's own tools read it, and beside that:
- splits: by split, what the scores depend on (fingerprint of the data, settings) and the counts;
- per_query: by split, measure and query id;
- versions of what computed it.
A TREC run (<Dataset>.<split>.run: qid Q0 docid rank score tag, ranks from 1) lies beside it.

Whoever reads a result gets it from here: its fields have the right types, and its means are those of its
queries' scores.

Source: https://github.com/embeddings-benchmark/mteb, mteb/results/task_result.py
"""

import contextlib
import datetime
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from stzoo.data import registry
from stzoo.data.beir import RetrievalDataset
from stzoo.errors import DataError, OutputError, RecipeError, abbreviated, quoted
from stzoo.evaluation.measures import MEASURES, Measure
from stzoo.evaluation.scoring import Scores, overall
from stzoo.models.names import slug
from stzoo.utils.files import lock_folder, write_json
from stzoo.utils.inputs import user_path

SCHEMA_VERSION = 1
MTEB_LAYOUT = "2.20.0"  # the release of mteb whose layout this is; mteb had no part in the scores
META = "model_meta.json"
MAKE_AGAIN = "Score the system again by `stzoo bench --overwrite`."
WAY_OUT = "Use --overwrite, or another --output."
MOST_FOLDERS = 20_000  # looked into for results; more are no --output of bench
MOST_NESTED = 40  # objects and lists inside each other
LONGEST_NAME = 180  # bytes of a file's name before its ending; file systems allow 255
PACKAGES = ("stzoo", "sentence-transformers", "transformers", "torch", "ir-measures", "bm25s")


_HALF = re.compile(r"\\ud[89a-f]", re.IGNORECASE)  # of a surrogate pair


_Name = Annotated[str, Field(min_length=1, max_length=1000)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Meta(_Checked):
    """What is read of model_meta.json."""

    name: _Name
    revision: _Name


class _Split(_Checked):
    """What is read of a split in a result's file."""

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


class _Stored(_Checked):
    """What is read of a result's file."""

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
    folder, found = user_path(folder), []
    for path in list(_files(folder)):  # before any is read, so that / is refused at once
        system = _system(path.with_name(META))
        stored = _read(path)
        if stored is None:
            raise OutputError(f"{path} was removed while it was read. Start again.")
        found += [
            _result(path, system, stored["task_name"], split, stored, True) for split in stored["splits"]
        ]
    if not found:
        raise DataError(f"{folder} holds no results; expected an --output of `stzoo bench`.")
    return sorted(found, key=lambda result: (result.dataset, result.split, result.model, result.revision))


def _files(folder: Path) -> Iterator[Path]:
    """The files of results under a folder, in order; hidden folders are left out."""
    for number, (place, inside, names) in enumerate(os.walk(folder)):
        if number == MOST_FOLDERS:
            raise DataError(
                f"{folder} holds more than {MOST_FOLDERS} folders; expected an --output of `stzoo bench`."
            )
        if META in names + inside:
            there = sorted(name for name in names + inside if name.endswith(".json") and name != META)
            yield from (Path(place, name) for name in there)
        inside[:] = sorted(name for name in inside if not name.startswith("."))


@contextlib.contextmanager
def output_folder(output: str | Path) -> Iterator[Path]:
    """Holds the folder of results for this process; what it has to make is removed if it stays empty.

    Raises:
        OutputError: if another process holds it, or it cannot be written.
    """
    output = Path(output)
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        with lock_folder(output):
            yield output
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def check_places(output: Path, systems: Iterable[tuple[str, str]], names: Iterable[str]) -> None:
    """Sees that each system and data set has a file of its own, also where capitals make no difference.

    Args:
        output: where results go.
        systems: name and revision of each model.
        names: of the data sets.

    Raises:
        OutputError: if a folder lies where a file belongs.
        RecipeError: if two names lead to one file, or a name cannot be a file's.
    """
    names, owners = list(names), dict[str, tuple[str, str, str]]()
    for first, second in zip(sorted(names), sorted(names)[1:], strict=False):
        if first == second:
            raise RecipeError(
                f"two data sets are named {first!r}, and their results would be one file. Score them by "
                "separate calls, each with its own --output."
            )
    for model, revision in systems:
        for name in names:
            path = _place(output, model, revision, name)
            owner = owners.setdefault(str(path).casefold(), (model, revision, name))
            if owner != (model, revision, name):
                kind, one, other = "data sets", owner[2], name
                if one == other:
                    kind, one, other = "models", owner[0], model
                raise RecipeError(
                    f"the {kind} {one!r} and {other!r} would have their results in one file, {path}: their "
                    "names differ only in capitals or in characters that file names lack. Rename one, or "
                    "score them by separate calls, each with its own --output."
                )
            for file in (path, path.with_name(META)):
                if file.exists() and not file.is_file():
                    raise OutputError(
                        f"{file} is a folder; a result's file belongs there. Choose another --output."
                    )


def result_file(output: Path, model: str, revision: str, judged: RetrievalDataset) -> Path:
    """Where a result lies.

    Raises:
        RecipeError: if a name cannot be a file's.
    """
    return _place(output, model, revision, judged.name)


def _place(output: Path, model: str, revision: str, dataset: str) -> Path:
    parts = slug(model), slug(revision), slug(dataset)
    for name, part in zip((model, revision, dataset), parts, strict=True):
        if not part or len(part.encode()) > LONGEST_NAME:
            raise RecipeError(
                f"the name {quoted(name)} cannot be a file's: it "
                + ("is too long" if part else "has neither letters nor digits")
                + ". Rename the folder, or give a model a name by NAME=MODEL."
            )
    if f"{parts[2].casefold()}.json" == META:
        raise RecipeError(
            f"a data set cannot be named {dataset!r}: results keep the model's record in {META}. Rename its "
            "folder."
        )
    return output / parts[0] / parts[1] / f"{parts[2]}.json"


def run_file(path: Path, split: str) -> Path:
    """Where the TREC run of a result lies."""
    return path.with_name(f"{path.stem}.{split}.run")


def find(
    path: Path, system: tuple[str, str], judged: RetrievalDataset, settings: dict[str, Any]
) -> Result | None:
    """The result that lies at `path`, or None if this split is not there.

    Args:
        path: of the JSON file.
        system: name and revision of the model.
        judged: what is to be searched.
        settings: what the scores depend on beside the model and the data.

    Raises:
        DataError: if its means are not those of its queries.
        OutputError: if what lies there came from another system, other data or settings, or is no result.
    """
    meta = path.with_name(META)
    if meta.is_file() and (of := _system(meta)) != system:
        raise OutputError(f"{path.parent} holds results of {' '.join(of)}, not {' '.join(system)}. {WAY_OUT}")
    stored = _read(path)
    if stored is None:
        return None
    if stored["task_name"] != judged.name:
        raise OutputError(f"{path} holds the result of the data set {quoted(stored['task_name'])}. {WAY_OUT}")
    facts = stored["splits"].get(judged.split, {})
    fingerprint = facts.get("fingerprint", judged.fingerprint)
    if (stored["dataset_revision"], fingerprint) != (judged.corpus_fingerprint, judged.fingerprint):
        raise OutputError(f"{path} holds the result of other data under the same name. {WAY_OUT}")
    if facts.get("self_hits_dropped", judged.shares_ids) != judged.shares_ids:
        way = "counts" if judged.shares_ids else "leaves out"
        raise OutputError(f"{path} {way} documents under the query's own id, unlike this run. {WAY_OUT}")
    if facts and facts["settings"] != settings:
        then = facts["settings"]
        shown = "; ".join(
            f"{name}: {then.get(name)!r} then, {settings.get(name)!r} now"
            for name in {**then, **settings}
            if then.get(name) != settings.get(name)
        )
        raise OutputError(f"{path} was made with other settings ({shown}). {WAY_OUT}")
    return _result(path, system, judged.name, judged.split, stored, True) if facts else None


def _keys(path: Path) -> set[str] | None:
    """The keys of the object in a JSON file; None if it is damaged, or has none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        return set(stored) if isinstance(stored, dict) else None
    return None


def check_replaceable(path: Path) -> None:
    """Refuses a file that is not a result, not even a damaged one in the folder of its model's results.

    JSON of another kind is not a damaged result: it is the user's own.

    Raises:
        OutputError: if there is such a file.
    """
    if not os.path.lexists(path):
        return
    keys = _keys(path)
    is_result = keys is not None and {"task_name", "scores"} <= keys
    is_damaged = keys is None or keys <= {"name", *_Stored.model_fields}
    is_there = is_damaged and {"name", "revision"} <= (_keys(path.with_name(META)) or set())
    if not (is_result or is_there) or not path.is_file():
        raise OutputError(
            f"{path} is not a result and is not replaced. Move it away, or use another --output."
        )


def store(
    path: Path | None,
    system: tuple[str, str],
    judged: RetrievalDataset,
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
    except (DataError, OutputError):
        old = None  # only reached to overwrite it
    same = ("task_name", "dataset_revision")
    keep = old is not None and all(old[part] == stored[part] for part in same)
    stored |= {part: old[part] if old and keep else {} for part in ("scores", "splits", "per_query")}
    keys = {name: name for name in scores.mean} | {measure.name: measure.mteb for measure in measures}
    stored["scores"][judged.split] = [
        {key: scores.mean[name] for name, key in keys.items()}
        | {"main_score": scores.mean[measures[0].name], "hf_subset": "default"}
        | {"languages": ["eng-Latn"] if registry.find(judged.name) else []}  # those are all English
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
    if not path.exists():
        return None
    stored = _load(path, _Stored)
    with _whole(path):
        for split in stored["splits"]:
            _check_means(path, _result(path, ("", ""), "", split, stored, True))
    return stored


def _check_means(path: Path, result: Result) -> None:
    """Sees that all measures are of the same queries and that their means are those of these.

    Raises:
        DataError: if they are not.
    """
    queries = next(iter(result.scores.per_query.values()), {}).keys()
    for name, mean in result.scores.mean.items():
        scores = result.scores.per_query[name]
        if scores.keys() != queries or len(scores) != result.queries:
            raise DataError(
                f"{path} ({result.split}) has scores of {len(scores)} queries by {name}; expected those of "
                f"the same {result.queries} queries by every measure. {MAKE_AGAIN}"
            )
        if isinstance(mean, bool) or not isinstance(mean, int | float):
            raise ValueError(f"its {name} is {quoted(mean)}")
        value = overall(name, scores.values())
        if not math.isclose(value, mean, rel_tol=1e-6, abs_tol=1e-6):
            raise DataError(
                f"{path} ({result.split}) states a {name} of {mean}, which its queries do not give: their "
                f"scores come to {value:.6f}. {MAKE_AGAIN}"
            )


def _system(meta: Path) -> tuple[str, str]:
    named = _load(meta, _Meta)
    return named["name"], named["revision"]


def _load(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """A JSON file, after its types are checked; no number in it is infinite or NaN.

    Raises:
        OutputError: if it is not of this kind.
    """
    with _whole(path):
        if not path.is_file():
            raise ValueError("it is not a file")
        text = path.read_text(encoding="utf-8")
        stored = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if isinstance(stored, dict | list):
            _check_depth(stored, MOST_NESTED)
        if _HALF.search(text):  # half of a pair can be neither shown nor written: "?" stands for it
            stored = json.loads(json.dumps(stored, ensure_ascii=False).encode("utf-8", "replace"))
        kind.model_validate(stored)
    found: dict[str, Any] = stored
    return found


def _check_depth(value: dict[str, Any] | list[Any], most: int) -> None:
    if not most:
        raise RecursionError
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            _check_depth(part, most - 1)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {abbreviated(number)}")
    return value


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Makes what a file lacks that a program or a person has damaged an OutputError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, OSError) as error:
        raise OutputError(
            f"{path} is no result of this version of stzoo: {_reason(error)}. {WAY_OUT}"
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
    facts = general | stored["splits"][split]
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
