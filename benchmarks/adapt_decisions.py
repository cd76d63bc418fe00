"""Whether adapt's decision can be trusted: its held-out questions against labels.

    STZOO_DATA=… python benchmarks/adapt_decisions.py [--sets …] [--seeds 1] [--queries none] [--count N]
        [--work FOLDER] [--output adapt_decisions.json]

Each set is adapted with the defaults and with settings chosen to do harm. adapt decides by its held-out
questions; the labels, which it does not see, show who was right: a decision is wrong if it keeps a model that
is worse by the labels beyond chance, or drops one that is better beyond chance.
"""

from adapt import adapt_and_score, arguments
from common import processor, versions, write_report

LEVEL = 0.05
SETTINGS = {
    "defaults": {},
    "BM25 alone as teacher": {"bm25_weight": 1.0},
    "a soft teacher": {"teacher_temperature": 3.0},
    "a high rate": {"learning_rate": 0.02},
    "a very high rate": {"learning_rate": 0.2},
    "few candidates": {"candidates": 2},
}


def main() -> None:
    """Adapts each set with all settings, and counts the decisions."""
    parser = arguments()
    parser.description = __doc__.splitlines()[0]
    given = parser.parse_args()
    runs = []
    for name in given.sets.split(","):
        for seed in map(int, given.seeds.split(",")):
            for label, settings in SETTINGS.items():
                run = adapt_and_score(
                    name, seed, given.work, queries=given.queries, count=given.count, **settings
                )
                differences = [one for task in run["labelled"].values() for one in task.pop("differences")]
                runs.append({"settings": label, **run, "by_labels": judge(differences)})
    report = {"decisions": counts(runs), "runs": runs}
    report |= {"processor": processor(), "versions": versions("stzoo", "torch", "sentence-transformers")}
    write_report(report, given.output)


def judge(differences: list[float]) -> str:
    """Whether the adapted model is "better", "worse", or "equal", as far as chance can tell."""
    from stzoo.evaluation.scoring import paired_test

    test = paired_test(
        dict.fromkeys(map(str, range(len(differences))), 0.0),
        {str(number): value for number, value in enumerate(differences)},
    )
    return "equal" if test.p_value >= LEVEL else "better" if test.difference > 0 else "worse"


def counts(runs: list[dict]) -> dict[str, dict[str, int]]:
    """The number of runs by the outcome of the labels and by the decision."""
    found = {outcome: {"adapted": 0, "base": 0} for outcome in ("better", "equal", "worse")}
    for run in runs:
        found[run["by_labels"]][run["decision"]] += 1
    return found


if __name__ == "__main__":
    main()
