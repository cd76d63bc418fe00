"""What `make compat` runs: exports loaded by older and newer sentence-transformers, without stzoo.

    python tests/compat/run.py [VERSION …]

makes an environment for each version in .compat/ (once, some minutes each), exports the models of
make_models.py, compares the embeddings that each has in each environment with those of the exporting process,
prints a table, and ends with 1 if any differ by more than 1e-6 or a model does not load.

The version "onnx" is sentence-transformers with its ONNX backend, and LangChain beside it. Neither goes with
what stzoo itself needs, so the code of docs/guides/serve.md for them is run there as well, see serve.py.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import make_models
import serve

from stzoo.testing import tiny_masked_lm
from stzoo.utils.logging import no_progress_bars, silence_hf_logging

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".compat"
TOLERANCE = 1e-6
# each with the newest transformers that it takes
VERSIONS = {
    "5.1.2": ["sentence-transformers==5.1.2", "transformers==4.57.6"],
    "5.7.0": ["sentence-transformers==5.7.0", "transformers==5.23.0"],
    "6.2.0": ["sentence-transformers==6.2.0", "transformers==5.23.0"],
    "onnx": [
        *("sentence-transformers==5.7.0", "transformers==4.57.6"),
        *("optimum-onnx[onnxruntime]==0.1.0", "langchain-huggingface==1.2.3"),
    ],
}
STRIPS = {"5.1.2"}  # before 5.4, white space at the ends of a text is cut off, whatever a model folder says
NOT_ONNX = {  # limits of optimum-onnx 0.1.0
    "bert-bfloat16": "it knows no torch_dtype, which folders in half precision ask for",
    "bert-layers-cnn": "it gives the last layer only, and the pooling over layers is skipped without a word",
    "llama-lasttoken": "it leaves out the positions that its own export asks for",
    "t5-slow-tokenizer": "it asks an encoder for the decoder's input",
}


def environment(version: str) -> Path:
    """The interpreter of the environment of a version; made if it is not there."""
    folder = ENVIRONMENTS / f"st-{version}"
    wanted = ["torch==2.13.0", *VERSIONS[version]]
    marker = folder / "made.json"  # written last
    if not marker.exists() or json.loads(marker.read_text()) != wanted:
        print(f"making {folder.name} …", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", *wanted], check=True)
        marker.write_text(json.dumps(wanted))
    return folder / "bin" / "python"


def lines(python: Path, script: str, *words: str | Path) -> list[dict]:
    """The lines of JSON that a script of this folder prints under this interpreter."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [python, "-P", HERE / script, *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{python} failed on {script}:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main(versions: list[str]) -> int:
    """Prints the table, and returns the number of failures."""
    pythons = {version: environment(version) for version in versions}
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch)
        make_models.main(models)
        found = {}
        for version, python in pythons.items():
            backend = ["onnx"] * (version == "onnx")
            said = lines(python, "check.py", models, *backend)
            found[version] = {line.pop("model"): line for line in said}
        served = []
        if "onnx" in pythons:
            serve.make(models / "served", tiny_masked_lm("bert", models / "base"))
            served = lines(pythons["onnx"], "serve.py", models / "served", *serve.ELSEWHERE)
        names = sorted(path.stem for path in models.glob("*.safetensors"))
    print(f"{'largest difference of embeddings':34}", *(f"{version:>10}" for version in versions))
    failures = []
    for name in names:
        cells = []
        for version in versions:
            line = found[version][name]
            if version == "onnx" and name in NOT_ONNX:
                cells.append("-")
                continue
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
    for name, line in found.get("onnx", {}).items():
        if "int8" in line:
            print(f"not counted: embeddings of {name} in int8 differ by {line['int8']:.1e}")
    for name, reason in NOT_ONNX.items() if "onnx" in versions else ():
        print(f"not counted: optimum-onnx cannot run {name}: {reason}")
    for line in served:
        text = f"{line['difference']:.1e}" if "difference" in line else line["error"]
        print(f"code of the guide, {line['code']} with {line['model']}: {text}")
        if not line.get("difference", float("inf")) <= TOLERANCE:
            failures.append(f"the guide's code for {line['code']} fails with {line['model']}")
    print(*failures, sep="\n", end="\n" if failures else "")
    return len(failures)


if __name__ == "__main__":
    with silence_hf_logging(), no_progress_bars():
        failures = main(sys.argv[1:] or list(VERSIONS))
    sys.exit(min(1, failures))
