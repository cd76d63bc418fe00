"""bench(): every model on every data set, with BM25 beside.

1. Each data set is found and read, each model loaded: what is wrong is said before anything is encoded.
2. A result that is there for the same model, data and settings is reused.
3. Otherwise: encode, search, score over all judged queries, write the result and its run.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from stzoo.data.beir import RetrievalDataset
from stzoo.data.read_once import each_file_once
from stzoo.data.trec import check_ids, write_run
from stzoo.errors import RecipeError
from stzoo.evaluation.bench import results
from stzoo.evaluation.bench.datasets import check_sets, evaluate, find_sets
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.bench.systems import Dense, Found, System
from stzoo.evaluation.measures import Measure, wanted_measures
from stzoo.evaluation.settings import BenchSettings
from stzoo.models.encode.batches import USUAL
from stzoo.models.loaded import LoadedModel, open_model
from stzoo.models.names import slug
from stzoo.retrieval import bm25 as lexical
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.retrieval.store import SHARD_ROWS
from stzoo.retrieval.store.quantize import check_precision
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import write_json
from stzoo.utils.messages import notify
from stzoo.utils.outputs import check_output


def bench(
    models: str | Sequence[str] = (),
    *,
    output: str | Path,
    data: str | Path | None = None,
    datasets: str | Sequence[str] | None = None,
    split: str | None = None,
    corpus: str | Path | None = None,
    pages: str | Path | None = None,
    suite: str | None = None,
    measures: str | None = None,
    k: int = 1000,
    bm25: bool = True,
    language: str | None = None,
    precision: str | Sequence[str] = "float32",
    index: str | Sequence[str] = (),
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    dtype: str | None = None,
    backend: str = "torch",
    device: str | None = None,
    threads: int | None = None,
    memory_gib: float = 2.0,
    store: str | Path | None = None,
    keep_store: bool = True,
    shard_rows: int | None = None,
    run_files: bool = True,
    missing_judged: str = "error",
    overwrite: bool = False,
    on_result: Callable[[Result], None] | None = None,
    progress: bool | None = None,
) -> list[Result]:
    """Scores models on judged sets and files the results under `output` (see `results.py`).

    Args:
        models: one or several of a folder, a Hub id, or NAME=FOLDER_OR_HUB_ID to file it under NAME.
        output: where results go.
        data: a BEIR folder, the parent of several, or a KILT file (jsonl); None to look in the cache, on the
            Hub and in BEIR's archives alone.
        datasets: a list or with commas between: folders (or FOLDER/TASK) under `data`, sets of the registry,
            which are fetched where they are not there, or suites ("beir-13"); None if `data` is the set.
        split: of the judgements; None for the one the registry names, or "test".
        corpus: the passages of a KILT file: a BEIR folder or a corpus.jsonl.
        pages: passage-id<TAB>page-id lines for a KILT file whose passages do not name their pages.
        suite: "kilt" for all tasks of KILT in the folder `data` (see `kilt_suite.py`), split "dev" if it is
            None; queries get a model's prompt of the task's name.
        measures: names of ir-measures with spaces between, scored beside the usual ones and shown.
        k: results kept a query; measures that look deeper are left out.
        bm25: True to score BM25 as well.
        language: of the passages, for BM25's stemmer and stop words: a code or an English name ("de",
            "german"), or "none"; None detects it for each data set.
        precision: of stored vectors, several with commas between: float32, float16, int8, binary; each is a
            system of its own.
        index: FAISS factory strings (a list, or one), search parameters behind a space:
            "IVF4096,PQ64 nprobe=16"; each is a system of its own, beside exact search.
        max_tokens: longer texts are cut there; None keeps each model's own limit.
        batch_tokens: tokens encoded at once, padding included; None suits the device.
        dtype: of the weights: float32, bfloat16, float16; None as published.
        backend: of sentence-transformers: torch, onnx, openvino.
        device: of torch; several with commas between encode side by side; None takes the best there is.
        threads: on the CPU; None leaves it to torch.
        memory_gib: bound on what search holds beside queries and results.
        store: where embeddings are kept; None for stzoo's cache ($STZOO_CACHE/embeddings).
        keep_store: False to remove the embeddings at the end.
        shard_rows: vectors a file of a store; a killed run loses the unfinished one; None for the usual.
        run_files: True to write TREC run files (some 60 kB a query).
        missing_judged: what to do about judged documents that the corpus lacks and judged queries without a
            text: "error"; "drop" leaves their judgements out; "not-found" counts such documents as not found.
            What was done is among the notes of the result.
        overwrite: True to score anew what was scored on other data or with other settings.
        on_result: called with each result as soon as it is there.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        data set by data set, BM25 first and the models in the order given.

    Raises:
        DataError: if a data set is not there or does not hold.
        ModelError: if a model cannot be loaded or used.
        OutputError: if `output` is in use, or holds results of other data or settings.
        RecipeError: if an option does not hold.
    """
    require_one_process("bench")
    settings = BenchSettings.check(locals())
    models, precisions = settings.models, list(dict.fromkeys(settings.precision))
    if not models and not bm25:
        raise RecipeError("there is nothing to score; give a model, or let BM25 be scored.")
    if not models:
        _check_no_model(settings)
    for one in precisions:
        check_precision(one)
    if language is not None and not bm25:
        raise RecipeError("the language is for BM25, which is left out; drop --language or --no-bm25.")
    wanted = wanted_measures(measures, k)
    read = [data, corpus, pages, *models]
    output = check_output(output, kind="results", inputs=read)
    if store:
        store = check_output(store, kind="results", inputs=read)
    if threads:
        torch.set_num_threads(threads)

    bars = sys.stderr.isatty() if progress is None else progress
    sets = find_sets(
        data,
        settings.datasets,
        split=split,
        corpus=corpus,
        pages=pages,
        suite=suite,
        missing_judged=missing_judged,
        progress=progress,
    )
    systems: list[System] = []
    models_opened = []
    with contextlib.ExitStack() as held_things:
        root = Path(store or default_root())
        if not keep_store:
            root = Path(held_things.enter_context(tempfile.TemporaryDirectory(prefix="stzoo-embeddings-")))
        for text in models:
            opened = open_model(text, max_tokens=max_tokens, device=device, dtype=dtype, backend=backend)
            models_opened.append(opened)
            retriever = Retriever(opened, root, batch_tokens, shard_rows or SHARD_ROWS, memory_gib, bars)
            how = {"device": opened.model.device.type}
            systems += Dense(retriever, k).systems(precisions, settings.index, how)

        chosen: dict[str, str] = {}  # BM25's language, by data set

        def systems_of(judged: RetrievalDataset) -> list[System]:
            if not bm25:
                return systems
            if judged.name not in chosen:
                chosen[judged.name] = lexical.choose_language(settings.language, judged.passages, judged.name)
            return [_bm25(k, chosen[judged.name], progress), *systems]

        def check(judged: RetrievalDataset) -> None:
            if run_files:
                check_ids(judged)
            for system in systems_of(judged) if not overwrite else ():
                path = results.result_file(output, system.name, system.revision, judged)
                if path.exists():
                    results.find(path, (system.name, system.revision), judged, system.settings)

        if suite:
            held_things.enter_context(each_file_once())  # the tasks share a corpus
        names, first = check_sets(sets, check)
        revisions = [(lexical.NAME, version("bm25s"))] if bm25 else []
        revisions += [(system.name, system.revision) for system in systems]
        results.check_places(output, revisions, names)
        kept, found = [first], []
        del first
        place = held_things.enter_context(results.output_folder(output))
        bar = held_things.enter_context(tqdm(total=len(sets) * len(revisions), disable=not bars))
        for one_set in sets:
            judged = kept.pop() if kept else one_set()
            for opened in models_opened:
                _tell_of_prompt(opened, judged.task)
            for system in systems_of(judged):
                bar.set_description(f"{system.name} on {judged.name}")
                found.append(_score(system, judged, place, wanted, run_files, overwrite))
                if on_result:
                    on_result(found[-1])
                bar.update()
    return found


def _check_no_model(settings: BenchSettings) -> None:
    """Refuses settings of models if no model is given.

    Raises:
        RecipeError: if one is given.
    """
    for name in ("dtype", "backend", "index", "precision", "max_tokens"):
        if getattr(settings, name) != BenchSettings.model_fields[name].default:
            raise RecipeError(
                f"--{name.replace('_', '-')} has no effect without a model: BM25 alone is scored. Name a "
                "model, or leave the option out."
            )


def _tell_of_prompt(opened: LoadedModel, task: str) -> None:
    """Says if a model that has prompts for tasks has none for this one, which may just have another name."""
    own = [name for name, prompt in opened.model.prompts.items() if prompt and name not in USUAL]
    if task and own and task not in opened.model.prompts:
        notify(
            f"{opened.name} has prompts for {', '.join(own)}; the queries of {task} get none of them. "
            "A task's prompt is found by the task's name."
        )


def _score(
    system: System,
    judged: RetrievalDataset,
    output: Path,
    measures: Sequence[Measure],
    run_files: bool,
    overwrite: bool,
) -> Result:
    path = results.result_file(output, system.name, system.revision, judged)
    if overwrite:
        results.check_replaceable(path)
    run_path = results.run_file(path, judged.split)
    known = ((system.name, system.revision), judged, system.settings)
    if not overwrite:
        there = results.find(path, *known)
        enough = there and all(measure.name in there.scores.mean for measure in measures)
        if there and enough and (run_path.exists() or not run_files):
            if not path.with_name("model_meta.json").exists():
                write_json(path.with_name("model_meta.json"), system.meta)
            return there
    begun = time.monotonic()
    of_system = system.notes(judged)
    found = system.retrieve(judged)
    scores = evaluate(judged, found.run, measures)
    seconds = time.monotonic() - begun
    write_json(path.with_name("model_meta.json"), system.meta)
    run_path.unlink(missing_ok=True)  # so that no kill leaves a run beside scores that are not its own
    how = {**system.how, "cost": found.cost, **found.facts}
    of_system = [*of_system, *found.notes]
    if of_system:  # a second time, as notes of the data say that they are not the official ones
        how |= {"notes": [*judged.notes, *of_system], "system_notes": of_system}
    result = results.store(path, *known, scores, measures, seconds, how)
    if run_files:
        write_run(run_path, found.run, slug(system.name))
    return result


def _bm25(k: int, language: str, progress: bool | None) -> System:
    revision = version("bm25s")
    settings = {"k": k, **lexical.settings_of(language)}
    every = {name: settings[name] for name in ("method", "k1", "b")}  # the rest differs from set to set
    meta = {"name": lexical.NAME, "revision": revision, **every}

    def retrieve(judged: RetrievalDataset) -> Found:
        run = lexical.retrieve_bm25(judged, k, language=language, progress=progress)
        note = lexical.note_empty(run, language)
        return Found(run, notes=(note,) if note else ())

    return System(lexical.NAME, revision, meta, settings, {}, retrieve)
