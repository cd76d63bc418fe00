"""Finding the data sets to score (BEIR folders, data sets of the registry, KILT files), and scoring runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from stzoo.data import find_datasets, kilt, registry
from stzoo.data.beir import RetrievalDataset, read_beir
from stzoo.data.beir_layout import find_split, is_beir
from stzoo.data.missing_judged import check_missing_judged
from stzoo.data.ranking import Ranked
from stzoo.errors import DataError, RecipeError, check_known
from stzoo.evaluation import kilt as kilt_scoring
from stzoo.evaluation.bench import kilt_suite
from stzoo.evaluation.measures import Measure
from stzoo.evaluation.scoring import Scores, score
from stzoo.utils.inputs import user_path

SUITES = ("kilt",)  # suites whose tasks are read from a folder; the registry's go by --datasets
KILT_CUTOFFS = (1, 5, 20, 100)
POOLED = "judge.json"  # in folders whose judgements are from `stzoo judge`
NOTE_ON_POOL = (
    "only a shallow pool is judged, and most measures count the other passages as not relevant; "
    "nDCG(judged_only=True)@10 leaves them out, and Judged@10 is the share that was judged"
)


def select_datasets(
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
    """Finds data sets, downloading those that are missing; the arguments are those of `bench`.

    Returns:
        A function per data set which reads it.

    Raises:
        DataError: If a data set is missing or has no such split.
        RecipeError: If no data set is named, or options contradict each other.
    """
    check_missing_judged(missing_judged)
    if names is not None:
        names = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
        if "" in names:
            raise RecipeError(f"the list of data sets ({','.join(names)!r}) has an empty name; remove it.")
    path = None
    if data is not None:
        path = user_path(data) if names else find_datasets.locate(data, progress=progress)
    corpus = None if corpus is None else find_datasets.locate(corpus, progress=progress)
    pages = None if pages is None else user_path(pages)
    if suite is not None:
        check_known("suite", suite, SUITES)
        if path is None or names:
            raise RecipeError(f"--suite {suite} needs --data FOLDER with its tasks, without --datasets.")
        if not path.is_dir():
            raise DataError(f"{path} does not exist; expected a folder with the tasks of {suite}.")
        return [*kilt_suite.find_tasks(path, split, corpus, pages, missing_judged, progress)]
    if corpus is not None or (path and path.is_file()):
        if path is None or corpus is None or names:
            raise RecipeError(
                "a KILT file needs --data FILE.jsonl and --corpus with its passages, without --datasets."
            )
        if missing_judged != "error":
            raise RecipeError(kilt_suite.NO_MISSING)
        return [partial(kilt.read_kilt, path, corpus, pages, progress=progress)]
    if pages is not None:
        raise RecipeError("--pages is for KILT files; a BEIR folder has judgements of its passages. Drop it.")
    if names is None:
        if path is None:
            raise RecipeError(
                "no data is given; give --data FOLDER, or --datasets with names of the registry."
            )
        if path.is_dir() and not is_beir(path):
            inside = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and is_beir(folder))
            if inside:
                raise DataError(
                    f"{path} contains several data sets; choose some by --datasets: {', '.join(inside)}."
                )
        entry = registry.find(path.resolve().name) if path.is_dir() else None  # not that of FOLDER/TASK
        found = [find_datasets.Found(path, split or (entry.split if entry else "test"), entry)]
    elif not names:
        raise RecipeError("the list of data sets is empty; name at least one.")
    else:
        found = [
            find_datasets.find(name, path, split=split, progress=progress) for name in registry.expand(names)
        ]
    for dataset in found:
        find_split(dataset.folder, dataset.split)
    return [partial(_read, dataset, missing_judged, progress) for dataset in found]


def check_datasets(
    datasets: Sequence[Callable[[], RetrievalDataset]], check: Callable[[RetrievalDataset], None]
) -> tuple[list[str], RetrievalDataset]:
    """Reads and checks all data sets, so that a fault in one is reported before another is scored.

    Only one is in memory at a time.

    Args:
        datasets: At least one, as `select_datasets` returns them.
        check: Function that raises a StzooError for a data set that cannot be scored.

    Returns:
        The names of all data sets, and the first data set, which need not be read again.
    """
    names, judged = [], None
    for read in reversed(datasets):
        judged = None  # frees the last one first
        judged = read()
        check(judged)
        names.append(judged.name)
    assert judged is not None, "there is at least one data set"
    return names[::-1], judged


def _read(found: find_datasets.Found, missing_judged: str, progress: bool | None) -> RetrievalDataset:
    judged = read_beir(
        found.folder, found.split, name=found.name, missing_judged=missing_judged, progress=progress
    )
    if (found.folder / POOLED).is_file():
        judged = replace(judged, notes=(*judged.notes, NOTE_ON_POOL))
    if not found.entry:
        return judged
    return replace(judged, notes=(*judged.notes, *find_datasets.check(found.entry, judged)))


def evaluate(
    judged: RetrievalDataset, run: Ranked, measures: Sequence[Measure], *, of_pages: bool = False
) -> Scores:
    """Scores a run. For a KILT data set, ranks pages instead of passages and adds KILT's own measures.

    Args:
        judged: The data set with its judgements.
        run: Retrieved passages.
        measures: Measures to score.
        of_pages: True if the run of a KILT data set already ranks pages, as without a corpus.
    """
    if not isinstance(judged, kilt.KiltSet):
        return score(judged.qrels, run, measures)
    if len(judged.corpus_ids) and not of_pages:
        run = judged.to_pages(run)
    scores = score(judged.qrels, run, measures)
    kilt_scores = kilt_scoring.score(judged.evidence, run, KILT_CUTOFFS)
    return Scores(
        scores.mean | {f"KILT {name}": value for name, value in kilt_scores.mean.items()},
        scores.per_query | {f"KILT {name}": values for name, values in kilt_scores.per_query.items()},
    )
