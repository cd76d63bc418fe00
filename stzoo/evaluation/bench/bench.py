"""bench(): score every model, and BM25, on every data set.

1. Find and read each data set and load each model, so that mistakes are reported before anything is encoded.
2. Reuse an existing result for the same model, data and settings.
3. Otherwise encode, search, score over all judged queries, and write the result and its run file.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stzoo.data.beir import RetrievalDataset
from stzoo.data.objects import is_several
from stzoo.data.ranking import Ranked, rank
from stzoo.data.read_once import each_file_once
from stzoo.data.trec import check_ids, read_run, write_run
from stzoo.errors import DataError, ModelError, RecipeError, check_known
from stzoo.evaluation.bench import result_files, results
from stzoo.evaluation.bench.datasets import check_datasets, evaluate, select_datasets
from stzoo.evaluation.bench.fused import Fusion
from stzoo.evaluation.bench.reranked import Reranking
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.bench.systems import Dense, Retrieved, System
from stzoo.evaluation.bench.tables import Results
from stzoo.evaluation.measures import Measure, choose_measures
from stzoo.evaluation.settings import BenchSettings, FuseMethod, parse_weight
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.encode.batches import USUAL
from stzoo.models.loaded import LoadedModel, open_model
from stzoo.models.names import slug
from stzoo.models.objects import listed, model_name
from stzoo.retrieval import bm25 as lexical
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.retrieval.store import PRECISIONS, SHARD_ROWS
from stzoo.utils.distributed import is_main_process, local_device, require_one_process
from stzoo.utils.files import write_json
from stzoo.utils.messages import notify, show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.progress import STAGES, progress_bar
from stzoo.utils.public import public


@public()
def bench(
    models: Any = (),
    *,
    output: str | Path | None = None,
    data: Any = None,
    datasets: str | Sequence[str] | None = None,
    split: str | None = None,
    corpus: str | Path | None = None,
    pages: str | Path | None = None,
    suite: str | None = None,
    measures: str | None = None,
    k: int = 1000,
    bm25: bool = True,
    language: str | None = None,
    fuse: FuseMethod | None = None,
    fuse_weight: float | str = 0.5,
    rerank: Any = None,
    rerank_depth: int = 100,
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
    engine: str = "local",
    ray_workers: int | None = None,
    ray_address: str | None = None,
    run_files: bool = True,
    missing_judged: str = "error",
    overwrite: bool = False,
    on_result: Callable[[Result], None] | None = None,
    progress: bool | None = None,
) -> Results:
    """Scores models on data sets with judgements and writes the results under `output`.

    Args:
        models: One or several models, each a folder, a Hub id, a SentenceTransformer, or
            NAME=FOLDER_OR_HUB_ID to save its results as NAME; or a dict of models by name.
        output: Folder for the results; None writes none, except for the embeddings.
        data: A BEIR folder, the parent of several, or a KILT file (jsonl); None searches the cache, the Hub
            and BEIR's archives for `datasets`. Or the dicts (corpus, queries, qrels) of BEIR's
            GenericDataLoader, or a dict of such data sets by name.
        datasets: Data sets, as a list or separated by commas: folders (or FOLDER/TASK) under `data`, data
            sets of the registry (downloaded if missing), or suites such as "beir-13". None if `data` is the
            data set.
        split: Split of the judgements; None uses the registry's split for the data set, or else "test".
        corpus: Passages for a KILT file: a BEIR folder or a corpus.jsonl.
        pages: File with passage-id<TAB>page-id lines, for a KILT file whose passages do not name their pages.
        suite: "kilt" scores all tasks of KILT in the folder `data`, by default on the split "dev". Queries
            get the model's prompt with the task's name.
        measures: Names of ir-measures separated by spaces, scored and shown in addition to the default ones.
        k: Number of results per query. Default measures that look deeper are left out.
        bm25: True to score BM25 as well.
        language: Language of the passages for BM25's stemmer and stop words: a code or an English name ("de",
            "german"), or "none". None detects it for each data set.
        fuse: Method to fuse BM25 with each model: min-max, z-score or rrf (see `stzoo.retrieval.fusion`). The
            fusion is a system of its own, "BM25 + NAME", made of the runs of both. None fuses nothing.
        fuse_weight: Weight of BM25 in the fusion, from 0 to 1; or a split, such as "dev" or "train", on which
            the best of 0, 0.1, …, 1 is chosen for each data set by nDCG@10, or the first measure if k is
            below 10.
        rerank: Cross-encoder (folder, Hub id or CrossEncoder) that ranks the best passages of each model
            again, or of its fusion with BM25 if `fuse` is set, or of BM25 if there are no models. It is a
            system of its own, "NAME + RERANKER", made of the first system's run; its scores of pairs are
            stored like embeddings.
        rerank_depth: Number of passages per query to rank again; those after them keep their order.
        precision: Precision of the stored vectors: float32, float16, int8 or binary. Several may be given,
            as a list or separated by commas; each is scored as a system of its own.
        index: One or several FAISS factory strings, each with optional search parameters after a space
            ("IVF4096,PQ64 nprobe=16"). Each is scored as a system of its own, in addition to exact search.
        max_tokens: Maximum length of a text; longer texts are truncated. None keeps each model's own limit.
        batch_tokens: Maximum number of tokens per batch, padding included; None chooses one for the device.
        dtype: Data type of the weights: float32, bfloat16 or float16; None keeps the published one.
        backend: Backend of sentence-transformers: torch, onnx or openvino.
        device: Torch device, or several separated by commas to encode in parallel; None uses the best
            available.
        threads: Number of CPU threads; None keeps torch's default.
        memory_gib: Memory limit of the search in GiB, not counting queries and results.
        store: Folder for the embeddings; None uses stzoo's cache ($STZOO_CACHE/embeddings).
        keep_store: False to delete the embeddings at the end.
        shard_rows: Number of vectors per file of the embedding store; an interrupted run loses only the
            unfinished file. None uses the default.
        engine: "local", or "ray" to encode and to rerank on a Ray cluster.
        ray_workers: Number of Ray's workers; None for one per GPU, or else one per node.
        ray_address: Address of the Ray cluster; None for that in RAY_ADDRESS, or else this machine.
        run_files: True to write TREC run files (about 60 kB per query).
        missing_judged: What to do with judged documents that are not in the corpus, and judged queries
            without a text: "error" raises, "drop" ignores their judgements, "not-found" counts the documents
            as not found. The result's notes record what was done.
        overwrite: True to replace results of other data or other settings.
        on_result: Function called with each result as soon as it is available.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Returns:
        The results, data set by data set: BM25 first, then the models in the order given, their fusions, and
        the reranked systems. They are a list that prints as a table. Of several processes, which encode
        together, all but the first return an empty list.

    Raises:
        DataError: If a data set is missing or invalid.
        ModelError: If a model cannot be loaded or used.
        OutputError: If `output` is in use, or has results of other data or settings.
        RecipeError: If an option is invalid.
    """
    try:
        named = listed(models)
    except ModelError:
        if isinstance(models, dict):  # reported with other settings
            BenchSettings.check(locals())
        raise
    models = [name or (str(one) if isinstance(one, str | Path) else model_name(one)) for name, one in named]
    if datasets is None and is_several(data):
        datasets = list(data)
    settings = BenchSettings.check(locals())
    data, precisions = settings.data, list(dict.fromkeys(settings.precision))
    if not models and not bm25:
        raise RecipeError("there is nothing to score: no model is given and BM25 is off. Give a model.")
    if not models:
        _check_no_model(settings)
    for name in precisions:
        check_known("precision", name, PRECISIONS)
    if language is not None and not bm25:
        raise RecipeError("--language is for BM25, which --no-bm25 leaves out; drop one of the two.")
    weight = _check_fusion(settings)
    _check_reranking(settings)
    chosen_measures = choose_measures(measures, k)
    inputs = [data, corpus, pages, *(one for _, one in named), settings.rerank]
    kept = output is not None
    if output is not None:
        output = check_output(output, kind="results", inputs=inputs)
    if store:
        store = check_output(store, kind="results", inputs=inputs)
    if threads:
        torch.set_num_threads(threads)

    show_bars = show_progress(progress)
    select = partial(
        select_datasets,
        data,
        settings.datasets,
        corpus=corpus,
        pages=pages,
        suite=suite,
        missing_judged=missing_judged,
        progress=progress,
    )
    datasets_to_read = select(split=split)
    weight_splits = select(split=weight) if isinstance(weight, str) else []
    if weight_splits and len(weight_splits) != len(datasets_to_read):
        raise DataError(
            f"{len(datasets_to_read)} tasks are scored, but {len(weight_splits)} have a split {weight} to "
            "choose the weight of the fusion on. Give --fuse-weight a number, or a split that all have."
        )
    systems: list[System] = []
    loaded_models: list[LoadedModel] = []
    encoded: list[tuple[Retriever, list[System]]] = []  # each model, and its systems
    with contextlib.ExitStack() as stack:
        if output is None:
            output = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="stzoo-results-")), "results"
            )
        stack.enter_context(settings.on_engine())
        root = Path(store or default_root())
        if not keep_store:
            require_one_process("bench --no-keep-store")
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stzoo-embeddings-")))
        for name, model in named:
            loaded = open_model(
                model,
                name=name,
                max_tokens=max_tokens,
                device=device or local_device(),
                dtype=dtype,
                backend=backend,
            )
            loaded_models.append(loaded)
            retriever = Retriever(loaded, root, batch_tokens, shard_rows or SHARD_ROWS, memory_gib, show_bars)
            run_info = {"device": loaded.model.device.type}
            encoded.append((retriever, Dense(retriever, k).systems(precisions, settings.index, run_info)))
            systems += encoded[-1][1]
        find = partial(
            _find, output, measures=chosen_measures, run_files=run_files and kept, overwrite=overwrite
        )

        if suite:
            stack.enter_context(each_file_once())  # the tasks share a corpus
        if not is_main_process():  # it encodes together with the main process, which does the rest
            for read in datasets_to_read:
                judged = read()
                for retriever, of_model in encoded:
                    if not all(find(system, judged) for system in of_model):
                        retriever.documents(judged)
                        retriever.queries(judged)
            return Results([])

        reranker = (
            open_teacher(settings.rerank, device=device and device.split(",")[0]) if settings.rerank else None
        )

        languages: dict[str, str] = {}  # BM25's language, by data set
        names: list[str] = []  # of the data sets
        runs: dict[tuple[str, str], Ranked] = {}  # by name and revision, on the present data set, to be fused

        def run_of(system: System, judged: RetrievalDataset) -> Ranked:
            key = (system.name, system.revision)
            if key not in runs:
                path = result_files.result_file(output, system.name, system.revision, judged.name)
                path = result_files.run_file(path, judged.split)
                found = rank(read_run(path, progress), k) if path.exists() else system.retrieve(judged).run
                runs[key] = found
            return runs[key]

        def read_weight_split(judged: RetrievalDataset) -> RetrievalDataset:
            found = weight_splits[names.index(judged.name)]()
            if found.name != judged.name:
                raise DataError(f"{judged.name} has no split {weight} to choose the weight of the fusion on.")
            return found

        def systems_for(judged: RetrievalDataset) -> list[System]:
            first, last = first_stages(judged)
            if reranker is None:
                return first
            again = Reranking(reranker, rerank_depth, k, root, run_of, show_bars)
            return [*first, *map(again.system, last)]

        def first_stages(judged: RetrievalDataset) -> tuple[list[System], list[System]]:
            """All systems but the reranked ones, and those of them that are reranked."""
            if not bm25:
                return systems, systems
            if judged.name not in languages:
                detected = lexical.choose_language(settings.language, judged.passages, judged.name)
                languages[judged.name] = detected
            bm25_system = _bm25(k, languages[judged.name], progress)
            if fuse is None:
                return [bm25_system, *systems], systems or [bm25_system]
            fusion = Fusion(fuse, weight, k, chosen_measures[0], run_of, read_weight_split)
            fused = [fusion.system(bm25_system, system) for system in systems]
            return [bm25_system, *systems, *fused], fused

        def check(judged: RetrievalDataset) -> None:
            if judged.split == weight:
                raise RecipeError(
                    f"{judged.name} is scored on the split {judged.split}, which cannot choose the weight of "
                    "the fusion as well. Give --fuse-weight another split, or a number."
                )
            if run_files:
                check_ids(judged)
            for system in systems_for(judged) if not overwrite else ():
                path = result_files.result_file(output, system.name, system.revision, judged.name)
                if path.exists():
                    results.find(path, (system.name, system.revision), judged, system.settings)

        found_names, first = check_datasets(datasets_to_read, check)
        names += found_names
        revisions = [(system.name, system.revision) for system in systems_for(first)]
        result_files.check_paths(output, revisions, names)
        already_read, scored = [first], []
        del first
        folder = stack.enter_context(result_files.output_folder(output))
        bar = stack.enter_context(
            progress_bar(total=len(names) * len(revisions), bar_format=STAGES, disable=not show_bars)
        )
        for read in datasets_to_read:
            judged = already_read.pop() if already_read else read()
            for loaded in loaded_models:
                _note_missing_prompt(loaded, judged.task)
            runs.clear()
            for system in systems_for(judged):
                bar.set_description(f"{system.name} on {judged.name}")
                result, run = find(system, judged), None
                if result is None:
                    result, run = _score(
                        system, judged, folder, chosen_measures, run_files and kept, overwrite
                    )
                elif not (meta := result.path.with_name("model_meta.json")).exists():
                    write_json(meta, system.meta)
                result = replace(result, folder=judged.folder, path=result.path if kept else Path())
                if (fuse or rerank) and run is not None:
                    runs[system.name, system.revision] = run
                scored.append(result)
                if on_result:
                    on_result(scored[-1])
                bar.update()
    return Results(scored)


def _check_no_model(settings: BenchSettings) -> None:
    """Refuses settings of models if no model is given.

    Raises:
        RecipeError: If one differs from its default.
    """
    names = ("dtype", "backend", "index", "precision", "max_tokens", "fuse")
    for name in names if settings.rerank else (*names, "engine"):
        if getattr(settings, name) != BenchSettings.model_fields[name].default:
            raise RecipeError(
                f"--{name.replace('_', '-')} has no effect without a model: only BM25 is scored. Name a "
                "model, or drop the option."
            )


def _check_fusion(settings: BenchSettings) -> float | str:
    """The weight of BM25 in the fusion, or the split to choose it on.

    Raises:
        RecipeError: If the fusion lacks BM25, or the weight has no effect or no split to be chosen on.
    """
    if settings.fuse and not settings.bm25:
        raise RecipeError(
            "--fuse fuses BM25 with each model, but --no-bm25 leaves BM25 out; drop one of the two."
        )
    if not settings.fuse and settings.fuse_weight != BenchSettings.model_fields["fuse_weight"].default:
        raise RecipeError("--fuse-weight has no effect without --fuse; name a method by --fuse min-max.")
    weight = parse_weight(settings.fuse_weight)
    if (
        isinstance(weight, str)
        and not settings.suite
        and (settings.corpus or (settings.data or Path()).is_file())
    ):
        raise RecipeError(
            "a KILT file has one split only, so the weight of the fusion cannot be chosen on another; give "
            "--fuse-weight a number from 0 to 1."
        )
    return weight


def _check_reranking(settings: BenchSettings) -> None:
    """Refuses a depth of reranking that has no effect.

    Raises:
        RecipeError: If it has none, or more results are ranked again than there are.
    """
    depth = settings.rerank_depth
    if not settings.rerank and depth != BenchSettings.model_fields["rerank_depth"].default:
        raise RecipeError("--rerank-depth has no effect without --rerank; name a cross-encoder by it.")
    if settings.rerank and depth > settings.k:
        raise RecipeError(
            f"--rerank-depth is {depth}, but only --k {settings.k} results per query are kept; use a larger "
            "--k or a smaller depth."
        )


def _note_missing_prompt(loaded: LoadedModel, task: str) -> None:
    """Notes that a model with prompts for tasks has none for this task; its prompt may have another name."""
    names = [name for name, prompt in loaded.model.prompts.items() if prompt and name not in USUAL]
    if task and names and task not in loaded.model.prompts:
        notify(
            f"{loaded.name} has prompts for {', '.join(names)}, but none for {task}, so the queries of "
            f"{task} get none. A task's prompt is found by the task's name."
        )


def _find(
    output: Path,
    system: System,
    judged: RetrievalDataset,
    *,
    measures: Sequence[Measure],
    run_files: bool,
    overwrite: bool,
) -> Result | None:
    """The result of an earlier call; None if it lacks something, or is to be replaced."""
    if overwrite:
        return None
    path = result_files.result_file(output, system.name, system.revision, judged.name)
    existing = results.find(path, (system.name, system.revision), judged, system.settings)
    if not existing or any(measure.name not in existing.scores.mean for measure in measures):
        return None
    if run_files and not result_files.run_file(path, judged.split).exists():
        return None
    return existing


def _score(
    system: System,
    judged: RetrievalDataset,
    output: Path,
    measures: Sequence[Measure],
    run_files: bool,
    overwrite: bool,
) -> tuple[Result, Ranked]:
    """Retrieves and scores, writes the result, and returns it with its run."""
    path = result_files.result_file(output, system.name, system.revision, judged.name)
    if overwrite:
        results.check_replaceable(path)
    run_path = result_files.run_file(path, judged.split)
    identity = ((system.name, system.revision), judged, system.settings)
    start = time.monotonic()
    system_notes = system.notes(judged)
    retrieved = system.retrieve(judged)
    scores = evaluate(judged, retrieved.run, measures)
    seconds = time.monotonic() - start
    write_json(path.with_name("model_meta.json"), system.meta)
    run_path.unlink(missing_ok=True)  # so that an interruption never leaves a run next to other scores
    run_info = {**system.run_info, "cost": retrieved.cost, **retrieved.run_info}
    system_notes = [*system_notes, *retrieved.notes]
    if system_notes:  # also under a key of their own: notes of the data say that the data is not official
        run_info |= {"notes": [*judged.notes, *system_notes], "system_notes": system_notes}
    result = results.store(path, *identity, scores, measures, seconds, run_info)
    if run_files:
        write_run(run_path, retrieved.run, slug(system.name))
    return result, retrieved.run


def _bm25(k: int, language: str, progress: bool | None) -> System:
    revision = version("bm25s")
    settings = {"k": k, **lexical.settings_of(language)}
    constant = {name: settings[name] for name in ("method", "k1", "b")}  # the rest depends on the data set
    meta = {"name": lexical.NAME, "revision": revision, **constant}

    def retrieve(judged: RetrievalDataset) -> Retrieved:
        run = lexical.retrieve_bm25(judged, k, language=language, progress=progress)
        note = lexical.note_empty(run, language)
        return Retrieved(run, notes=(note,) if note else ())

    return System(lexical.NAME, revision, meta, settings, {}, retrieve)
