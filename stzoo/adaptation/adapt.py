"""adapt(): a better retriever for documents without labels, or the advice to keep the base.

1. read      the documents become passages (`stzoo read`)
2. encode    the base encodes them
3. ask       queries are generated for them (`stzoo ask`)
4. filter    documents are held out, with their queries; of the others, queries that do not lead back to
             their passage are left out
5. train     a map of the query vectors learns to rank as BM25 and the base do together (`query_map`); the
             share of it that is used is chosen on the held-out queries
6. compare   BM25, the base, the adapted model and their fusions are scored on the held-out queries

OUTPUT/corpus/       the passages, unless a corpus was given
OUTPUT/questions/    the queries, and a page with examples
OUTPUT/held_out/     the held-out queries as a BEIR folder, which every other command reads
OUTPUT/results/      the scores and rankings of all systems on it, as `stzoo bench` writes them
OUTPUT/adapted/      the adapted model
OUTPUT/adapt.json    settings, counts, scores and the decision

A second call with the same settings repeats only what is missing; a finished run is left as it is.
"""

import string
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stzoo.adaptation.ask import MOST, PER_PASSAGE, QUESTIONS, ask
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
from stzoo.data.beir import RetrievalDataset, read_corpus, write_beir
from stzoo.data.beir_layout import corpus_file
from stzoo.errors import DataError, OutputError, quoted
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.scoring import PairedTest, paired_test
from stzoo.hub import card
from stzoo.hub.export import export
from stzoo.models.encode import encode
from stzoo.models.loaded import open_model
from stzoo.retrieval.bm25 import Lexical, choose_language
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.training.recipes import SCHEMA_VERSION
from stzoo.training.records import versions
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import NEW, check_replaceable, draft_folder, lock_folder, sha256, write_json
from stzoo.utils.inputs import parse_json
from stzoo.utils.messages import collect_notes, counted, notify, show_progress
from stzoo.utils.outputs import ADAPTATION, check_output
from stzoo.utils.parts import check_manifest, open_manifest

HELD_OUT = "held_out"
HELD_OUT_FILES = (r"(?:corpus|queries)\.jsonl(?:\.gz)?", r"qrels/(?:dev|test)\.tsv")
RESULTS = "results"
RECORD, SETTINGS = "adapt.json", "settings.json"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the learnt map
LEVEL = 0.05
MOST_PASSAGES = 100_000  # to learn from, as their vectors are in memory
FEWEST = 200  # questions below which nothing can be learnt
TRIAL = 64  # questions that are timed to see how many fit into the budget
ASK_SHARE = 0.7  # of the budget that is left, for asking
# settings that may differ in a later call: they do not change the result
SPEED = {
    *("threads", "device", "batch_tokens", "memory_gib", "store"),
    *("concurrency", "timeout", "retries", "price_in", "price_out", "queries_key_env"),
}
SIZE = {"budget", "count", "held_out"}  # likewise, as long as the run is not finished
STAGES = ("read", "encode", "ask", "filter", "train", "compare")


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
    given = settings | {"model": model, "corpus": type(corpus).__name__ if named is None else str(named)}
    config = AdaptSettings.read(recipe, given)
    folder = check_output(output, kind="results", inputs=[config.model, named])
    if named is not None:
        _check_outside(folder, Path(named).expanduser())
    if config.threads:
        torch.set_num_threads(config.threads)
    with collect_notes() as notes, lock_folder(folder):
        run = _Run(config, corpus, folder, show_progress(progress))
        record = run.everything(on_stage or (lambda _: None))
        if "notes" not in record:
            write_json(folder / RECORD, record | {"notes": notes})
    gain = PairedTest(**record["gain"])
    return Adapted(
        folder, record["decision"], record["scores"], gain, record["general"], folder / "questions", record
    )


class _Run:
    """The stages of a run, in the order of STAGES; each returns the line to show of it."""

    def __init__(self, config: AdaptSettings, corpus: Any, folder: Path, show_bars: bool):
        self.config, self.corpus, self.folder, self.show_bars = config, corpus, folder, show_bars
        self.seconds: dict[str, float] = {}
        self.options: dict[str, Any] = dict(batch_tokens=config.batch_tokens, progress=show_bars)
        self.base = open_model(f"{BASE}={config.model}", device=config.device)
        check_adaptable(self.base.model)
        if self.base.dtype not in ("float32", "None"):
            notify(
                f"the model's weights are {self.base.dtype}; the adapted model has float32, which "
                "sentence-transformers needs for the map."
            )
            self.base = open_model(f"{BASE}={config.model}", device=config.device, dtype="float32")
        self.retriever = Retriever(
            self.base, Path(config.store or default_root()), memory_gib=config.memory_gib, **self.options
        )
        manifest = {
            "model": self.base.given,
            "revision": self.base.revision,
            "settings": self.settings(SPEED | SIZE),
        }
        self.manifest = open_manifest(folder / SETTINGS, manifest)

    def everything(self, on_stage: Callable[[str], None]) -> dict[str, Any]:
        """Runs the stages, and returns the record."""
        for number, name in enumerate(STAGES, 1):
            started = time.monotonic()
            line = getattr(self, name)()
            self.seconds[name] = round(time.monotonic() - started, 1)
            on_stage(f"{number}/{len(STAGES)} {name:<8} {line}  ({self.seconds[name]:.0f} s)")
            if name == "read" and (finished := self.finished()):
                notify(f"{self.folder} is finished; remove {RECORD} in it to repeat what follows.")
                return finished
        return {
            "settings": self.config.dump(),
            "base": {"given": self.base.given, "revision": self.base.revision},
            "corpus": self.judged.corpus_fingerprint,
            "passages": len(self.judged.corpus_ids),
            "questions": {"generated": len(self.questions), **self.counts},
            "weighted_tokens": self.weights is not None,
            "share": self.share,
            "curve": {"base": self.before} | {str(share): values for share, values in self.curve.items()},
            "general": {BASE: self.before["general"], ADAPTED: self.curve[self.share]["general"]},
            "scores": self.scores,
            "gain": vars(self.gain),
            "decision": self.decision,
            "seconds": self.seconds,
            "versions": versions(),
        }

    def settings(self, without: Collection[str]) -> dict[str, Any]:
        """The settings, less some."""
        return {name: value for name, value in self.config.dump().items() if name not in without}

    def finished(self) -> dict[str, Any] | None:
        """The record of a run that is finished.

        Raises:
            OutputError: If it was made with other settings or passages.
        """
        if not all((self.folder / name).is_dir() for name in (HELD_OUT, RESULTS, ADAPTED)):
            return None
        if found := _read_record(self.folder / RECORD):
            settings = found.get("settings", {}) | self.settings(SPEED)
            check_manifest(
                self.folder,
                found,
                {"settings": settings, "corpus": self.judged.corpus_fingerprint},
                fault="is a finished run",
                advice=f"Choose another --output; or remove {RECORD} in it to continue from its queries.",
            )
        return found or None

    def read(self) -> str:
        """Reads the passages.

        Raises:
            DataError: If an id has white space.
            OutputError: If the documents have changed since an earlier call.
        """
        found = corpus_file(Path(self.corpus).expanduser()) if isinstance(self.corpus, str | Path) else None
        if found is None:
            found = self.folder / "corpus" / "corpus.jsonl"
            if found.is_file():
                self.check_same_documents(found)
            else:
                read_documents(self.corpus, found.parent, progress=self.show_bars)
        self.passages_file = found
        ids, passages, _ = read_corpus(found, self.show_bars)
        self.documents_of = documents_of(found, ids)
        # embeddings have the name of the folder, and all systems are to share them
        self.judged = RetrievalDataset(
            name=HELD_OUT, folder=self.folder / HELD_OUT, corpus_ids=ids, passages=passages
        )
        if spaced := next((one for one in ids if set(one) & set(string.whitespace)), None):
            raise DataError(
                f"{found}: the id {quoted(spaced)} contains white space, which the files of rankings cannot "
                "represent. Change the ids."
            )
        if 2 * (different := len({hash(text) for text in passages})) < len(ids):
            notify(
                f"only {different:,} of the {len(ids):,} passages are different; `stzoo read` leaves copies "
                "out."
            )
        self.retriever.notes(self.judged)  # shown to the user
        return counted(len(ids), "passage")

    def check_same_documents(self, earlier: Path) -> None:
        """Checks that the documents are those of an earlier call.

        Raises:
            OutputError: If not.
        """
        with draft_folder(earlier.parent) as box:
            read_documents(self.corpus, box / NEW, progress=self.show_bars)
            same = sha256(box / NEW / earlier.name) == sha256(earlier)
        if not same:
            raise OutputError(
                f"{earlier} was made from other documents, or from other versions of them. Choose another "
                "--output."
            )

    def ask(self) -> str:
        """Generates questions, as many as fit into the budget."""
        config, folder = self.config, self.folder / "questions"
        given = {name: getattr(config, name) for name in QuestionSettings.model_fields}
        if config.budget and config.queries == "none":
            notify("--budget has no effect without a language model to ask.")
        elif config.budget:
            passages = len(self.judged.corpus_ids)
            asked: int = config.count or min(PER_PASSAGE * passages, MOST)
            given["per_passage"] = config.per_passage or min(PER_PASSAGE, -(-asked // passages))
            given["count"] = min(asked, self.affordable(config.budget, given))
        ask(self.passages_file, output=folder, progress=self.show_bars, **given)
        self.questions = read_questions(folder / QUESTIONS)
        return f"{counted(len(self.questions), 'question')}, 20 of them in {folder / 'questions.html'}"

    def affordable(self, budget: float, given: dict[str, Any]) -> int:
        """The number of questions that fit into the budget, by the time for the first ones.

        Raises:
            DataError: If they are too few to learn from.
        """
        folder, known = self.folder / "questions", self.manifest.get("fits", {})
        if known.get("budget") == budget:
            return int(known["count"])
        made = ask(self.passages_file, output=folder, progress=self.show_bars, **given | {"count": TRIAL})
        each = max(made["seconds"], 0.1) / made["counts"]["asked"]  # which is stored with the questions
        before = sum(self.seconds.values())
        fits = int(ASK_SHARE * (budget - before) / each)
        if fits < 2 * FEWEST:
            raise DataError(
                f"a question takes {each:.2g} s, so a budget of {budget:.0f} s, of which reading and "
                f"encoding took {before:.0f} s, has time for {max(0, fits)} questions; expected at least "
                f"{2 * FEWEST}. Raise --budget, or use a faster model."
            )
        # a later call is to ask for as many
        write_json(self.folder / SETTINGS, self.manifest | {"fits": {"budget": budget, "count": fits}})
        return fits

    def encode(self) -> str:
        """Encodes the passages."""
        self.store = self.retriever.documents(self.judged)
        return f"{len(self.store):,} vectors of {self.store.shape[1]} dimensions"

    def filter(self) -> str:
        """Holds out documents, rates candidates, and leaves out what does not lead to its passage.

        Raises:
            DataError: If too few questions are left.
        """
        config, ids, passages = self.config, self.judged.corpus_ids, self.judged.passages
        self.split = split_questions(
            self.questions, ids, self.documents_of, held_out=config.held_out, seed=config.seed
        )
        if self.split.held_out_documents < 2 and len(self.questions) > FEWEST:
            raise DataError(
                f"no two documents are small enough to be held out: at most 30 % of the "
                f"{counted(len(self.questions), 'question')} are, and at most --held-out. Add documents, or "
                "cut large ones into several files."
            )
        subset = self.subset(len(ids), self.split)
        self.documents = read_rows(self.store, subset)
        if self.base.similarity == "cosine":
            self.documents = unit(self.documents)
        self.language = choose_language(config.language, passages, "the corpus")
        texts = passages if len(subset) == len(passages) else [passages[i] for i in subset]
        numbers = [str(i) for i in range(len(subset))]
        bm25 = Lexical(numbers, texts, language=self.language, progress=self.show_bars)
        self.weights = None
        hidden = self.split.held_out_passages[subset]
        if weighs_tokens(self.base.model):
            seen = [texts[i] for i in np.flatnonzero(~hidden).tolist()]
            self.weights = rarity(self.base.model.tokenizer, seen, len(seen))
        self.weighted = adapted_model(self.base.model, weights=self.weights)
        asked = [one.text for one in self.questions]
        lessons = self.lessons = make_lessons(
            asked,
            unit(encode(self.weighted, asked, role="query", desc="Questions", **self.options)),
            np.searchsorted(subset, self.split.sources),
            self.documents,
            bm25,
            bm25_weight=config.bm25_weight,
            candidates=config.candidates,
            hidden=hidden,
            seed=config.seed,
            progress=self.show_bars,
        )
        # the model under test does not choose the questions of its test
        found = (lessons.source_ranks <= config.found_in) | (self.split.part != TRAIN)
        self.kept = {part: found & (self.split.part == part) for part in (TRAIN, DEV, TEST)}
        self.counts = {part: int(kept.sum()) for part, kept in self.kept.items()}
        if min(self.counts[TRAIN], 4 * self.counts[DEV], 4 * self.counts[TEST]) < FEWEST:
            raise DataError(
                f"only {self.counts[TRAIN]} questions are left to learn from, {self.counts[DEV]} to tune and "
                f"{self.counts[TEST]} to test; expected at least {FEWEST}, {FEWEST // 4} and {FEWEST // 4}. "
                "Raise --count or --held-out, or add documents."
            )
        check_replaceable(self.folder / HELD_OUT, HELD_OUT_FILES)
        write_beir(
            self.folder / HELD_OUT,
            self.passages_file,
            {one.id: one.text for part in (DEV, TEST) for one in self.chosen(part)},
            {part: {one.id: {one.passage: 1} for one in self.chosen(part)} for part in (DEV, TEST)},
        )
        return (
            f"{self.counts[TRAIN]:,} questions whose passage is among the best {config.found_in} of the "
            f"teacher; {self.counts[DEV] + self.counts[TEST]:,} held out, on "
            f"{counted(self.split.held_out_documents, 'document')}"
        )

    def chosen(self, part: str) -> list[Question]:
        """The questions of a part that are kept."""
        return [self.questions[i] for i in np.flatnonzero(self.kept[part]).tolist()]

    def train(self) -> str:
        """Learns the map, chooses the share of it by the questions for tuning, and exports the model."""
        config, dev = self.config, self.kept[DEV]
        learnt = learn_query_map(
            self.lessons.part(self.kept[TRAIN]),
            self.documents,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            batch_size=config.train_batch_size,
            temperature=config.teacher_temperature,
            seed=config.seed,
        )
        general = GeneralCheck(self.retriever, self.weighted)
        sources, vectors = self.lessons.sources[dev], self.lessons.vectors[dev]
        asked = [one.text for one in self.chosen(DEV)]
        plain = encode(self.base.model, asked, role="query", desc="Questions", **self.options)
        before = self.before = {"dev": ndcg(plain, self.documents, sources), "general": general.before}
        self.curve = {
            share: {
                "dev": ndcg(apply(part_way(learnt, share), vectors), self.documents, sources),
                "general": general.score(part_way(learnt, share)),
            }
            for share in SHARES
        }
        self.share = max(SHARES, key=lambda one: (self.curve[one]["dev"], -one))
        after, query_map = self.curve[self.share], part_way(learnt, self.share)
        model = adapted_model(self.base.model, query_map=query_map, weights=self.weights)
        export(model, self.folder / ADAPTED, extra=lambda draft: self.describe(draft, {}), overwrite=True)
        return (
            f"{MEASURE} on questions for tuning {before['dev']:.3f} → {after['dev']:.3f} with "
            f"{self.share:.0%} of the map; general check {before['general']:.3f} → {after['general']:.3f}"
        )

    def describe(self, folder: Path, results: dict[str, Any]) -> None:
        """Writes the record of the adapted model, from which its card is made."""
        name = str(self.config.model)
        about = {
            "base": Path(name).name if Path(name).exists() else name,
            "base_id": None if Path(name).exists() else name,
            "passages": len(self.judged.corpus_ids),
            "questions": self.counts[TRAIN],
            "generator": "stzoo ask, without a model"
            if self.config.queries == "none"
            else "a language model",
            "weighted_tokens": self.weights is not None,
            "share": self.share,
            **results,
        }
        record = {"schema_version": SCHEMA_VERSION, "adapted": about, "versions": versions()}
        write_json(folder / ADAPTATION, record)

    def compare(self) -> str:
        """Scores all systems on the questions for the test, and decides."""
        config, adapted = self.config, self.folder / ADAPTED
        common: dict[str, Any] = dict(device=config.device, dtype="float32")
        root = self.retriever.root
        copy = Retriever(open_model(f"{ADAPTED}={adapted}", **common), root)
        copy.copy_documents(self.judged, self.store)
        found = bench(
            [f"{BASE}={config.model}", f"{ADAPTED}={adapted}"],
            data=self.folder / HELD_OUT,
            output=self.folder / RESULTS,
            store=root,
            fuse="min-max",
            language=self.language,
            memory_gib=config.memory_gib,
            overwrite=True,
            **common,
            **self.options,
        )
        self.scores = {one.model: one.scores.mean[MEASURE] for one in found}
        per_query = {one.model: one.scores.per_query[MEASURE] for one in found}
        of = dict(zip((one.id for one in self.questions), self.split.documents.tolist(), strict=True))
        before, after = (_means(per_query[name], of) for name in (BASE, ADAPTED))
        self.gain = paired_test(before, after, seed=config.seed)
        gains = self.gain.difference > 0 and self.gain.p_value < LEVEL
        self.decision = ADAPTED if gains else BASE
        self.describe(adapted, {"scores": self.scores, "gain": vars(self.gain)})
        card.write(adapted)
        return "   ".join(f"{name} {score:.3f}" for name, score in self.scores.items())

    def subset(self, passages: int, split: Split) -> np.ndarray:
        """Ascending int64 numbers of the passages to learn from: all, or the sources and a random rest."""
        if passages <= MOST_PASSAGES:
            return np.arange(passages)
        notify(f"the ranking is learnt from {MOST_PASSAGES:,} of the {passages:,} passages.")
        order = np.random.default_rng(self.config.seed).permutation(passages)
        return np.union1d(split.sources, order[:MOST_PASSAGES])


def _means(scores: Mapping[str, float], document_of: Mapping[str, int]) -> dict[str, float]:
    """The mean score of each document's questions."""
    grouped: dict[int, list[float]] = {}
    for query, score in scores.items():
        grouped.setdefault(document_of[query], []).append(score)
    return {str(document): float(np.mean(values)) for document, values in grouped.items()}


def _check_outside(output: Path, corpus: Path) -> None:
    """Refuses an output among the documents, as a second call would read it with them.

    Raises:
        OutputError: If it is.
    """
    if corpus_file(corpus) is None and output.resolve().is_relative_to(corpus.resolve()):
        raise OutputError(f"{output} is inside {corpus}, whose documents are read; choose another --output.")


def _read_record(path: Path) -> dict[str, Any]:
    """The content of a record; {} if it is missing or damaged."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
