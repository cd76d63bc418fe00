"""The losses and gradients are those of the authors' own code, and the check can fail."""

import runpy
from pathlib import Path

import pytest

from stzoo.testing.parity import read

HERE = Path(__file__).with_name("parity")
errors = runpy.run_path(str(HERE / "figures.py"))["errors"]

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


@pytest.mark.parametrize("path", sorted(HERE.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_figures_are_those_of_the_authors(path):
    assert max(errors(*read(path)).values()) < 1e-5


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", sorted(HERE.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_check_notices(path, change):
    tensors, about = read(path)
    CHANGES[change](tensors)
    assert max(errors(tensors, about).values()) > 1e-5
