"""adapt(): a better retriever for documents without labels, or the advice to keep the base.

1. read      the documents become passages (`stzoo read`)
2. encode    the base encodes them
3. ask       queries are generated for them (`stzoo ask`)
4. filter    documents are held out, with their queries; of the others, queries that do not lead back to
             their passage are left out
5. train     a map of the query vectors learns to rank as the teacher does: BM25 and the base together, or a
             cross-encoder (`query_map`); the share of it that is used is chosen on the held-out queries
6. compare   BM25, the base, the adapted model and their fusions are scored on the held-out queries

OUTPUT/corpus/       the passages, unless a corpus was given
OUTPUT/questions/    the queries, and a page with examples
OUTPUT/teacher/      scores of the cross-encoder, if there is one
OUTPUT/held_out/     the held-out queries as a BEIR folder, which every other command reads
OUTPUT/results/      the scores and rankings of all systems on it, as `stzoo bench` writes them
OUTPUT/adapted/      the adapted model
OUTPUT/adapt.json    settings, counts, scores and the decision

A second call with the same settings repeats only what is missing; a finished run is left as it is.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from stzoo.adaptation.ask import QUESTIONS
from stzoo.adaptation.query_map import check_adaptable
from stzoo.adaptation.result import Adapted
from stzoo.adaptation.settings import AdaptSettings
from stzoo.adaptation.stages.ask import ask_questions, questions_file
from stzoo.adaptation.stages.compare import compare
from stzoo.adaptation.stages.filter import LOST, filter_questions
from stzoo.adaptation.stages.read import Passages, read_passages
from stzoo.adaptation.stages.run import SETTINGS, Run
from stzoo.adaptation.stages.train import train
from stzoo.data.beir_layout import corpus_file
from stzoo.data.find_datasets import locate
from stzoo.data.objects import corpus_path, is_judged
from stzoo.errors import DataError, OutputError, StzooError
from stzoo.evaluation.adapt_record import ADAPTED, BASE, HELD_OUT, MEASURE, RECORD, RESULTS
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.loaded import LoadedModel, open_model
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.training.records import versions
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import lock_folder, write_json
from stzoo.utils.inputs import read_json
from stzoo.utils.messages import collect_notes, counted, note_if_slow, notify, show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.parts import check_manifest
from stzoo.utils.public import public

# settings that may differ in a later call: they do not change the result
SPEED = {
    *("threads", "device", "batch_tokens", "memory_gib", "store"),
    *("concurrency", "timeout", "retries", "price_in", "price_out", "queries_key_env"),
}
SIZE = {"budget", "count", "held_out"}  # likewise, as long as the run is not finished
# the stages, and what each does
STAGES = {
    "read": "reading the passages",
    "encode": "",  # whoever encodes passages says so
    "ask": "making questions",
    "filter": "looking for the passage of each question",
    "train": "training",
    "compare": "comparing the systems on held-out questions",
}


@public(AdaptSettings)
def adapt(
    model: Any,
    recipe: str | Path | None = None,
    *,
    corpus: Any,
    output: str | Path,
    on_stage: Callable[[str], None] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Adapted:
    """Adapts a model to documents without labels, and says whether it helped.

    The adapted model encodes passages as the base does, so that an existing index stays valid; its queries
    get a map of their own, by `encode_query`.

    Args:
        model: SentenceTransformer, or its folder or Hub id.
        recipe: Path to a YAML file, or the name of an installed recipe.
        corpus: What `read_documents` takes: a folder of documents, a file, a list of texts, a frame; or a
            BEIR folder, its corpus.jsonl, or the dicts (corpus, queries, qrels), whose passages stay as they
            are. Judgements in it are not read.
        output: Folder for the run. A second call with the same settings continues an interrupted one.
        on_stage: Function that gets a line about each finished stage.
        progress: True for progress bars on stderr; None shows them on a terminal only.
        settings: Further fields of `AdaptSettings`, e.g. queries, teacher; they override the recipe's.

    Raises:
        DataError: If the corpus has too few passages to generate and to hold out questions.
        ModelError: If the model, the one that generates queries, or the teacher cannot be used.
        StzooError: If something else is wrong; see `stzoo.errors`.

    Example:
        >>> import stzoo
        >>> made = stzoo.adapt("sentence-transformers/all-MiniLM-L6-v2", corpus="handbook/",
        ...                    output="runs/handbook")                                   # doctest: +SKIP
        >>> made.decision, made.gain.difference                                          # doctest: +SKIP
        ('adapted', 0.056)
    """
    require_one_process("adapt")
    if is_judged(corpus):
        corpus = corpus_path(corpus)
    named = corpus if isinstance(corpus, str | Path) else None
    given = settings | {"model": model, "corpus": type(corpus).__name__ if named is None else str(named)}
    config = AdaptSettings.read(recipe, given)
    folder = check_output(output, kind="results", inputs=[config.model, named, config.questions])
    if config.questions and not questions_file(config.questions).is_file():
        raise DataError(
            f"{config.questions} has no {QUESTIONS}; expected an --output of `stzoo ask`, or a file like its "
            f"{QUESTIONS}."
        )
    if named is not None:
        corpus = locate(named, progress=progress)
        _check_outside(folder, corpus)
    if config.threads:
        torch.set_num_threads(config.threads)
    with collect_notes() as notes, lock_folder(folder), config.on_engine():
        base, show_bars = _open_base(config), show_progress(progress)
        root = Path(config.store or default_root())
        retriever = Retriever(
            base, root, memory_gib=config.memory_gib, batch_tokens=config.batch_tokens, progress=show_bars
        )
        # opened at once, as a mistake in its name should not show after the questions
        teacher = config.teacher and open_teacher(
            config.teacher, max_tokens=config.teacher_tokens, device=config.device
        )
        run = Run(config, folder, base, retriever, teacher or None, show_bars)
        was_there = (folder / SETTINGS).exists()
        try:
            record = _make(run, corpus, _Clock(on_stage or (lambda _: None), not show_bars), notes)
        except StzooError:
            if not was_there:
                run.forget_settings()
            raise
    return Adapted(folder, record)


def _open_base(config: AdaptSettings) -> LoadedModel:
    """The model to adapt, in float32."""
    base = open_model(f"{BASE}={config.model}", device=config.device)
    check_adaptable(base.model)
    if base.dtype in ("float32", "None"):
        return base
    notify(
        f"the model's weights are {base.dtype}; the adapted model has float32, which sentence-transformers "
        "needs for the map."
    )
    return open_model(f"{BASE}={config.model}", device=config.device, dtype="float32")


class _Clock:
    """Times the stages, which follow each other in the order of STAGES.

    Args:
        on_stage: Called with a line about each stage that has ended.
        announce: True to say what a stage does once it takes longer than a moment.
    """

    def __init__(self, on_stage: Callable[[str], None], announce: bool):
        self.seconds: dict[str, float] = {}
        self._on_stage, self._announce = on_stage, announce

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage."""
        started, text = time.monotonic(), f"{self._place(name)} {name}: {STAGES[name]} …"
        with note_if_slow(text) if self._announce and STAGES[name] else contextlib.nullcontext():
            yield
        self.seconds[name] = round(time.monotonic() - started, 1)

    def done(self, name: str, line: str) -> None:
        """Shows a line about the stage that has ended."""
        self._on_stage(f"{self._place(name)} {name:<8} {line}  ({self.seconds[name]:.0f} s)")

    def _place(self, name: str) -> str:
        return f"{[*STAGES].index(name) + 1}/{len(STAGES)}"


def _make(run: Run, corpus: Any, clock: _Clock, notes: list[str]) -> dict[str, Any]:
    """Runs the stages, and writes and returns the record; `notes` are those that are shown meanwhile."""
    config, manifest = run.config, run.manifest(without=SPEED | SIZE)

    with clock.stage("read"):
        passages = read_passages(run, corpus)
    clock.done("read", counted(len(passages), "passage"))
    if finished := _finished(run, passages):
        notify(f"{run.folder} is finished; remove {RECORD} in it to repeat what follows.")
        return finished

    with clock.stage("encode"):
        store = run.retriever.documents(passages.data)
    clock.done("encode", f"{len(store):,} vectors of {store.shape[1]} dimensions")

    with clock.stage("ask"):
        asked = ask_questions(run, passages, manifest, sum(clock.seconds.values()))
    clock.done("ask", asked.summary)

    with clock.stage("filter"):
        filtered = filter_questions(run, passages, store, asked)
    learnt, dev, test = filtered.counts.values()
    clock.done(
        "filter",
        f"{learnt:,} questions kept, {filtered.lost:,} dropped, whose passage is not among the best "
        f"{config.found_in} of the teacher; {dev + test:,} held out, on "
        f"{counted(filtered.split.held_out_documents, 'document')}",
    )

    with clock.stage("train"):
        trained = train(run, passages, filtered)
    before, after = trained.before, trained.after
    clock.done(
        "train",
        f"{MEASURE} on questions for tuning {before['dev']:.3f} → {after['dev']:.3f} with "
        f"{trained.share:.0%} of the map; general check {before['general']:.3f} → {after['general']:.3f}",
    )

    with clock.stage("compare"):
        compared = compare(run, passages, store, filtered, trained)
    clock.done("compare", "   ".join(f"{name} {score:.3f}" for name, score in compared.scores.items()))
    record = {
        "settings": config.dump(),
        "base": {"given": run.base.given, "revision": run.base.revision},
        "corpus": passages.data.corpus_fingerprint,
        "passages": len(passages),
        "questions": {"generated": len(asked.questions), **filtered.counts},
        "copied_questions": filtered.copied,
        "left_out": {**asked.rejected, LOST: filtered.lost},
        "weighted_tokens": filtered.weights is not None,
        "share": trained.share,
        "curve": {BASE: before} | {str(share): scores for share, scores in trained.curve.items()},
        "general": {BASE: before["general"], ADAPTED: after["general"]},
        "scores": compared.scores,
        "gain": vars(compared.gain),
        "decision": compared.decision,
        "seconds": clock.seconds,
        "versions": versions(),
        "notes": list(dict.fromkeys([*asked.notes, *notes])),
    }
    write_json(run.folder / RECORD, record)
    return record


def _finished(run: Run, passages: Passages) -> dict[str, Any] | None:
    """The record of a run that is finished.

    Raises:
        OutputError: If it was made with other settings or passages.
    """
    if not all((run.folder / name).is_dir() for name in (HELD_OUT, RESULTS, ADAPTED)):
        return None
    if found := read_json(run.folder / RECORD):
        check_manifest(
            run.folder,
            found,
            {
                "settings": found.get("settings", {}) | run.settings(without=SPEED),
                "corpus": passages.data.corpus_fingerprint,
            },
            fault="is a finished run",
            advice=f"Choose another --output; or remove {RECORD} in it to continue from its queries.",
        )
    return found or None


def _check_outside(output: Path, corpus: Path) -> None:
    """Refuses an output among the documents, as a second call would read it with them.

    Raises:
        OutputError: If it is.
    """
    if corpus_file(corpus) is None and output.resolve().is_relative_to(corpus.resolve()):
        raise OutputError(f"{output} is inside {corpus}, whose documents are read; choose another --output.")
