"""What `make compat` runs: exports loaded by older and newer sentence-transformers, without stzoo.

    python tests/compat/run.py [VERSION …]

makes an environment for each version in .compat/ (once, some minutes each), exports the models of
make_models.py, compares the embeddings that each has in each environment with those of the exporting process,
prints a table, and ends with 1 if any differ by more than 1e-6 or a model does not load.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import make_models

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".compat"
TOLERANCE = 1e-6
# the newest transformers that each of them takes
VERSIONS = {"5.1.2": "4.57.6", "5.7.0": "5.23.0", "6.2.0": "5.23.0"}
STRIPS = {"5.1.2"}  # before 5.4, white space at the ends of a text is cut off, whatever a model folder says


def environment(version: str) -> Path:
    """The interpreter of an environment with this sentence-transformers; made if it is not there."""
    folder = ENVIRONMENTS / f"st-{version}"
    wanted = ["torch==2.13.0", f"sentence-transformers=={version}", f"transformers=={VERSIONS[version]}"]
    marker = folder / "made.json"  # written last
    if not marker.exists() or json.loads(marker.read_text()) != wanted:
        print(f"making {folder.name} …", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", *wanted], check=True)
        marker.write_text(json.dumps(wanted))
    return folder / "bin" / "python"


def check(python: Path, models: Path) -> dict[str, dict]:
    """What check.py says of each model under this interpreter."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, "-P", HERE / "check.py", models], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{python} broke off:\n{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line.pop("model"): line for line in lines}


def main(versions: list[str]) -> int:
    """Prints the table, and returns the number of failures."""
    pythons = {version: environment(version) for version in versions}
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch)
        make_models.main(models)
        found = {version: check(python, models) for version, python in pythons.items()}
        names = sorted(path.stem for path in models.glob("*.safetensors"))
    print(f"{'largest difference of embeddings':34}", *(f"{version:>10}" for version in versions))
    failures = []
    for name in names:
        cells = []
        for version in versions:
            line = found[version][name]
            counted = ("difference",) if version in STRIPS else ("difference", "edges")
            largest = (
                max((line[key] for key in counted), default=0.0) if "error" not in line else float("inf")
            )
            cells.append("fails" if "error" in line else f"{largest:.1e}")
            if not largest <= TOLERANCE:
                failures.append(f"{name} in {version}: {line.get('error', f'differs by {largest:.1e}')}")
        print(f"{name:34}", *(f"{cell:>10}" for cell in cells))
    for version in sorted(STRIPS & set(versions)):
        largest = max(line.get("edges", 0.0) for line in found[version].values())
        print(
            f"not counted: {version} strips texts; those with white space at an end differ by {largest:.1e}"
        )
    print(*failures, sep="\n", end="\n" if failures else "")
    return len(failures)


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:] or list(VERSIONS))))
