"""What is searched and scored: BEIR folders, sets of the registry, KILT files; and scores of their runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from stzoo.data import find_datasets, kilt, registry
from stzoo.data.beir import RetrievalDataset, read_beir
from stzoo.data.beir_layout import find_split, is_beir
from stzoo.data.missing_judged import check_missing_judged
from stzoo.data.trec import Run
from stzoo.errors import DataError, RecipeError, check_known
from stzoo.evaluation import kilt as kilt_scoring
from stzoo.evaluation.bench import kilt_suite
from stzoo.evaluation.measures import Measure
from stzoo.evaluation.scoring import Scores, score
from stzoo.utils.inputs import user_path

SUITES = ("kilt",)  # whose tasks are read from a folder; those of the registry are names of --datasets
KILT_CUTOFFS = (1, 5, 20, 100)


def find_sets(
    data: str | Path | None,
    names: str | Sequence[str] | None,
    *,
    split: str | None,
    corpus: str | Path | None = None,
    pages: str | Path | None = None,
    suite: str | None = None,
    missing_judged: str = "error",
    progress: bool | None = None,
) -> list[Callable[[], RetrievalDataset]]:
    """Finds data sets, fetching what is not there; each is read when it is called.

    Raises:
        DataError: if one is not there or has no such split.
        RecipeError: if none is named, or options do not go together.
    """
    check_missing_judged(missing_judged)
    if names is not None:
        names = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
        if "" in names:
            raise RecipeError(f"the list of data sets ({','.join(names)!r}) holds an empty name.")
    path, corpus, pages = (one if one is None else user_path(one) for one in (data, corpus, pages))
    if suite is not None:
        check_known("suite", suite, SUITES)
        if path is None or names:
            raise RecipeError(f"--suite {suite} needs --data FOLDER with its tasks, and no --datasets.")
        if not path.is_dir():
            raise DataError(f"{path} is not there; expected a folder with the tasks of {suite}.")
        return [*kilt_suite.find_tasks(path, split, corpus, pages, missing_judged, progress)]
    if corpus is not None or (path and path.is_file()):
        if path is None or corpus is None or names:
            raise RecipeError(
                "a KILT file needs --data FILE.jsonl and --corpus with its passages, no --datasets."
            )
        if missing_judged != "error":
            raise RecipeError(kilt_suite.NO_MISSING)
        return [partial(kilt.read_kilt, path, corpus, pages, progress=progress)]
    if pages is not None:
        raise RecipeError("--pages is for KILT files; a BEIR folder judges its passages themselves.")
    if names is None:
        if path is None:
            raise RecipeError(
                "there is no data; give --data FOLDER, or --datasets with names of the registry."
            )
        if path.is_dir() and not is_beir(path):
            inside = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and is_beir(folder))
            if inside:
                raise DataError(
                    f"{path} holds several data sets; name some by --datasets: {', '.join(inside)}."
                )
        entry = registry.find(path.resolve().name) if path.is_dir() else None  # a task has its own name
        found = [find_datasets.Found(path, split or (entry.split if entry else "test"), entry)]
    elif not names:
        raise RecipeError("the list of data sets is empty.")
    else:
        found = [
            find_datasets.find(name, path, split=split, progress=progress) for name in registry.expand(names)
        ]
    for one in found:
        find_split(one.folder, one.split)
    return [partial(_read, one, missing_judged, progress) for one in found]


def check_sets(
    sets: Sequence[Callable[[], RetrievalDataset]], check: Callable[[RetrievalDataset], None]
) -> tuple[list[str], RetrievalDataset]:
    """Reads all sets, so that what is wrong with one of them is said before another is scored.

    Only one is held in memory at a time.

    Args:
        sets: at least one, as `find_sets` gives them.
        check: raises a StzooError for a set that cannot be scored.

    Returns:
        the names of all sets, and the first set, which need not be read again.
    """
    names, judged = [], None
    for read in reversed(sets):
        judged = None
        judged = read()
        check(judged)
        names.append(judged.name)
    assert judged is not None, "there is a set"
    return names[::-1], judged


def _read(found: find_datasets.Found, missing_judged: str, progress: bool | None) -> RetrievalDataset:
    judged = read_beir(
        found.folder, found.split, name=found.name, missing_judged=missing_judged, progress=progress
    )
    if not found.entry:
        return judged
    return replace(judged, notes=(*judged.notes, *find_datasets.check(found.entry, judged)))


def evaluate(
    judged: RetrievalDataset, run: Run, measures: Sequence[Measure], *, of_pages: bool = False
) -> Scores:
    """Scores a run; of a KILT set passages are turned into pages first, and KILT's own scores are added.

    Args:
        judged: by what.
        run: of passages.
        measures: beside KILT's own.
        of_pages: True if the run of a KILT set holds pages already, as it does where there is no corpus.
    """
    if not isinstance(judged, kilt.KiltSet):
        return score(judged.qrels, run, measures)
    if len(judged.corpus_ids) and not of_pages:
        run = judged.to_pages(run)
    usual, own = score(judged.qrels, run, measures), kilt_scoring.score(judged.evidence, run, KILT_CUTOFFS)
    return Scores(
        usual.mean | {f"KILT {name}": value for name, value in own.mean.items()},
        usual.per_query | {f"KILT {name}": values for name, values in own.per_query.items()},
    )
