"""score(): runs that some other system made, by the rules and in the files of bench()."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stzoo.data import kilt
from stzoo.data.beir import RetrievalDataset
from stzoo.data.trec import Run, in_order, read_qrels, read_run
from stzoo.errors import DataError, RecipeError, quoted
from stzoo.evaluation.bench import results
from stzoo.evaluation.bench.datasets import evaluate, find_sets
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.measures import wanted_measures
from stzoo.evaluation.settings import ScoreSettings
from stzoo.models.names import parse_name
from stzoo.utils.files import fingerprint, write_json
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import notify
from stzoo.utils.outputs import check_output


def score(
    runs: str | Sequence[str],
    *,
    data: str | Path,
    output: str | Path | None = None,
    split: str | None = None,
    corpus: str | Path | None = None,
    pages: str | Path | None = None,
    measures: str | None = None,
    k: int = 1000,
    missing_judged: str = "error",
    overwrite: bool = False,
    on_result: Callable[[Result], None] | None = None,
    progress: bool | None = None,
) -> list[Result]:
    """Scores run files: of TREC against judgements, or answers in KILT's format against a KILT file.

    Args:
        runs: one or several of FILE or NAME=FILE: a TREC run, or a KILT guess (jsonl).
        data: a BEIR folder (or FOLDER/TASK), a TREC or BEIR qrels file, or a KILT file (jsonl).
        output: where results go, as those of bench; None files none.
        split: of a BEIR folder; None for the one the registry names, or "test".
        corpus: the passages of a KILT file, for TREC runs over passages; else these hold pages.
        pages: passage-id<TAB>page-id lines for passages that do not name their pages.
        measures: names of ir-measures with spaces between, scored beside the usual ones.
        k: results of a query that count; deeper ones are cut off.
        missing_judged: of a BEIR folder, as in bench().
        overwrite: True to replace results of other data or of another run of the name.
        on_result: called with each result as soon as it is there.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        a result a run, in the order given; its path is the run's own where nothing was filed.

    Raises:
        DataError: if a file is not there or does not hold, or no query of a run is judged.
        OutputError: if `output` is in use, or holds results of other data.
        RecipeError: if an option does not hold.
    """
    settings = ScoreSettings.check(locals())
    runs = settings.runs
    wanted = wanted_measures(measures, k)
    if output is not None:
        output = check_output(output, kind="results", inputs=[data, corpus, pages, *runs])
    systems = [_system(text) for text in runs]
    judged = _judgements(user_path(data), split, corpus, pages, missing_judged, progress)
    if output is not None:
        results.check_places(output, [(name, revision) for name, revision, _ in systems], [judged.name])
    found = []
    with contextlib.ExitStack() as held_things:
        place = None if output is None else held_things.enter_context(results.output_folder(output))
        for name, revision, path in systems:
            begun = time.monotonic()
            run = _read(path, progress)
            if not run.keys() & judged.qrels.keys():
                raise DataError(f"{path} holds none of the {len(judged.qrels)} judged queries of {data}.")
            if not _is_guess(path):
                _check_documents(path, run, judged)
            scores = evaluate(judged, _kept(run, judged, k), wanted, of_pages=_is_guess(path))
            system = (name, revision)
            target = results.result_file(place, *system, judged) if place else None
            if target:
                if overwrite:
                    results.check_replaceable(target)
                else:
                    results.find(target, system, judged, {"k": k})
                write_json(target.with_name("model_meta.json"), {"name": name, "revision": system[1]})
            seconds = time.monotonic() - begun
            result = results.store(target, system, judged, {"k": k}, scores, wanted, seconds, {})
            found.append(replace(result, path=target or path))
            if on_result:
                on_result(found[-1])
    return found


def _system(text: str) -> tuple[str, str, Path]:
    """Name and revision of the system that FILE or NAME=FILE is of, and the file."""
    name, given = parse_name(text)
    path = user_path(given)
    if not path.is_file():
        raise DataError(f"{path} is not there; expected a TREC run, or a KILT guess (jsonl).")
    return path.name.lstrip(".").partition(".")[0] if name == given else name, fingerprint(path)[:12], path


def _judgements(
    data: Path,
    split: str | None,
    corpus: str | Path | None,
    pages: str | Path | None,
    missing_judged: str,
    progress: bool | None,
) -> RetrievalDataset:
    """What runs are scored against; of bare judgements the corpus and the queries' texts are unknown."""
    if corpus is not None or not data.is_file():
        (one,) = find_sets(
            data,
            None,
            split=split,
            corpus=corpus,
            pages=pages,
            missing_judged=missing_judged,
            progress=progress,
        )
        return one()
    if pages is not None or missing_judged != "error":
        option = "--missing-judged" if pages is None else "--pages"
        raise RecipeError(f"{option} has no effect on judgements alone, without a corpus ({data}).")
    stem = data.name.lstrip(".").partition(".")[0]
    unknown = RetrievalDataset(
        stem,
        split or "test",
        [],
        [],
        {},
        {},
        data.parent,
        ("scored from judgements alone, without the corpus",),
    )
    if ".jsonl" not in data.suffixes:
        qrels = read_qrels(data, progress)
        return replace(unknown, qrels=qrels, queries=dict.fromkeys(qrels, ""))
    evidence = kilt.read_gold(data)
    return kilt.KiltSet(
        **vars(unknown) | {"qrels": kilt.page_qrels(evidence), "queries": dict.fromkeys(evidence, "")},
        pages=[],
        evidence=evidence,
    )


def _read(path: Path, progress: bool | None) -> Run:
    if not _is_guess(path):
        return read_run(path, progress)
    return {
        query: {page: float(-place) for place, page in enumerate(dict.fromkeys(pages))}
        for query, pages in kilt.read_guess(path).items()
    }


def _check_documents(path: Path, run: Run, judged: RetrievalDataset) -> None:
    """Compares the documents of a run with the corpus, where that is known.

    Raises:
        DataError: if none of them is in the corpus, so that every score would be 0.
    """
    found = {document for query in run.keys() & judged.qrels.keys() for document in run[query]}
    if not found or not judged.corpus_ids:
        return
    known = {one for one in judged.corpus_ids if one in found}
    known |= found & {one for grades in judged.qrels.values() for one in grades}  # kept by "not-found"
    unknown = len(found - known)
    if not known:
        raise DataError(
            f"{path} has none of the documents of {judged.name}, e.g. {quoted(next(iter(found)))}; expected "
            f"ids of its corpus, e.g. {quoted(judged.corpus_ids[0])}."
        )
    if unknown:
        notify(
            f"{path}: {unknown} of {len(found)} documents are not in the corpus of {judged.name}; they count "
            "as not relevant."
        )


def _is_guess(path: Path) -> bool:
    """True of answers in KILT's format, which are pages whatever the corpus."""
    return ".jsonl" in path.suffixes


def _kept(run: Run, judged: RetrievalDataset, k: int) -> Run:
    """The k best of each query, without the document that is the query."""
    kept = {}
    for query, found in run.items():
        ranked = [document for document in in_order(found) if not (judged.shares_ids and document == query)]
        kept[query] = {document: found[document] for document in ranked[:k]}
    return kept
