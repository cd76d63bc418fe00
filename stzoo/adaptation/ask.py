"""`stzoo ask`: generates queries for the passages of a corpus.

OUTPUT/questions.jsonl   the queries, with the passage, style and generator of each
OUTPUT/questions.json    settings, counts, rejected answers with reasons, time, tokens and cost
OUTPUT/questions.html    some of them with their passages
OUTPUT/parts/            finished answers, see `stzoo.adaptation.questions.storage`

Memory: 8 bytes per passage for the order (24 if the passages have documents), and about 100 per query.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stzoo.adaptation.questions.answers import check_query, clean
from stzoo.adaptation.questions.endpoint import Endpoint
from stzoo.adaptation.questions.from_text import FromText
from stzoo.adaptation.questions.generator import Answer, Generator, Passage
from stzoo.adaptation.questions.page import Example, render
from stzoo.adaptation.questions.storage import FOLDER, MANIFEST, PARTS, AnswerParts, Asked, Content
from stzoo.adaptation.result import GeneratedQueries
from stzoo.adaptation.settings import AskSettings
from stzoo.data.corpus import Corpus, load_corpus
from stzoo.data.languages import NONE, check_language, detect_language
from stzoo.data.words import same_text_key
from stzoo.errors import ModelError, RecipeError, quoted, suggest
from stzoo.training.arguments import choose_precision
from stzoo.training.records import versions
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import atomic_file, lock_folder, remove_files, write_json
from stzoo.utils.inputs import read_json
from stzoo.utils.messages import collect_notes, notify, show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.parts import Part, open_manifest
from stzoo.utils.progress import progress_bar
from stzoo.utils.public import public

QUESTIONS, RECORD, PAGE = "questions.jsonl", "questions.json", "questions.html"
COLUMNS = {"title": str, "metadata.language": str, "metadata.document": str}
MOST = 10_000  # queries, if no number is given
PER_PASSAGE = 3  # likewise
EXAMPLES = 20  # on the page
FIRST, USABLE = 20, 0.1  # the run ends if of this many answers of a part a smaller share is usable
WEAK = (
    "the queries are words of the passages themselves, unlike most real questions. A language model writes "
    "more natural ones (--queries), but in our tests models learned less from those of a small one."
)
TITLES = 3  # examples for a local model, taken from the corpus


@public(AskSettings)
def ask(
    corpus: Any = None,
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> GeneratedQueries:
    """Generates queries for the passages of a corpus, which needs no labels.

    An interrupted run continues when it is called again with the same settings, and so does a finished one
    with a larger `count`; queries that exist are not asked for again.

    Args:
        corpus: BEIR folder, file, data set, list of texts or dicts, or data frame; see
            `stzoo.data.corpus.load_corpus`. A passage can name its language and its document in "metadata".
        recipe: Path to a YAML file, or the name of an installed recipe.
        output: Folder for the queries.
        overwrite: True to start from scratch.
        progress: True for a progress bar on stderr; None shows it on a terminal only.
        settings: Fields of `AskSettings`, e.g. queries, queries_model, count; they override the recipe's.

    Returns:
        The folder, a Path that adapt takes as `questions`, with `.queries`, `.counts` and `.record`: what
        questions.json has ("settings", "corpus", "generator", "counts", "rejected", "seconds", "usage",
        "cost", "versions", "notes").

    Raises:
        StzooError: If the user made a mistake, or the model or server cannot be used; see `stzoo.errors`.
    """
    require_one_process("ask")
    config = AskSettings.read(recipe, settings if corpus is None else settings | {"corpus": corpus})
    folder = check_output(output, kind="results", inputs=config.corpus)
    if config.threads:
        torch.set_num_threads(config.threads)
    with collect_notes() as notes, lock_folder(folder):
        if overwrite:
            _clear(folder)
        read = load_corpus(
            config.corpus, min_words=config.min_words, skip_bad_lines=config.skip_bad_lines, columns=COLUMNS
        )
        try:
            run = _Run(config, read, folder)
            run.make(show_progress(progress))
        finally:
            if not any((folder / FOLDER).glob("part-*.json")):  # nothing to continue
                remove_files(folder, [f"{FOLDER}/{MANIFEST}"])
        run.finish(notes)
    return GeneratedQueries(folder)


def _clear(folder: Path) -> None:
    parts = [path.name for path in (folder / FOLDER).glob("part-*.json")]
    remove_files(folder / FOLDER, [MANIFEST, *parts])
    remove_files(folder, [QUESTIONS, RECORD, PAGE])


class _Run:
    """A run: passages are visited in a fixed order, again and again until there are enough queries.

    Attributes:
        count: Number of queries to ask for.
        number: Queries per visit.
        visits: Visits of passages that give `count` queries.
    """

    def __init__(self, config: AskSettings, corpus: Corpus, folder: Path):
        self._config, self._corpus, self._folder = config, corpus, folder
        rows = corpus.sample()
        self._language = config.language or detect_language([row["text"] for row in rows])
        self._sample = [self._passage(row) for row in rows]
        passages = len(corpus.rows)
        self.count = config.count or min(PER_PASSAGE * passages, MOST)
        stored = _stored_number(folder)
        self.number = config.per_passage or stored or min(PER_PASSAGE, -(-self.count // passages))
        self.visits = -(-self.count // self.number)
        self._generator = _generator(config, self._sample, self._language)
        known = self._generator.styles(Passage("", "title", "text", NONE))
        for style in config.styles or ():
            if style not in known:
                raise RecipeError(
                    f"{self._generator.name} knows no style {style!r}{suggest(style, known)} "
                    f"Known: {', '.join(known)}."
                )
        manifest = {
            "corpus": corpus.fingerprint,
            "language": self._language,
            "seed": config.seed,
            "per_passage": self.number,
            "styles": config.styles,
            "generator": self._generator.metadata,
        }
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        open_manifest(folder / FOLDER / MANIFEST, manifest, parts=PARTS)
        self._parts = AnswerParts(folder, self.visits, self.number)
        self._order = _order(corpus, config.seed)

    # -- generating

    def make(self, progress: bool) -> None:
        """Generates what is missing."""
        missing = self._parts.missing()
        if not missing:
            return
        if isinstance(self._generator, FromText):
            notify(WEAK)
        visits = sum(len(part) - self._parts.visited(part) for part in missing)
        if text := self._generator.estimate(self._sample, visits, self.number):
            notify(text)
        total = self.visits * self.number
        shown: dict[str, Any] = dict(unit=" queries", desc="Asking", disable=not progress, smoothing=0.1)
        with progress_bar(total=total, initial=total - visits * self.number, **shown) as bar:
            for part in missing:
                while self._parts.load(part) is None:
                    self._parts.make(part, lambda one, bar=bar: self._ask(one, bar))  # type: ignore[misc]

    def _ask(self, part: Part, bar: Any) -> Content:
        """The content of a part with the next answers, as many as are to be stored at once."""
        start, before = time.perf_counter(), Counter(self._generator.usage)
        kept = self._parts.stored(part) or Content(answers=[], usage={}, seconds=0.0)
        first = part.first + self._parts.visited(part)
        last = min(part.last, first + -(-self._generator.stored_at_once // self.number))
        passages, styles, seeds = self._visits(range(first, last))
        rows: list[list[Asked]] = [[] for _ in passages]
        reasons = Counter(one["reason"] for one in kept["answers"])
        for at, answers in self._generator.generate(passages, styles, seeds):
            row = int(self._order[(first + at) % len(self._order)])
            for style, answer in zip(styles[at], answers, strict=True):
                checked = _checked(answer, passages[at], copies=self._generator.copies)
                reasons[checked.reason] += 1
                rows[at].append(
                    Asked(
                        row=row,
                        passage=passages[at].id,
                        style=style,
                        text=checked.text,
                        reason=checked.reason,
                    )
                )
            bar.update(len(answers))
            if not self._generator.copies and reasons.total() >= FIRST:
                self._check_usable(reasons, kept["answers"] + [one for found in rows for one in found])
        used = self._generator.usage - before
        return Content(
            answers=kept["answers"] + [one for found in rows for one in found],
            usage=dict(Counter(kept["usage"]) + used),
            seconds=round(kept["seconds"] + time.perf_counter() - start, 3),
        )

    def _visits(self, visits: range) -> tuple[list[Passage], list[list[str]], list[int]]:
        """The passages of some visits, with the styles and the seed of each."""
        places = [int(self._order[visit % len(self._order)]) for visit in visits]
        columns = self._corpus.rows[places]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        passages = [self._passage(row) for row in rows]
        styles = []
        for visit, passage in zip(visits, passages, strict=True):
            turn, place = divmod(visit, len(self._order))
            fitting = self._generator.styles(passage)
            fitting = [one for one in fitting if one in (self._config.styles or fitting)] or list(fitting)
            first = int(np.random.default_rng([self._config.seed, 1, place]).integers(len(fitting)))
            first += turn * self.number
            styles.append([fitting[(first + at) % len(fitting)] for at in range(self.number)])
        seeds = [int(np.random.default_rng([self._config.seed, 2, one]).integers(2**31)) for one in visits]
        return passages, styles, seeds

    def _passage(self, row: dict[str, Any]) -> Passage:
        title, text = (row.get("title") or "").strip(), row["text"]
        text = text[len(title) :].strip() if title and text.startswith(title) else text
        return Passage(row["id"], title, text, self._language_of(row))

    def _language_of(self, row: dict[str, Any]) -> str:
        given = (row.get("metadata.language") or "").partition("-")[0]
        try:
            return check_language(given) if given else self._language
        except RecipeError:  # a language that is not known here
            return NONE

    def _check_usable(self, reasons: Counter[str], answers: Sequence[Asked]) -> None:
        """Ends the run if nearly all answers are rejected.

        Raises:
            ModelError: With the reasons and an example.
        """
        if reasons[""] >= max(1, USABLE * reasons.total()):
            return
        listed = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common(4) if reason)
        example = next(one for one in answers if one["reason"] == reasons.most_common(1)[0][0])
        raise ModelError(
            f"{self._generator.name} gives no usable queries: of the {reasons.total()} last answers, "
            f"{reasons.total() - reasons['']} were rejected: {listed}. "
            f"An example: {quoted(example['text'])}. Choose another model."
        )

    # -- writing

    def finish(self, notes: Sequence[str]) -> None:
        """Writes the queries, their record and the page."""
        rejected: Counter[str] = Counter()
        examples: dict[str, list[str]] = {}
        kept = 0
        with atomic_file(self._folder / QUESTIONS) as draft, draft.open("w", encoding="utf-8") as file:
            for slot, asked in self._asked():
                if asked["reason"]:
                    rejected[asked["reason"]] += 1
                    if len(listed := examples.setdefault(asked["reason"], [])) < 3 and asked["text"]:
                        listed.append(asked["text"][:200])
                    continue
                about = {"passage": asked["passage"], "style": asked["style"], "by": self._generator.name}
                row = {"_id": f"q{slot}", "text": asked["text"], "metadata": about}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                kept += 1
            if not kept:
                self._check_usable(
                    Counter(one["reason"] for _, one in self._asked()), [one for _, one in self._asked()]
                )
        usage, seconds = self._used()
        sent, received = usage["tokens_in"], usage["tokens_out"]
        cost = self._generator.cost(sent, received) if isinstance(self._generator, Endpoint) else None
        record = {
            "settings": self._config.dump(),
            "corpus": self._corpus.record(),
            "language": self._language,
            "generator": self._generator.metadata,
            "counts": {
                "queries": kept,
                "asked": self.count,
                "rejected": rejected.total(),
                "passages": min(self.visits, len(self._order)),
                "too_short": self._corpus.dropped,
            },
            "rejected": {
                reason: {"number": number, "examples": examples.get(reason, [])}
                for reason, number in rejected.most_common()
            },
            "seconds": round(seconds, 1),
            "usage": dict(usage),
            "cost": cost,
            "versions": versions(),
            # as if the queries were made in one call
            "notes": list(dict.fromkeys([WEAK, *notes] if isinstance(self._generator, FromText) else notes)),
        }
        if isinstance(self._generator, Endpoint):
            price = "" if cost is None else f" for {cost:.4f}"
            notify(f"used {sent:,} tokens sent and {received:,} received{price}.")
        page = render(record, self._examples(kept))
        with atomic_file(self._folder / PAGE) as draft:
            draft.write_text(page, encoding="utf-8", newline="\n")
        write_json(self._folder / RECORD, record)

    def _asked(self) -> Iterator[tuple[int, Asked]]:
        """The number and the answer of each query that was asked for; repeated ones are rejected."""
        seen: set[int] = set()
        for part in self._parts:
            slot = part.first * self.number
            for asked in self._parts.read(part)["answers"]:
                if slot >= self.count:
                    return
                if not asked["reason"]:
                    key = hash((asked["row"], same_text_key(asked["text"]).lower().rstrip("?.! ")))
                    if key in seen:
                        asked = asked.copy()
                        asked["reason"] = "a repetition of another query"
                    seen.add(key)
                yield slot, asked
                slot += 1

    def _used(self) -> tuple[Counter[str], float]:
        """The usage and the seconds of all parts."""
        usage: Counter[str] = Counter()
        seconds = 0.0
        for part in self._parts:
            content = self._parts.read(part)
            usage.update(content["usage"])
            seconds += content["seconds"]
        return usage, seconds

    def _examples(self, kept: int) -> list[Example]:
        """Queries in even steps, with their passages."""
        chosen = {kept * at // EXAMPLES for at in range(EXAMPLES)}
        with (self._folder / QUESTIONS).open(encoding="utf-8") as file:
            rows = [json.loads(line) for at, line in enumerate(file) if at in chosen]
        places = {f"q{slot}": one["row"] for slot, one in self._asked()} if rows else {}
        return [
            Example(
                one["text"],
                one["metadata"]["style"],
                one["metadata"]["passage"],
                self._corpus.rows[places[one["_id"]]]["text"],
            )
            for one in rows
        ]


def _checked(answer: Answer, passage: Passage, *, copies: bool) -> Answer:
    """The answer with its text cleaned, and the reason if it cannot be a query."""
    text = answer.text if copies else clean(answer.text)
    reason = answer.reason or check_query(text, passage, copies=copies)
    return Answer(text.encode("utf-8", "replace").decode(), reason)


def _order(corpus: Corpus, seed: int) -> np.ndarray:
    """The rows of the corpus in random order, int64 [N]; those of a document are as far apart as possible."""
    order = np.random.default_rng(seed).permutation(len(corpus.rows))
    if "metadata.document" not in corpus.rows.column_names:
        return order
    names = corpus.rows.data.column("metadata.document").combine_chunks().dictionary_encode().indices
    documents = names.fill_null(-1).to_numpy(zero_copy_only=False)[order]
    documents[documents < 0] = np.arange(-1, -1 - int((documents < 0).sum()), -1)  # each by itself
    by_document = np.argsort(documents, kind="stable")
    _, starts, sizes = np.unique(documents[by_document], return_index=True, return_counts=True)
    rank = np.empty(len(order), np.int64)  # of a passage in its document
    rank[by_document] = np.arange(len(order)) - np.repeat(starts, sizes)
    return order[np.argsort(rank, kind="stable")]


def _stored_number(folder: Path) -> int | None:
    """The queries per visit of an earlier run in this folder."""
    found = read_json(folder / FOLDER / MANIFEST).get("per_passage")
    return found if isinstance(found, int) and found > 0 else None


def _generator(config: AskSettings, sample: Sequence[Passage], language: str) -> Generator:
    if config.queries == "none":
        return FromText([one.full for one in sample], language)
    if "://" in config.queries:
        return Endpoint(
            config.queries,
            config.queries_model,
            key_env=config.queries_key_env,
            concurrency=config.concurrency,
            timeout=config.timeout,
            retries=config.retries,
            temperature=config.temperature,
            passage_words=config.passage_words,
            price_in=config.price_in,
            price_out=config.price_out,
        )
    from stzoo.adaptation.questions.decoding import Sampling
    from stzoo.adaptation.questions.local_model import LocalModel

    return LocalModel(
        config.queries,
        config.queries_model,
        device=config.device,
        precision=choose_precision(config)["used"],
        passage_words=config.passage_words,
        sampling=Sampling(temperature=config.temperature),
        examples=() if language in ("en", NONE) else _titles(sample),
    )


def _titles(sample: Sequence[Passage]) -> list[tuple[str, str]]:
    """Passages of the corpus with their titles, as examples; none if there are too few."""
    found = [one for one in sample if 3 <= len(one.title.split()) <= 15 and len(one.text.split()) >= 20]
    steps = [found[len(found) * at // TITLES] for at in range(TITLES)] if len(found) >= TITLES else []
    return [(" ".join(one.text.split()[:60]), one.title) for one in steps]
