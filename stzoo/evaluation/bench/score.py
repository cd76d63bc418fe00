"""score(): score the run files of other systems as bench() does, and write results in the same format."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stzoo.data import kilt
from stzoo.data.beir import RetrievalDataset
from stzoo.data.find_datasets import locate
from stzoo.data.ranking import rank
from stzoo.data.trec import Run, read_qrels, read_run
from stzoo.errors import DataError, RecipeError, quoted
from stzoo.evaluation.bench import result_files, results
from stzoo.evaluation.bench.datasets import evaluate, select_datasets
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.bench.tables import Results
from stzoo.evaluation.measures import choose_measures
from stzoo.evaluation.settings import ScoreSettings
from stzoo.models.names import parse_name
from stzoo.utils.files import fingerprint, write_json
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import notify
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public


@public()
def score(
    runs: Any,
    *,
    data: Any,
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
) -> Results:
    """Scores TREC run files against judgements, or KILT guesses against a KILT file.

    Args:
        runs: One or several run files, each FILE or NAME=FILE: a TREC run, or a KILT guess (jsonl). Or the
            scores by document id by query id, or a dict of such runs by name.
        data: A BEIR folder (or FOLDER/TASK), a qrels file of TREC or BEIR, or a KILT file (jsonl);
            or the dicts (corpus, queries, qrels) of BEIR.
        output: Folder for the results, as for bench(); None writes none.
        split: Split of a BEIR folder; None uses the registry's split for the data set, or else "test".
        corpus: Passages of a KILT file, for TREC runs that rank passages. Without it, runs must rank pages.
        pages: File with passage-id<TAB>page-id lines, for passages that do not name their pages.
        measures: Names of ir-measures separated by spaces, scored in addition to the default ones.
        k: Number of results per query that count; deeper ones are ignored.
        missing_judged: What to do with judged documents that are not in a BEIR folder's corpus; see bench().
        overwrite: True to replace results of other data, or of another run with the same name.
        on_result: Function called with each result as soon as it is available.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Returns:
        One result per run, in the order given, as a list that prints as a table. Without `output`, a result's
        path is that of its run.

    Raises:
        DataError: If a file is missing or invalid, or no query of a run is judged.
        OutputError: If `output` is in use, or has results of other data.
        RecipeError: If an option is invalid.
    """
    settings = ScoreSettings.check(locals())
    runs, data = settings.runs, settings.data
    chosen_measures = choose_measures(measures, k)
    if output is not None:
        output = check_output(output, kind="results", inputs=[data, corpus, pages, *runs])
    systems = [_system(text) for text in runs]
    judged = _judgements(locate(data, progress=progress), split, corpus, pages, missing_judged, progress)
    if output is not None:
        result_files.check_paths(output, [(name, revision) for name, revision, _ in systems], [judged.name])
    scored = []
    with contextlib.ExitStack() as stack:
        folder = None if output is None else stack.enter_context(result_files.output_folder(output))
        for name, revision, path in systems:
            start = time.monotonic()
            run = _read(path, progress)
            if not run.keys() & judged.qrels.keys():
                raise DataError(
                    f"{path} has no judged query of {data}. Check that both are of the same data set."
                )
            if not _is_guess(path):
                _check_documents(path, run, judged)
            ranked = rank(run, k, drop_self=judged.shares_ids)
            scores = evaluate(judged, ranked, chosen_measures, of_pages=_is_guess(path))
            system = (name, revision)
            target = result_files.result_file(folder, *system, judged.name) if folder else None
            if target:
                if overwrite:
                    results.check_replaceable(target)
                else:
                    results.find(target, system, judged, {"k": k})
                write_json(target.with_name("model_meta.json"), {"name": name, "revision": revision})
            seconds = time.monotonic() - start
            result = results.store(target, system, judged, {"k": k}, scores, chosen_measures, seconds, {})
            scored.append(replace(result, path=target or path))
            if on_result:
                on_result(scored[-1])
    return Results(scored)


def _system(text: str) -> tuple[str, str, Path]:
    """The system's name, its revision and the run file, from FILE or NAME=FILE."""
    name, file = parse_name(text)
    path = user_path(file)
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a TREC run, or a KILT guess (jsonl).")
    return path.name.lstrip(".").partition(".")[0] if name == file else name, fingerprint(path)[:12], path


def _judgements(
    data: Path,
    split: str | None,
    corpus: str | Path | None,
    pages: str | Path | None,
    missing_judged: str,
    progress: bool | None,
) -> RetrievalDataset:
    """The data set to score against; from a qrels file alone, it has neither corpus nor query texts."""
    if corpus is not None or not data.is_file():
        (read,) = select_datasets(
            data,
            None,
            split=split,
            corpus=corpus,
            pages=pages,
            missing_judged=missing_judged,
            progress=progress,
        )
        return read()
    if pages is not None or missing_judged != "error":
        option = "--missing-judged" if pages is None else "--pages"
        raise RecipeError(
            f"{option} has no effect without a corpus, and {data} has judgements only. Drop it."
        )
    evidence = kilt.read_gold(data) if ".jsonl" in data.suffixes else None
    qrels = read_qrels(data, progress) if evidence is None else kilt.page_qrels(evidence)
    judged = RetrievalDataset(
        name=data.name.lstrip(".").partition(".")[0],
        split=split or "test",
        corpus_ids=[],
        passages=[],
        queries=dict.fromkeys(qrels, ""),
        qrels=qrels,
        folder=data.parent,
        notes=("scored from judgements alone, without the corpus",),
    )
    if evidence is None:
        return judged
    return kilt.KiltSet(**judged.attributes(RetrievalDataset), pages=[], evidence=evidence)


def _read(path: Path, progress: bool | None) -> Run:
    if not _is_guess(path):
        return read_run(path, progress)
    return {
        query: {page: float(-rank) for rank, page in enumerate(dict.fromkeys(pages))}
        for query, pages in kilt.read_guess(path).items()
    }


def _check_documents(path: Path, run: Run, judged: RetrievalDataset) -> None:
    """Compares the documents of a run with the corpus, if there is one.

    Raises:
        DataError: If none of them is in the corpus, so that every score would be 0.
    """
    retrieved = {document for query in run.keys() & judged.qrels.keys() for document in run[query]}
    if not retrieved or not judged.corpus_ids:
        return
    known = {document for document in judged.corpus_ids if document in retrieved}
    known |= retrieved & {document for grades in judged.qrels.values() for document in grades}  # "not-found"
    unknown = len(retrieved - known)
    if not known:
        raise DataError(
            f"{path} has no document of {judged.name}, but ids such as {quoted(next(iter(retrieved)))}; "
            f"expected ids of its corpus, such as {quoted(judged.corpus_ids[0])}."
        )
    if unknown:
        notify(
            f"{path}: {unknown} of {len(retrieved)} documents are not in the corpus of {judged.name}; they "
            "count as not relevant."
        )


def _is_guess(path: Path) -> bool:
    """True for a guess in KILT's format, which ranks pages with or without a corpus."""
    return ".jsonl" in path.suffixes
