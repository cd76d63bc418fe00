"""judge(): let a person judge pooled question-passage pairs, blind, and score the systems by the answers.

1. Read the run files of all systems, and draw a pool of pairs (`pool.py`).
2. Show the pairs one by one on a page (`server.py`) or in the terminal (`terminal.py`); each answer is
   appended to a journal at once (`answers.py`).
3. Write the answers as a BEIR folder, score all systems by them, and compare them by the paired test.

OUTPUT/judge.json      the settings and the pool
OUTPUT/answers.jsonl   the journal
OUTPUT/corpus.jsonl    a hard link to the data set's file, or a symbolic link where that is not possible: a
                       copy would take the size of the corpus for a few judged passages
OUTPUT/queries.jsonl   the judged queries
OUTPUT/qrels/test.tsv  grades 0 to 2; pairs that were skipped or not shown are absent
OUTPUT/results/        the systems' scores, as bench writes them

The systems are compared by nDCG at the depth of the pool, where all of their passages are judged, and on
condensed lists: passages without a judgement, which were skipped or which only another system's ranking
has, are removed from a ranking before it is scored. Plain nDCG@10 would count most of the first ten passages
as not relevant because nobody has judged them. Judged@10 is the share of them that were judged.

Source: Sakai, SIGIR 2007, https://doi.org/10.1145/1277741.1277756 (condensed lists).
"""

import contextlib
import time
import webbrowser
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stzoo.data import registry
from stzoo.data.beir import read_beir, write_qrels, write_queries
from stzoo.data.beir_layout import SplitFiles, find_split, folder_name
from stzoo.data.find_datasets import locate
from stzoo.data.ranking import rank
from stzoo.data.trec import read_run
from stzoo.errors import DataError, OutputError, RecipeError, check_known
from stzoo.evaluation.adapt_record import BASE, HELD_OUT, RESULTS
from stzoo.evaluation.bench import result_files, results
from stzoo.evaluation.bench.datasets import POOLED, evaluate
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.compare import compare
from stzoo.evaluation.compare.systems import label
from stzoo.evaluation.judge.answers import GRADES, Answers
from stzoo.evaluation.judge.pool import Pool, best_of, make_pool, read_passages, read_questions
from stzoo.evaluation.judge.result import Judged, measure
from stzoo.evaluation.judge.server import JudgeServer
from stzoo.evaluation.judge.terminal import judge_in_terminal
from stzoo.evaluation.measures import parse_measures
from stzoo.evaluation.settings import JudgeSettings
from stzoo.retrieval import bm25
from stzoo.utils.files import atomic_file, lock_folder, sha256, write_json
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import notify
from stzoo.utils.outputs import check_output
from stzoo.utils.parts import check_manifest, read_manifest
from stzoo.utils.public import public

JOURNAL = "answers.jsonl"
SPLIT = "test"  # of the judgements
K = 1000  # results per query that are scored, as by `stzoo score`
OUTPUT = "judged"  # in a run of `stzoo adapt`


@public()
def judge(
    results: str | Path,
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    split: str | None = None,
    pairs: int = 40,
    depth: int = 2,
    baseline: str | None = None,
    terminal: bool = False,
    browser: bool = True,
    port: int = 0,
    seed: int = 0,
    progress: bool | None = None,
) -> Judged:
    """Lets a person judge pooled pairs of a question and a passage, and scores the systems by the answers.

    It returns when the judge finishes. After Ctrl-C, the same call continues with the next pair.

    Args:
        results: An --output of bench with run files, or a run of adapt.
        data: The BEIR folder that the results were made on; None for that of adapt's run.
        output: Folder for the judgements; None for "judged" next to the results.
        split: Split of the results; None for "test", or the only one.
        pairs: Largest number of pairs to judge. A second call with a larger number continues.
        depth: Number of best passages of each system to pool per query.
        baseline: System to compare the others with; None for "base" (in adapt's runs), BM25, or the first.
        terminal: True to judge in the terminal.
        browser: True to open the page in a browser.
        port: Port of the page; 0 for any free one.
        seed: Random seed of the pool, the order of the pairs and the tests.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: If the results have no run files, or the data lacks their queries or passages.
        OutputError: If `output` is in use, has other content, or the judgements of another pool.
        RecipeError: If an option is invalid.
    """
    settings = JudgeSettings.check(locals())
    folder, data, output = _places(settings.results, settings.data, output)
    output = check_output(output, kind="run", inputs=[folder, data])
    name, found = _choose(folder, data, split)
    files = find_split(data, found[0].split)
    runs = _systems(found)
    names = label([{(name, result.split): result} for result in runs], [str(one.path) for one in runs])
    systems = dict(zip(names, runs, strict=True))
    if baseline is not None:
        check_known("system", baseline, systems)
    first = baseline or next((one for one in (BASE, bm25.NAME) if one in systems), names[0])
    systems = {first: systems[first], **systems}
    best = {one: best_of(read_run(_run_file(result), progress), depth) for one, result in systems.items()}
    pool = make_pool(best, pairs=pairs, seed=seed)
    questions = read_questions(files.queries, (query for query, _ in pool.pairs), progress)
    passages = read_passages(files.corpus, (document for _, document in pool.pairs), progress)
    texts = [(questions[query], *passages[document]) for query, document in pool.pairs]
    with lock_folder(output):
        _open(output, settings, name, systems, pool)
        answers = Answers(output / JOURNAL, pool.pairs)
        write = partial(_write, output, files, answers, progress)
        if terminal:
            judge_in_terminal(answers, texts)
            write()
        else:
            _serve(JudgeServer(answers, texts, write, port), settings.browser)
        scored = _score(output, systems.values(), depth, progress) if answers.qrels else []
        comparison = None
        if len(scored) > 1 and len(answers.qrels) > 1:
            paths = [result.path.parent for result in scored]
            comparison = compare(paths, measure=measure(depth), examples=0, seed=seed, progress=progress)
    *grades, skipped = answers.counts
    left = len(pool.pairs) - answers.answered
    return Judged(output, dict(enumerate(grades)), skipped, left, depth, pool, tuple(scored), comparison)


def _places(folder: Path, data: Path | None, output: str | Path | None) -> tuple[Path, Path, Path]:
    """The folders of the results, of the data and for the judgements."""
    folder = user_path(folder)
    base = folder.parent if folder.name not in ("", "..") else folder.resolve().parent
    if (folder / RESULTS).is_dir():
        base, folder = folder, folder / RESULTS
        if data is None and (base / HELD_OUT).is_dir():
            data = base / HELD_OUT
    if data is None:
        raise RecipeError(
            f"no data is given; give the BEIR folder that {folder} was made on as data (--data). Only a run "
            f"of `stzoo adapt` has its own ({HELD_OUT})."
        )
    output = base / OUTPUT if output is None else user_path(output, OutputError)
    if output.resolve().is_relative_to(folder.resolve()):
        raise OutputError(
            f"{output} is inside {folder}, whose results would then include those of the judgements; choose "
            "another --output."
        )
    return folder, locate(data), output


def _choose(folder: Path, data: Path, split: str | None) -> tuple[str, list[Result]]:
    """The name of the data set and the results on it.

    Raises:
        DataError: If there are no such results.
    """
    stored = results.read(folder)
    known = list(dict.fromkeys(result.dataset for result in stored))
    entry = registry.find(folder_name(data))
    names = known if len(known) == 1 else [entry.name if entry else folder_name(data)]
    if names[0] not in known and not data.is_dir():  # FOLDER/TASK
        names = [f"{folder_name(data.parent)}-{data.name}"]
    rows = [result for result in stored if result.dataset == names[0]]
    if not rows:
        raise DataError(
            f"{folder} has results on {', '.join(known)}, but not on {names[0]}; name the folder of one of "
            "these data sets as --data."
        )
    splits = list(dict.fromkeys(result.split for result in rows))
    chosen = split or (splits[0] if len(splits) == 1 else SPLIT)
    if chosen not in splits:
        raise DataError(
            f"{folder} has no results on the split {chosen!r} of {names[0]}; choose by --split: "
            f"{', '.join(splits)}."
        )
    return names[0], [result for result in rows if result.split == chosen]


def _run_file(result: Result) -> Path:
    return result_files.run_file(result.path, result.split)


def _systems(found: Sequence[Result]) -> list[Result]:
    """The results that have a run file; a note says which have none.

    Raises:
        DataError: If none has.
    """
    runs = [result for result in found if _run_file(result).is_file()]
    if not runs:
        raise DataError(
            f"{found[0].path} has no run file next to it ({_run_file(found[0]).name}), and neither has any "
            "other result. Score the systems with `stzoo bench` again, without --no-run-files."
        )
    if without := [result.model for result in found if result not in runs]:
        notify(f"{', '.join(without)} left out of the pool: no run file (bench writes one by default).")
    return runs


def _open(
    output: Path, settings: JudgeSettings, name: str, systems: Mapping[str, Result], pool: Pool
) -> None:
    """Writes judge.json, or checks that an existing one has the same pool but for its size.

    Raises:
        OutputError: If it is of another pool, or the folder has other content.
    """
    path = output / POOLED
    identity: dict[str, Any] = {
        "data": name,
        "split": next(iter(systems.values())).split,
        "seed": settings.seed,
        "depth": settings.depth,
        "systems": {one: sha256(_run_file(systems[one])) for one in sorted(systems)},
    }
    if path.exists():
        check_manifest(
            output,
            read_manifest(path),
            identity,
            fault="has judgements of another pool",
            advice="Repeat that call, or choose another --output.",
        )
    elif others := [entry.name for entry in output.iterdir() if not entry.name.startswith(".")]:
        raise OutputError(
            f"{output} has no {POOLED}, but {', '.join(sorted(others)[:5])}; choose a new folder as --output."
        )
    write_json(
        path,
        {
            "stzoo": version("stzoo"),
            **identity,
            "pairs": settings.pairs,
            "queries": pool.queries,
            "queries_that_differ": pool.differing,
            "grades": list(GRADES),
            "pool": [list(pair) for pair in pool.pairs],
        },
    )


def _serve(server: JudgeServer, browser: bool) -> None:
    notify(f"judge at {server.url}")
    notify("every answer is saved at once; Ctrl-C stops, and the same command continues.")
    if browser:
        with contextlib.suppress(webbrowser.Error):
            controller = webbrowser.get()
            if type(controller) is not webbrowser.GenericBrowser:  # which would take over the terminal
                controller.open(server.url)
    server.serve()


def _write(output: Path, files: SplitFiles, answers: Answers, progress: bool | None) -> None:
    """Writes the answers as a BEIR folder; nothing if no pair was judged."""
    qrels = answers.qrels
    (output / "qrels").mkdir(exist_ok=True)
    qrels_file = output / "qrels" / f"{SPLIT}.tsv"
    if not qrels:
        qrels_file.unlink(missing_ok=True)
        return
    _link(files.corpus, output / files.corpus.name)
    with atomic_file(output / "queries.jsonl") as draft:
        write_queries(draft, read_questions(files.queries, qrels, progress))
    with atomic_file(qrels_file) as draft:
        write_qrels(draft, qrels)


def _link(corpus: Path, to: Path) -> None:
    """Links to the corpus. A hard link stays when folders are moved or the data set is deleted."""
    if to.exists() and to.samefile(corpus):
        return
    to.unlink(missing_ok=True)
    try:
        to.hardlink_to(corpus.resolve())
    except OSError:  # another disk, or a file system without hard links
        try:
            to.symlink_to(corpus.resolve())
        except OSError as error:
            raise OutputError(f"{to} could not be linked to {corpus}: {error.strerror or error}.") from None


def _score(output: Path, systems: Iterable[Result], depth: int, progress: bool | None) -> list[Result]:
    """Scores the systems by the judgements, and writes the results."""
    judged = read_beir(output, SPLIT, name=folder_name(output), progress=progress)
    measures = parse_measures(f"{measure(depth)} Judged@{depth} {measure(10)} Judged@10")
    scored = []
    for result in systems:
        start = time.monotonic()
        scores = evaluate(judged, rank(read_run(_run_file(result), progress), K), measures)
        path = result_files.result_file(output / RESULTS, result.model, result.revision, judged.name)
        system = (result.model, result.revision)
        write_json(path.with_name(results.META), {"name": result.model, "revision": result.revision})
        seconds = time.monotonic() - start
        scored.append(results.store(path, system, judged, {"k": K}, scores, measures, seconds, {}))
    return scored
