"""The result of judge(), in words."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.compare.result import Comparison, verdict
from stzoo.evaluation.judge.answers import GRADES
from stzoo.evaluation.judge.pool import Pool
from stzoo.utils.messages import counted

LOW = 0.8  # a smaller share of a system's best passages that were judged is pointed out


def measure(depth: int) -> str:
    """The measure that ranks judged passages only: nDCG at a depth on condensed lists."""
    return f"nDCG(judged_only=True)@{depth}"


@dataclass(frozen=True)
class Judged:
    """The result of judge().

    Attributes:
        folder: The BEIR folder with the judgements.
        grades: Number of pairs by grade: 0 not relevant, 1 partly relevant, 2 relevant.
        skipped: Number of pairs that the judge skipped.
        left: Number of pairs without an answer.
        depth: Number of best passages of each system in the pool.
        pool: The pairs that were to be judged.
        results: The systems' scores by these judgements; empty if nothing was judged.
        comparison: The systems compared with the first; None for a single system or query.
    """

    folder: Path
    grades: dict[int, int]
    skipped: int
    left: int
    depth: int
    pool: Pool
    results: tuple[Result, ...]
    comparison: Comparison | None

    def summary(self) -> list[str]:
        """What was judged, what it says about the systems, and what to do next, as lines of text."""
        judged = sum(self.grades.values())
        by_grade = ", ".join(f"{number} {GRADES[grade]}" for grade, number in self.grades.items())
        lines = [
            f"{counted(judged, 'pair')} judged: {by_grade}; {self.skipped} skipped, {self.left} left."
            + " Run the same command again to continue." * bool(self.left)
        ]
        if not self.results:
            return [*lines, "There is nothing to score yet."]
        queries = self.results[0].queries
        lines.append(f"Judgements of {counted(queries, 'query')} are in {self.folder}.")
        shares = {result.model: result.scores.mean[f"Judged@{self.depth}"] for result in self.results}
        shown = ", ".join(f"{model} {share:.0%}" for model, share in shares.items())
        lines.append(f"Share judged of the first {counted(self.depth, 'passage')}: {shown}.")
        if min(shares.values()) < LOW:
            lines.append("That is little: the scores leave out what was not judged, and can mislead.")
        if self.comparison is None:
            name = measure(self.depth)
            means = (f"{one.model} {one.scores.mean[name]:.4f}" for one in self.results)
            lines.append(f"{name}: {', '.join(means)}.")
            return [*lines, "A comparison needs two systems and two judged queries."]
        lines += [verdict(self.comparison, pair) for pair in self.comparison.pairs]
        lines += self._advice(judged, queries)
        return lines

    def _advice(self, judged: int, queries: int) -> list[str]:
        comparison, pool = self.comparison, self.pool
        assert comparison is not None, "the caller has checked it"
        lines = []
        undecided = [pair.system for pair in comparison.pairs if not pair.differ]
        if undecided:
            lines.append(
                f"{counted(judged, 'pair')} on {counted(queries, 'query')} cannot tell "
                f"{', '.join(undecided)} from {comparison.baseline}. Judge more (--pairs "
                f"{2 * max(judged, len(pool.pairs))} keeps these answers), or take them for equally good."
            )
        if len({query for query, _ in pool.pairs}) <= pool.differing < pool.queries:
            lines.append(
                f"The systems' best passages differ on {pool.differing:,} of "
                f"{counted(pool.queries, 'query')}, and only such queries were drawn: over all, expect about "
                f"{pool.differing / pool.queries:.2f} times these differences."
            )
        results = shlex.quote(str(self.folder / "results"))
        names = " ".join(shlex.quote(name) for name in (comparison.baseline, *comparison.systems))
        measures = f'"{measure(self.depth)} Judged@{self.depth}"'
        lines += [
            "Compare them again, in any order:",
            f'  stzoo compare {names} --results {results} --measure "{comparison.measure}"',
            "Score the run file of another system by these judgements:",
            f"  stzoo score NAME=FILE.run --data {shlex.quote(str(self.folder))} --measures {measures}",
        ]
        return lines
