"""The objectives give the numbers of their authors' own code, and the check can fail."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

HERE = Path(__file__).with_name("parity")
FILES = sorted(HERE.glob("*.safetensors"))


def check(path, *words):
    command = [sys.executable, str(HERE / "check.py"), str(path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("max relative error: "))
    return done.returncode, float(line.removeprefix("max relative error: "))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_losses_and_gradients_are_those_of_the_authors(path):
    code, error = check(path)
    assert code == 0
    assert error < 1e-5
    assert check(path, "--tolerance", "1e-12") == (1, error)


# One thing at a time is made other than the authors' code has it; each must show.
CHANGES = {
    "a gradient": lambda tensors: tensors["grad.c_head.output.dense.weight"].mul_(1.001),
    "an attention weight": lambda tensors: tensors["param.c_head.attention.self.query.weight"].mul_(1.01),
    "the diagonal seen": lambda tensors: (
        tensors["input.decoder_visibility"].diagonal(dim1=1, dim2=2).fill_(1)
    ),
    "a label less": lambda tensors: tensors["input.decoder_labels"][0, 1].fill_(-100),
    "no number": lambda tensors: tensors["param.c_head.output.dense.bias"].fill_(float("nan")),
    "the bottleneck": lambda tensors: tensors["cls"].add_(0.01),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_check_notices(path, change, tmp_path):
    tensors = load_file(path)
    CHANGES[change](tensors)
    with safe_open(path, "pt") as opened:
        save_file(tensors, tmp_path / path.name, metadata=opened.metadata())
    code, error = check(tmp_path / path.name)
    assert code == 1
    assert error > 1e-5
