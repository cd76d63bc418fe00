"""Mines negatives in parts, from which an interrupted run resumes, and writes the training file.

WORK/mining.json               what the parts depend on (see `stzoo.utils.parts`)
WORK/part-000000.safetensors   indices and scores of the negatives of the part's queries

Memory: 8 bytes for each result of a block of queries; the texts of one part, with a teacher; 8 bytes for each
passage of the corpus (temporarily 40, see `KnownPositives`); and the corpus and judgements themselves.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked
from stzoo.data.training_sets.builder import note_missing
from stzoo.data.training_sets.mined import check_mined_name, write_training
from stzoo.data.training_sets.sets import Candidate, Mined
from stzoo.errors import OutputError
from stzoo.finetuning.mining.cross_encoder_filter import Candidates, CrossEncoderFilter, Teacher, Verdict
from stzoo.finetuning.mining.known_positives import KnownPositives
from stzoo.finetuning.mining.manifest import build_manifest
from stzoo.finetuning.mining.rules import REMOVED, candidates, check_rules, chosen
from stzoo.finetuning.mining.searchers import Searcher
from stzoo.training.finetune_settings import MiningRules
from stzoo.utils.distributed import is_main_process, rank, wait_for_all, world_size
from stzoo.utils.files import WAIT_S, files_under, lock_folder, remove_files
from stzoo.utils.messages import notify
from stzoo.utils.parts import ArrayParts, Claim, Part, open_manifest
from stzoo.utils.progress import progress_bar
from stzoo.utils.workers import ThisProcess, applied, started

MANIFEST, PARTS = "mining.json", r"part-\d+\.safetensors"
PART = 256  # queries per part; a few seconds of search
TAUGHT = 64  # queries per part with a teacher; half a minute for a small one on two CPU cores
BLOCK = 16384  # queries per search: with fewer, reading the store takes longer than searching it


def mine_into(
    path: str | Path,
    finder: Searcher,
    judged: RetrievalDataset,
    rules: MiningRules,
    *,
    work: str | Path,
    seed: int = 42,
    teacher: Teacher | None = None,
    memory_gib: float = 2.0,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Mines negatives for the queries of a data set, or resumes an interrupted run.

    Args:
        path: Path to the training file, .parquet or .jsonl; an existing file is replaced in one step.
        finder: Searcher that finds the passages.
        judged: Queries, judgements and the passages to choose from.
        rules: Rules that decide which results become negatives; its teacher is given by `teacher`.
        work: Folder for unfinished work; the caller removes it.
        seed: Seed of the choice of random negatives.
        teacher: Teacher that scores positives and candidates; None keeps the searcher's scores.
        memory_gib: Memory budget in GiB; the results of a block of queries take at most a quarter of it.
        overwrite: True to start from scratch, and to remove unfinished work of any other run from `work`.
        progress: True for progress bars on stderr.

    Returns:
        The metadata in the file: "recipe", "model", "teacher", "data", "versions", "counts", "notes".

    Raises:
        DataError: If no query has a positive in the corpus.
        OutputError: If `work` is in use or belongs to a run with other settings, or the disk is full.
        RecipeError: If the rules leave no candidates, or the file has another extension.
    """
    check_rules(rules)
    path, work = check_mined_name(path), Path(work)
    known = KnownPositives.of(judged, progress=progress)
    manifest = build_manifest(finder, judged, rules, seed, teacher)
    if work.is_symlink():
        raise OutputError(f"{work} is a symbolic link; expected a folder. Remove the link.")
    with lock_folder(work) if is_main_process() else contextlib.nullcontext():
        if is_main_process():
            if overwrite and unfinished(work):
                _clear(work)
            open_manifest(work / MANIFEST, manifest, parts=PARTS)
        wait_for_all()
        mining = _Mining(finder, judged, rules, seed, teacher, known, work)
        try:
            mining.make(memory_gib, progress)
        finally:
            if is_main_process() and not any(work.glob("part-*")):  # no part is finished yet
                _clear(work)
        counts = mining.counts()
        wait_for_all()  # before the parts are removed
        notes = note_missing(counts["queries_with_none"], counts["queries"])
        for note in notes:
            notify(f"{note}. Mine deeper (--depth), with smaller margins, or with another model.")
        metadata = {**manifest, "counts": counts, "notes": notes}
        if is_main_process():
            write_training(path, mining.rows(progress), metadata)
    return metadata


def unfinished(work: Path) -> bool:
    """True if the folder contains the parts of an unfinished run."""
    return (work / MANIFEST).exists()


def remove(work: Path) -> None:
    """Removes the parts of a finished run; if interrupted, the folder does not count as unfinished."""
    if work.is_dir():
        _clear(work)
        with contextlib.suppress(OSError):  # it contains other files
            work.rmdir()


def _clear(work: Path) -> None:
    remove_files(work, [MANIFEST, *(name for name in files_under(work) if re.fullmatch(PARTS, name))])


@dataclass(frozen=True)
class _Ranked:
    """The results of a part's queries, and which of them are candidates.

    Attributes:
        indices: Indices of the results of each query, int64, best first.
        scores: Their scores, float32.
        orders: Ranks of the candidates of each query, int64, in order of preference.
        positive_scores: Scores of the positives of each query, float32.
        removed: Numbers of results that the rules removed, int64 [len(REMOVED)].
    """

    indices: Sequence[np.ndarray]
    scores: Sequence[np.ndarray]
    orders: list[np.ndarray]
    positive_scores: list[np.ndarray]
    removed: np.ndarray


class _Mining:
    """A mining run with everything that its parts need."""

    def __init__(
        self,
        finder: Searcher,
        judged: RetrievalDataset,
        rules: MiningRules,
        seed: int,
        teacher: Teacher | None,
        known: KnownPositives,
        work: Path,
    ):
        self.finder, self.judged, self.rules, self.seed = finder, judged, rules, seed
        self.known = known
        self.filter = teacher and CrossEncoderFilter(teacher, rules.mined, rules.teacher_margin)
        size = PART if teacher is None else TAUGHT
        self.parts = ArrayParts(work, "part-{number:06d}.safetensors", len(known.query_ids), size)

    def make(self, memory_gib: float, progress: bool) -> None:
        """Writes each part that is missing or damaged, together with the other processes of torchrun."""
        known, Q = self.known, len(self.known.query_ids)
        width = min(self.rules.depth + int(known.spread.max()), len(self.judged.corpus_ids))
        fitting = int(memory_gib * 2**28 / (8 * width + self.finder.query_bytes))
        size = self.parts.size
        block = max(1, min(BLOCK, fitting) // size) * size
        missing = self.parts.missing()
        share = len(missing) * rank() // world_size()
        missing = missing[share:] + missing[:share]
        bar = dict(unit=" queries", desc="Mining", delay=2, disable=not progress)
        with progress_bar(total=Q, initial=Q - sum(map(len, missing)), **bar) as shown:
            while missing:
                start = missing[0].first
                here = [part for part in missing if start <= part.first < start + block]
                here = here[: -(-len(missing) // world_size())]  # the others get their share
                with contextlib.ExitStack() as claims:
                    ours = [claim for claim, _ in (self.parts.reserve(one, claims) for one in here) if claim]
                    if ours:
                        find_block = self._finder(ours[0].part.first, ours[-1].part.last)
                        self._fill(ours, find_block, shown)
                missing = [part for part in missing if self.parts.load(part) is None]
                shown.update(Q - sum(map(len, missing)) - shown.n)
                if missing and not ours:
                    time.sleep(WAIT_S)  # other processes make them

    def _fill(self, claims: Sequence[Claim[Any]], find: Callable[[Part], _Ranked], bar: Any) -> None:
        """Writes parts of a block; the workers of an engine, if there is one, apply the filter."""
        found: dict[int, tuple[Claim[Any], _Ranked]] = {}

        def values() -> Iterator[tuple[int, list[Candidates] | None]]:
            for claim in claims:
                ranked = find(claim.part)
                found[claim.part.number] = claim, ranked
                yield claim.part.number, self._texts(claim.part, ranked) if self.filter else None

        # workers that search the next block may need the devices of these
        local = contextlib.nullcontext(ThisProcess(lambda _: None))
        with started(self.filter) if self.filter else local as workers:
            for number, decisions in applied(workers, values()):
                claim, ranked = found.pop(number)
                claim.save(self._arrays(ranked, decisions))
                bar.update(len(claim.part))

    def _finder(self, first: int, last: int) -> Callable[[Part], _Ranked]:
        """Searches for a block of queries, and returns the function that ranks those of a part."""
        pairs = self.known.positives.of(np.arange(first, last))
        rows = np.repeat(np.arange(last - first), np.diff(pairs.starts))
        k = self.rules.depth + int(self.known.spread[first:last].max())
        results, scores = self.finder.find(first, last, k, rows, pairs.places)
        positives = np.split(scores, pairs.starts[1:-1])
        return partial(self._rank, first=first, results=results, positives=positives)

    def _rank(self, part: Part, first: int, results: Ranked, positives: list[np.ndarray]) -> _Ranked:
        """Chooses the candidates of a part from the results of a block of queries.

        Args:
            part: The part, a range of the block's queries.
            first: Index of the block's first query.
            results: Results of the block's queries.
            positives: Scores of the positives of each of the block's queries, float32.
        """
        known, rules = self.known, self.rules
        positive_scores = positives[part.first - first : part.last - first]
        query_ids = known.query_ids[part.first : part.last]
        indices, scores = zip(*(results.results(query, own=True) for query in query_ids), strict=True)
        removed = np.zeros(len(REMOVED), np.int64)
        orders = []  # ranks of the candidates of each query
        for row, query in enumerate(range(part.first, part.last)):
            order = np.empty(0, np.int64)
            if len(positive_scores[row]):
                there = indices[row]
                answers = known.kinds[known.answers[query]]
                best = float(positive_scores[row].max())
                left, gone = candidates(known.kinds[there], scores[row], answers, best, rules)
                same = self._read_alike(
                    there[left], scores[row][left], known.positives[query], positive_scores[row]
                )
                left, gone[0] = left[~same], gone[0] + int(same.sum())
                order = chosen(left, rules, self.seed, known.query_ids[query])
                removed += gone
            orders.append(order)
        return _Ranked(indices, scores, orders, positive_scores, removed)

    def _texts(self, part: Part, ranked: _Ranked) -> list[Candidates]:
        """What the filter reads of a part."""
        passages, texts = self.judged.passages, []
        for row, query in enumerate(range(part.first, part.last)):
            sides = self.known.positives[query], ranked.indices[row][ranked.orders[row]]
            positives, ordered = ([passages[place] for place in places.tolist()] for places in sides)
            texts.append(Candidates(self.judged.queries[self.known.query_ids[query]], positives, ordered))
        return texts

    def _arrays(self, ranked: _Ranked, decisions: list[Verdict] | None) -> dict[str, np.ndarray]:
        """The content of a part, by the decisions of the filter if there is one."""
        scores, orders, removed = ranked.scores, ranked.orders, ranked.removed.copy()
        if decisions is None:
            positive_scores = ranked.positive_scores
            taken = [np.sort(order[: self.rules.mined]) for order in orders]
            worth = [scores[row][ranks] for row, ranks in enumerate(taken)]
        else:
            positive_scores = [verdict.positives for verdict in decisions]
            ranks = [order[verdict.taken] for order, verdict in zip(orders, decisions, strict=True)]
            taken = [np.sort(some) for some in ranks]
            worth = [verdict.scores[np.argsort(some)] for some, verdict in zip(ranks, decisions, strict=True)]
            removed[-1] = sum(verdict.removed for verdict in decisions)
        return {
            "starts": np.cumsum([0, *map(len, taken)]),
            "negatives": np.concatenate([ranked.indices[row][ranks] for row, ranks in enumerate(taken)]),
            "scores": np.concatenate(worth).astype(np.float32),
            "positive_scores": np.concatenate(positive_scores).astype(np.float32),
            "removed": removed,
        }

    def _read_alike(
        self, indices: np.ndarray, scores: np.ndarray, positives: np.ndarray, positive_scores: np.ndarray
    ) -> np.ndarray:
        """True for candidates that the model reads as the same tokens as a positive, bool [C].

        Texts with the same tokens have the same score up to rounding, so only candidates with the score of a
        positive are compared.
        """
        same = np.isclose(scores[:, None], positive_scores[None], rtol=1e-3, atol=1e-5).any(1)
        if same.any():
            known = {self.finder.tokens(place) for place in positives.tolist()} - {()}
            same[same] = [self.finder.tokens(place) in known for place in indices[same].tolist()]
        return same

    def counts(self) -> dict[str, int]:
        """The numbers of mined negatives, of queries with too few, and of removed passages."""
        removed, sizes = np.zeros(len(REMOVED), np.int64), []
        for arrays in map(self.parts.read, self.parts):
            removed += arrays["removed"]
            sizes.append(np.diff(arrays["starts"]))
        asked = np.diff(self.known.positives.starts) > 0
        each = np.concatenate(sizes)[asked]
        return {
            "queries": int(asked.sum()),
            "negatives": int(each.sum()),
            "queries_with_fewer_than_asked_for": int((each < self.rules.mined).sum()),
            "queries_with_none": int((each == 0).sum()),
            "queries_without_positives": int((~asked).sum()),
            **{f"removed_{name}": int(count) for name, count in zip(REMOVED, removed, strict=True)},
        }

    def rows(self, progress: bool) -> Iterator[Mined]:
        """Yields the rows of the file, one for each query with a positive."""
        positives, query_ids = self.known.positives, self.known.query_ids
        bar = dict(total=len(query_ids), unit=" queries", desc="Writing", delay=2)
        with progress_bar(disable=not progress, **bar) as shown:
            for part in self.parts:
                arrays = self.parts.read(part)
                offset = positives.starts[part.first]
                for row, query in enumerate(range(part.first, part.last)):
                    of_positives = slice(*(positives.starts[query : query + 2] - offset))
                    of_negatives = slice(*arrays["starts"][row : row + 2])
                    if of_positives.stop > of_positives.start:
                        yield Mined(
                            query_ids[query],
                            self.judged.queries[query_ids[query]],
                            self._candidates(positives[query], arrays["positive_scores"][of_positives]),
                            self._candidates(
                                arrays["negatives"][of_negatives], arrays["scores"][of_negatives]
                            ),
                        )
                    shown.update()

    def _candidates(self, indices: np.ndarray, scores: np.ndarray) -> list[Candidate]:
        ids, passages = self.judged.corpus_ids, self.judged.passages
        return [
            Candidate(passages[place], ids[place], score)
            for place, score in zip(indices.tolist(), scores.tolist(), strict=True)
        ]
