"""Compares an objective, a balancer, or the scores of KILT, with the numbers of their authors' own code.

    python tests/parity/check.py FILE [--tolerance X]

FILE.safetensors has random weights, inputs, losses and gradients. The plugin of the method reads it: each
`plugins/*/tests/parity/figures.py` says by `matches(tensors, about)` which files are its own, and gives by
`errors(tensors, about)` the relative error of each figure. Prints "max relative error: X", the largest of
them; exit code 1 above the tolerance (1e-5).

FILE.json has KILT's gold and guess and how they score. Prints "max absolute error: X", the largest over all
means and scores of questions that the file has; exit code 1 above the tolerance (1e-9).
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from stzoo.data import kilt
from stzoo.evaluation import kilt as kilt_scoring
from stzoo.testing import parity

ROOT = Path(__file__).parents[2]


def methods() -> list[ModuleType]:
    """`figures.py` of each plugin."""
    found = []
    for path in sorted(ROOT.glob("plugins/*/tests/parity/figures.py")):
        spec = importlib.util.spec_from_file_location(f"figures_of_{path.parents[2].name}", path)
        found.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(found[-1])
    return found


def errors(path: Path) -> dict[str, float]:
    """The relative error of each figure in the file.

    Raises:
        SystemExit: if no plugin knows a file of this form.
    """
    tensors, about = parity.read(path)
    for method in methods():
        if method.matches(tensors, about):
            return method.errors(tensors, about)
    sys.exit(f"{path}: no plugins/*/tests/parity/figures.py knows a file with these tensors.")


def kilt_errors(path: Path) -> dict[str, float]:
    """The absolute error of each score in the file: of each question by its place, and of the means."""
    about = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        files = {part: Path(folder, f"{part}.jsonl") for part in ("gold", "guess")}
        for part, file in files.items():
            file.write_text("".join(json.dumps(row) + "\n" for row in about[part]), encoding="utf-8")
        evidence, guess = kilt.read_gold(files["gold"]), kilt.read_guess(files["guess"])
    expected = [*about["per_query"], about["mean"]]
    ks = {int(name.partition("@")[2]) for scores in expected for name in scores if "@" in name}
    scores = kilt_scoring.score(evidence, guess, sorted(ks) or [1])
    assert len(about["per_query"]) == len(evidence), "a question is missing"
    ours = [{name: values[query] for name, values in scores.per_query.items()} for query in evidence]
    places = [*evidence, "mean"]
    return {
        f"{name} of {place}": difference(mine[name], value)
        for place, mine, theirs in zip(places, [*ours, scores.mean], expected, strict=True)
        for name, value in theirs.items()
    }


def difference(value: float, expected: float) -> float:
    """The absolute difference; no number is infinitely far off."""
    found = abs(value - expected)
    return found if found == found else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--tolerance", type=float, help="1e-5 unless given, 1e-9 for KILT")
    given = parser.parse_args()
    of_kilt = given.file.suffix == ".json"
    found = kilt_errors(given.file) if of_kilt else errors(given.file)
    worst = max(found, key=found.__getitem__)
    print(f"{len(found)} figures; the worst is {worst}")
    print(f"max {'absolute' if of_kilt else 'relative'} error: {found[worst]:.3g}")
    tolerance = given.tolerance if given.tolerance is not None else 1e-9 if of_kilt else 1e-5
    return int(found[worst] > tolerance)


if __name__ == "__main__":
    sys.exit(main())
