"""stzoo bench, score, compare, report, contamination, search: what models are worth, and what they find."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.shared import SEEDS, Json, Threads, app, finite, print_json, show, show_answers

Measures = Annotated[
    str | None, typer.Option(help='Beside the usual ones, by ir-measures\' names: "nDCG@20 RR(rel=2)@10".')
]
Measure = Annotated[str, typer.Option(help="What to look at; one that was scored.")]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Corpus = Annotated[Path | None, typer.Option(help="Passages of a KILT file: a BEIR folder or corpus.jsonl.")]
Pages = Annotated[
    Path | None, typer.Option(help="passage-id<TAB>page-id lines, where passages do not name their pages.")
]
MissingJudged = Annotated[
    str,
    typer.Option(
        help="Judged documents that the corpus lacks: error, drop (leave them out), not-found (count them as "
        "not found)."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, …; several with commas between encode together.")
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, max=10**9, help="Cut texts here; the model's limit if left out.")
]
BatchTokens = Annotated[
    int | None, typer.Option(min=1, max=10**9, help="Tokens encoded at once, padding included.")
]
Store = Annotated[Path | None, typer.Option(help="Where embeddings are kept; stzoo's cache if left out.")]
Memory = Annotated[
    float,
    typer.Option(
        min=0, max=2**20, callback=finite, help="Memory for search in GiB, besides queries and results."
    ),
]


@app.command("bench")
def bench_command(
    output: Annotated[Path, typer.Option(help="Where results go.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Folders or Hub ids, or NAME=FOLDER_OR_HUB_ID; none for BM25 alone."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A BEIR folder, the parent of several, or a KILT file.")
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(help="Folders under --data, BEIR sets (fetched if need be), suites: scifact,beir-13."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the judgements; the official one if left out.")
    ] = None,
    corpus: Corpus = None,
    pages: Pages = None,
    suite: Annotated[
        str | None, typer.Option(help="kilt: all its tasks in --data, each with the model's prompt for it.")
    ] = None,
    measures: Measures = None,
    k: Annotated[int, typer.Option("--k", min=1, max=10**7, help="Results kept a query.")] = 1000,
    bm25: Annotated[bool, typer.Option(help="Score BM25 beside.")] = True,
    language: Annotated[
        str | None,
        typer.Option(help="Language of the passages, for BM25: de, german, none; detected if left out."),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="Of stored vectors: float32, float16, int8, binary; several with commas between."),
    ] = "float32",
    index: Annotated[
        list[str] | None,
        typer.Option(help='FAISS factory string: HNSW32, "IVF64,PQ48 nprobe=8"; give it again for more.'),
    ] = None,
    max_tokens: MaxTokens = None,
    batch_tokens: BatchTokens = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights: float32, bfloat16, float16.")] = None,
    backend: Annotated[str, typer.Option(help="torch, onnx or openvino.")] = "torch",
    device: Device = None,
    threads: Threads = None,
    memory_gib: Memory = 2.0,
    store: Store = None,
    keep_store: Annotated[bool, typer.Option(help="Keep the embeddings for later runs.")] = True,
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Vectors a file; a killed run loses the unfinished one."),
    ] = None,
    run_files: Annotated[bool, typer.Option(help="Keep TREC run files.")] = True,
    missing_judged: MissingJudged = "error",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Score anew what was scored on other data or settings.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score models on BEIR and KILT data, with BM25 beside."""
    from stzoo.evaluation.bench.bench import bench

    _score(
        bench,
        models or (),
        measures=measures,
        suite=suite,
        as_json=as_json,
        output=output,
        data=data,
        datasets=datasets,
        split=split,
        corpus=corpus,
        pages=pages,
        k=k,
        bm25=bm25,
        language=language,
        precision=precision,
        index=index or (),
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        dtype=dtype,
        backend=backend,
        device=device,
        threads=threads,
        memory_gib=memory_gib,
        store=store,
        keep_store=keep_store,
        shard_rows=shard_rows,
        run_files=run_files,
        missing_judged=missing_judged,
        overwrite=overwrite,
    )


@app.command("score")
def score_command(
    runs: Annotated[list[str], typer.Argument(help="TREC runs or KILT answers: FILE or NAME=FILE.")],
    data: Annotated[Path, typer.Option(help="A BEIR folder, a qrels file, or a KILT file.")],
    output: Annotated[Path | None, typer.Option(help="Where results go; nowhere if left out.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a BEIR folder.")] = None,
    corpus: Corpus = None,
    pages: Pages = None,
    measures: Measures = None,
    k: Annotated[int, typer.Option("--k", min=1, max=10**7, help="Results of a query that count.")] = 1000,
    missing_judged: MissingJudged = "error",
    overwrite: Replace = False,
    as_json: Json = False,
) -> None:
    """Score run files that other systems made, by the same rules."""
    from stzoo.evaluation.bench.score import score

    _score(
        score,
        runs,
        measures=measures,
        as_json=as_json,
        data=data,
        output=output,
        split=split,
        corpus=corpus,
        pages=pages,
        k=k,
        missing_judged=missing_judged,
        overwrite=overwrite,
    )


def _score(
    command: Callable[..., Any],
    systems: Sequence[str],
    *,
    measures: str | None,
    as_json: bool,
    suite: str | None = None,
    **options: Any,
) -> None:
    """Calls bench or score and prints the results, also those before a failure or Ctrl-C."""
    results: list[Any] = []
    if suite is not None:
        options["suite"] = suite
    whole = False
    try:
        command(systems, measures=measures, on_result=results.append, **options)
        whole = True
    finally:
        if results:  # of a suite that is not whole there is no mean
            _results(results, measures, as_json, suite if whole else None)


def _results(results: Any, measures: str | None, as_json: bool, suite: str | None = None) -> None:
    from stzoo.evaluation.bench import kilt_suite
    from stzoo.evaluation.bench.tables import as_json as to_json
    from stzoo.evaluation.bench.tables import costs, table
    from stzoo.evaluation.measures import parse_measures

    for note in dict.fromkeys(f"{r.dataset}: {note}" for r in results for note in r.facts.get("notes", ())):
        typer.echo(f"warning: {note}", err=True)
    if as_json:
        print_json(to_json(results) | (kilt_suite.as_json(results) if suite else {}))
        return
    if suite:
        show(kilt_suite.table(results))
        return
    show(table(results, [measure.name for measure in parse_measures(measures)] if measures else ()))
    if variants := costs(results):
        show(variants)


@app.command("compare")
def compare_command(
    systems: Annotated[
        list[str],
        typer.Argument(help="Result folders, or names within --results; the first is the baseline."),
    ],
    results: Annotated[Path | None, typer.Option(help="An --output of bench.")] = None,
    measure: Measure = "nDCG@10",
    datasets: Annotated[str | None, typer.Option(help="Sets or suites, with commas between.")] = None,
    data: Annotated[Path | None, typer.Option(help="BEIR folders, for the texts of the queries.")] = None,
    examples: Annotated[int, typer.Option(min=0, max=10**6, help="Largest gains and losses to show.")] = 5,
    seed: Annotated[int, typer.Option(**SEEDS, help="Of the random draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Test whether systems differ, query by query, and show where."""
    from stzoo.evaluation.compare import compare
    from stzoo.evaluation.compare.result import as_json as to_json
    from stzoo.evaluation.compare.result import table, verdict

    found = compare(
        systems, results=results, measure=measure, datasets=datasets, data=data, examples=examples, seed=seed
    )
    if as_json:
        print_json(to_json(found))
        return
    show(table(found))
    for pair in found.pairs:
        typer.echo(verdict(found, pair))
    for note in found.notes:
        typer.echo(note, err=True)


@app.command("report")
def report_command(
    results: Annotated[Path, typer.Argument(help="An --output of bench.")],
    output: Annotated[Path, typer.Option(help="The page to write; text and CSV go beside it.")] = Path(
        "report.html"
    ),
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="A run of pretrain or finetune, to show how it learned; give it again for more."),
    ] = None,
    measure: Measure = "nDCG@10",
    formats: Annotated[str, typer.Option(help="Of html, txt, csv.")] = "html,txt,csv",
    seed: Annotated[int, typer.Option(**SEEDS, help="Of the intervals' draws.")] = 0,
    overwrite: Replace = False,
) -> None:
    """Write one page about all results, which needs no network: leaderboards, queries, costs, sources."""
    from stzoo.evaluation.report import report

    for path in report(
        results,
        output=output,
        runs=runs or (),
        measure=measure,
        formats=formats.split(","),
        seed=seed,
        overwrite=overwrite,
    ):
        typer.echo(path)


@app.command("contamination")
def contamination_command(
    train: Annotated[
        list[str], typer.Option(help="Training data: files, or BEIR folders; give it again for more.")
    ],
    data: Annotated[Path, typer.Option(help="The BEIR folder that is tested on.")],
    split: Annotated[str, typer.Option(help="That is tested on.")] = "test",
    output: Annotated[Path | None, typer.Option(help="Folder for the list and the report.")] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="Result folders to score without what was found.")
    ] = None,
    measure: Measure = "nDCG@10",
    ngram: Annotated[int, typer.Option(min=1, max=10**6, help="Words in a row that count as a copy.")] = 13,
    jaccard: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Similarity that counts as a near-copy.")
    ] = 0.8,
    minhash: Annotated[bool, typer.Option(help="Look for near-copies as well.")] = True,
    overwrite: Replace = False,
    as_json: Json = False,
) -> None:
    """Find test queries and their passages in training data, and score without them."""
    from stzoo.evaluation.contamination import contamination
    from stzoo.evaluation.contamination.result import as_json as to_json
    from stzoo.evaluation.contamination.result import table

    found = contamination(
        train,
        data=data,
        split=split,
        output=output,
        results=results,
        measure=measure,
        ngram=ngram,
        jaccard=jaccard,
        minhash=minhash,
        overwrite=overwrite,
    )
    print_json(to_json(found)) if as_json else show(table(found))


@app.command("search")
def search_command(
    source: Annotated[str, typer.Argument(metavar="MODEL_OR_STORE", help="A model, or embeddings of bench.")],
    questions: Annotated[list[str], typer.Argument(help="What to ask.")],
    data: Annotated[
        str | None, typer.Option(help="A BEIR folder or a corpus.jsonl; a store knows its own.")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, max=10**7, help="Passages a question.")] = 5,
    max_tokens: MaxTokens = None,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    threads: Threads = None,
    memory_gib: Memory = 2.0,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Ask a model questions, and print the nearest passages."""
    from stzoo.retrieval.search.search import search

    answers = search(
        source,
        questions,
        data=data,
        k=k,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        device=device,
        threads=threads,
        memory_gib=memory_gib,
        store=store,
    )
    print_json(answers) if as_json else show_answers(answers)
