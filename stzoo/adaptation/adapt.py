"""adapt(): a better retriever for documents without labels, or the advice to keep the base.

1. read      the documents become passages (`stzoo read`)
2. ask       queries are generated for them (`stzoo ask`)
3. hold out  the queries of some documents are set apart; training sees neither them nor these documents
4. filter    queries that do not lead back to their passage are left out
5. train     a map of the query vectors learns to rank as BM25 and the base do together (`query_map`); the
             share of it that is used is chosen on the held-out queries
6. compare   BM25, the base, the adapted model and their fusions are scored on the held-out queries

OUTPUT/corpus/       the passages, unless a corpus was given
OUTPUT/questions/    the queries, and a page with examples
OUTPUT/held_out/     the held-out queries as a BEIR folder, which every other command reads
OUTPUT/results/      the scores and rankings of all systems on it, as `stzoo bench` writes them
OUTPUT/adapted/      the adapted model
OUTPUT/adapt.json    settings, counts, scores and the decision

A second call with the same settings repeats only what is missing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stzoo.adaptation.ask import QUESTIONS, ask
from stzoo.adaptation.general import GeneralCheck
from stzoo.adaptation.hold_out import (
    DEV,
    TEST,
    TRAIN,
    Question,
    Split,
    documents_of,
    read_questions,
    split_questions,
)
from stzoo.adaptation.lessons import make_lessons
from stzoo.adaptation.query_map import (
    adapted_model,
    apply,
    check_adaptable,
    learn_query_map,
    part_way,
    rarity,
    weighs_tokens,
)
from stzoo.adaptation.read import read_documents
from stzoo.adaptation.result import ADAPTED, BASE, MEASURE, Adapted
from stzoo.adaptation.settings import AdaptSettings, QuestionSettings
from stzoo.adaptation.vectors import ndcg, read_rows, unit
from stzoo.data.beir import RetrievalDataset, read_beir, read_corpus, write_beir
from stzoo.data.beir_layout import corpus_file
from stzoo.errors import DataError
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.scoring import PairedTest, paired_test
from stzoo.hub.export import export
from stzoo.models.encode import encode
from stzoo.models.loaded import open_model
from stzoo.retrieval.bm25 import Lexical, choose_language
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.training.records import versions
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import write_json
from stzoo.utils.messages import collect_notes, counted, notify, show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.parts import open_manifest

HELD_OUT = "held_out"
RECORD = "adapt.json"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the learnt map, to choose from
LEVEL = 0.05
MOST_PASSAGES = 100_000  # to learn from, as their vectors are in memory
FEWEST = 200  # questions below which nothing can be learnt
TRIAL = 64  # questions that are timed to see how many fit into the budget
ASK_SHARE = 0.7  # of the budget that is left, for asking
MOST_QUESTIONS = 10_000
STAGES = ("read", "ask", "encode", "filter", "train", "compare")


def adapt(
    model: str | Path,
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
        model: SentenceTransformer folder or Hub id.
        recipe: Path to a YAML file, or the name of an installed recipe.
        corpus: What `read_documents` takes: a folder of documents, a file, a list of texts, a frame; or a
            BEIR folder or corpus.jsonl, whose passages stay as they are. Judgements in it are not read.
        output: Folder for the run. A second call with the same settings continues an interrupted one.
        on_stage: Function that gets a line about each finished stage.
        progress: True for progress bars on stderr; None shows them on a terminal only.
        settings: Further fields of `AdaptSettings`, e.g. queries, count; they override the recipe's.

    Raises:
        DataError: If the corpus has too few passages to generate and to hold out questions.
        ModelError: If the model, or the one that generates queries, cannot be used.
        StzooError: If something else is wrong; see `stzoo.errors`.

    Example:
        >>> import stzoo
        >>> made = stzoo.adapt("sentence-transformers/all-MiniLM-L6-v2", corpus="handbook/",
        ...                    output="runs/handbook")                                   # doctest: +SKIP
        >>> made.decision, made.gain.difference                                          # doctest: +SKIP
        ('adapted', 0.056)
    """
    require_one_process("adapt")
    named = corpus if isinstance(corpus, str | Path) else None
    given = settings | {"model": model, "corpus": str(named or type(corpus).__name__)}
    config = AdaptSettings.read(recipe, given)
    folder = check_output(output, kind="results", inputs=[config.model, named])
    if config.threads:
        torch.set_num_threads(config.threads)
    folder.mkdir(parents=True, exist_ok=True)
    with collect_notes() as notes:
        run = _Run(config, folder, on_stage or (lambda _: None), show_progress(progress))
        record = run.everything(corpus)
    record["notes"] = notes
    write_json(folder / RECORD, record)
    gain = PairedTest(**record["gain"])
    return Adapted(
        folder, record["decision"], record["scores"], gain, record["general"], folder / "questions", record
    )


class _Run:
    def __init__(self, config: AdaptSettings, folder: Path, on_stage: Callable[[str], None], show_bars: bool):
        self.config, self.folder, self.on_stage, self.show_bars = config, folder, on_stage, show_bars
        self.seconds: dict[str, float] = {}
        self.started = time.monotonic()

    def everything(self, corpus: Any) -> dict[str, Any]:
        config = self.config
        base = open_model(f"{BASE}={config.model}", max_tokens=config.max_tokens, device=config.device)
        check_adaptable(base.model)
        manifest = {"model": base.given, "revision": base.revision, "settings": config.dump()}
        open_manifest(self.folder / "settings.json", manifest)
        with self.stage("read") as say:
            passages_file = self.read(corpus)
            ids, passages, _ = read_corpus(passages_file, self.show_bars)
            say(f"{counted(len(ids), 'passage')}")
        with self.stage("ask") as say:
            questions = self.ask(passages_file)
            say(f"{counted(len(questions), 'question')} ({self.folder / 'questions' / 'questions.html'})")
        # the folder that the questions will be in names the embeddings, which all systems then share
        judged = RetrievalDataset(
            name=HELD_OUT, folder=self.folder / HELD_OUT, corpus_ids=ids, passages=passages
        )
        retriever = Retriever(
            base, Path(config.store or default_root()), config.batch_tokens, memory_gib=config.memory_gib,
            progress=self.show_bars,
        )  # fmt: skip
        retriever.notes(judged)  # shown to the user
        with self.stage("encode") as say:
            store = retriever.documents(judged)
            say(f"{len(store):,} vectors of {store.shape[1]} dimensions")
        with self.stage("filter") as say:
            of = documents_of(passages_file, ids)
            split = split_questions(questions, ids, of, held_out=config.held_out, seed=config.seed)
            subset = self.subset(len(ids), split)
            documents = read_rows(store, subset)
            if base.similarity == "cosine":
                documents = unit(documents)
            language = choose_language(config.language, passages, "the corpus")
            texts = passages if len(subset) == len(passages) else [passages[i] for i in subset]
            bm25 = Lexical(
                [str(i) for i in range(len(subset))], texts, language=language, progress=self.show_bars
            )
            weights = None
            if weighs_tokens(base.model):
                weights = rarity(base.model.tokenizer, passages, len(passages))
            weighted = adapted_model(base.model, weights=weights)
            options: dict[str, Any] = dict(batch_tokens=config.batch_tokens, progress=self.show_bars)
            asked = [one.text for one in split.questions]
            vectors = unit(encode(weighted, asked, role="query", desc="Questions", **options))
            lessons = make_lessons(
                asked,
                vectors,
                np.searchsorted(subset, split.sources),
                documents,
                bm25,
                bm25_weight=config.bm25_weight,
                candidates=config.candidates,
                hidden=split.held_out_passages[subset],
                seed=config.seed,
                progress=self.show_bars,
            )
            found = lessons.source_ranks <= config.found_in
            counts = {
                TRAIN: int((found & (split.part == TRAIN)).sum()),
                DEV: int((found & (split.part == DEV)).sum()),
                TEST: int((found & (split.part == TEST)).sum()),
            }
            say(
                f"{int(found.sum()):,} kept, whose passage BM25 and the base find again among the best "
                f"{config.found_in}; {counts[TEST] + counts[DEV]:,} of them, on "
                f"{counted(split.held_out_documents, 'document')}, are held out"
            )
            if min(counts[TRAIN], 4 * counts[TEST]) < FEWEST:
                raise DataError(
                    f"only {counts[TRAIN]} questions are left to learn from and {counts[TEST]} to test; "
                    f"expected at least {FEWEST} and {FEWEST // 4}. Raise --count, or add documents."
                )
            self.write_held_out(passages_file, split, found)
        with self.stage("train") as say:
            learnt = learn_query_map(
                lessons.part(found & (split.part == TRAIN)),
                documents,
                epochs=config.epochs,
                learning_rate=config.learning_rate,
                batch_size=config.train_batch_size,
                temperature=config.teacher_temperature,
                seed=config.seed,
            )
            dev = found & (split.part == DEV)
            general = GeneralCheck(base.model, weighted, **options)
            sources = lessons.sources[dev]
            plain = encode(
                base.model, [asked[i] for i in np.flatnonzero(dev)], role="query", desc="Questions", **options
            )
            before = {"dev": ndcg(plain, documents, sources), "general": general.before}
            curve = {
                share: {
                    "dev": ndcg(apply(part_way(learnt, share), vectors[dev]), documents, sources),
                    "general": general.score(part_way(learnt, share)),
                }
                for share in SHARES
            }
            share = max(SHARES, key=lambda one: (curve[one]["dev"], -one))
            after = curve[share]
            say(
                f"{MEASURE} on held-out questions for tuning {before['dev']:.3f} → {after['dev']:.3f} with "
                f"{share:.0%} of the map; general check {before['general']:.3f} → {after['general']:.3f}"
            )
            export(
                adapted_model(base.model, query_map=part_way(learnt, share), weights=weights),
                self.folder / ADAPTED,
                overwrite=True,
            )
        with self.stage("compare") as say:
            scores, per_query = self.compare(retriever)
            gain = paired_test(per_query[BASE], per_query[ADAPTED], seed=config.seed)
            decision = ADAPTED if gain.difference > 0 and gain.p_value < LEVEL else BASE
            say("   ".join(f"{name} {score:.3f}" for name, score in scores.items()))
        return {
            "settings": config.dump(),
            "base": {"given": base.given, "revision": base.revision},
            "passages": len(ids),
            "questions": counts | {"generated": len(questions)},
            "share": share,
            "weighted_tokens": weights is not None,
            "curve": {"base": before} | {str(one): values for one, values in curve.items()},
            "scores": scores,
            "gain": vars(gain),
            "general": {BASE: before["general"], ADAPTED: after["general"]},
            "decision": decision,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "versions": versions(),
        }

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """Times a stage; what it yields takes the line to show of it."""
        started = time.monotonic()
        lines: list[str] = []
        yield lines.append
        self.seconds[name] = time.monotonic() - started
        self.on_stage(
            f"{len(self.seconds)}/{len(STAGES)} {name:<8} {' '.join(lines)}  ({self.seconds[name]:.0f} s)"
        )

    def read(self, corpus: Any) -> Path:
        """The file of the passages."""
        if isinstance(corpus, str | Path) and (found := corpus_file(Path(corpus).expanduser())):
            return found
        made = self.folder / "corpus"
        if not (made / "corpus.jsonl").is_file():
            read_documents(corpus, made, progress=self.show_bars)
        return made / "corpus.jsonl"

    def ask(self, passages_file: Path) -> list[Question]:
        """The generated questions."""
        config, folder = self.config, self.folder / "questions"
        given = {name: getattr(config, name) for name in QuestionSettings.model_fields}
        if config.budget and config.queries != "none":
            started = time.monotonic()
            ask(passages_file, output=folder, progress=self.show_bars, **given | {"count": TRIAL})
            each = (time.monotonic() - started) / TRIAL
            left = config.budget - (time.monotonic() - self.started)
            fits = int(ASK_SHARE * left / each) if each > 0.001 else MOST_QUESTIONS
            if fits < 2 * FEWEST:
                raise DataError(
                    f"a question takes {each:.1f} s, so a budget of {config.budget:.0f} s has time for "
                    f"{max(0, fits)}; expected at least {2 * FEWEST}. Raise --budget, or use a faster model."
                )
            given["count"] = min(fits, config.count or MOST_QUESTIONS)
        ask(passages_file, output=folder, progress=self.show_bars, **given)
        return read_questions(folder / QUESTIONS)

    def subset(self, passages: int, split: Split) -> np.ndarray:
        """Ascending int64 numbers of the passages to learn from: all, or the sources and a random rest."""
        if passages <= MOST_PASSAGES:
            return np.arange(passages)
        notify(f"the ranking is learnt from {MOST_PASSAGES:,} of the {passages:,} passages.")
        order = np.random.default_rng(self.config.seed).permutation(passages)
        return np.union1d(split.sources, order[:MOST_PASSAGES])

    def write_held_out(self, passages_file: Path, split: Split, found: np.ndarray) -> None:
        """Writes the held-out questions as a BEIR folder."""
        rows = {part: np.flatnonzero(found & (split.part == part)).tolist() for part in (DEV, TEST)}
        questions = split.questions
        write_beir(
            self.folder / HELD_OUT,
            passages_file,
            {questions[i].id: questions[i].text for part in rows.values() for i in part},
            {name: {questions[i].id: {questions[i].passage: 1} for i in part} for name, part in rows.items()},
        )

    def compare(self, retriever: Retriever) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Scores all systems on the held-out questions."""
        config = self.config
        common: dict[str, Any] = dict(max_tokens=config.max_tokens, device=config.device)
        adapted = Retriever(open_model(f"{ADAPTED}={self.folder / ADAPTED}", **common), retriever.root)
        held_out = read_beir(self.folder / HELD_OUT, TEST)
        adapted.copy_documents(held_out, retriever.documents(held_out))
        found = bench(
            [f"{BASE}={config.model}", f"{ADAPTED}={self.folder / ADAPTED}"],
            data=self.folder / HELD_OUT,
            output=self.folder / "results",
            store=retriever.root,
            fuse="min-max",
            language=config.language,
            batch_tokens=config.batch_tokens,
            memory_gib=config.memory_gib,
            overwrite=True,
            progress=self.show_bars,
            **common,
        )
        per_query = {one.model: one.scores.per_query[MEASURE] for one in found}
        return {one.model: one.scores.mean[MEASURE] for one in found}, per_query
