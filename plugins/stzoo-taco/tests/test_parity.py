"""TACO's updates are those of the authors' own code, and the check can fail."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from stzoo.testing.parity import read

HERE = Path(__file__).with_name("parity")
figures = runpy.run_path(str(HERE / "figures.py"))
errors, layers = figures["errors"], figures["layers"]


def exchange(tensors, one, other):
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


CHANGES = {
    "a gradient of a step": lambda tensors: tensors["raw.step5.grad.1.weight"].mul_(1.001),
    "a first weight": lambda tensors: tensors["normalised.init.3.weight"].mul_(1.01),
    "a last weight": lambda tensors: tensors["normalised.final.0.weight"].mul_(1.001),
    "another label": lambda tensors: tensors["raw.step0.task1.y"].add_(1).remainder_(5),
    "two tasks exchanged": lambda tensors: [
        exchange(tensors, f"normalised.step6.task0.{side}", f"normalised.step6.task1.{side}") for side in "xy"
    ],
    "a sensitivity": lambda tensors: tensors["normalised.sensitivity"][1].mul_(1.001),
    "no number": lambda tensors: tensors["raw.init.1.bias"].fill_(float("nan")),
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


def tacos_file(
    path, layers, *, description, tasks, classes, steps=6, beta=0.8, tau=1.5, warmup=0.4, rate=0.3
):
    """A file of TACO's form and another model, by the formulas as they stand, in float64."""
    tensors = {}
    for variant in ("normalised", "raw"):
        torch.manual_seed(tasks)
        model = layers(description)
        named = dict(model.named_parameters())
        tensors |= {f"{variant}.init.{name}": p.detach().clone() for name, p in named.items()}
        model.double()
        average = 0.0
        for step in range(steps):
            rows, weights = [], torch.cat([p.detach().flatten() for p in model.parameters()])
            for task in range(tasks):
                x, y = torch.randint(0, 7, (3 + task,)), torch.randint(0, classes, (3 + task,))
                tensors |= {f"{variant}.step{step}.task{task}.{side}": t for side, t in (("x", x), ("y", y))}
                loss = functional.cross_entropy(model(x), y)
                rows.append(
                    torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
                )
            gradients = torch.stack(rows)
            found = (weights * gradients).abs()
            if variant == "normalised":
                found = found / (found.median(1, keepdim=True)[0] + 1e-12)
            average = beta * average + (1 - beta) * found
            level = average
            if variant == "raw":
                level = average / (average.median(1, keepdim=True)[0] + 1e-12)
            shares = torch.ones_like(level) if step < int(steps * warmup) else (level / tau).softmax(0)
            update = (shares * gradients).sum(0) / tasks
            pieces = update.split([p.numel() for p in model.parameters()])
            with torch.no_grad():
                for (name, p), piece in zip(model.named_parameters(), pieces, strict=True):
                    tensors[f"{variant}.step{step}.grad.{name}"] = piece.view_as(p).float()
                    p -= rate * piece.view_as(p)
        tensors |= {f"{variant}.final.{n}": p.detach().float() for n, p in model.named_parameters()}
        tensors[f"{variant}.sensitivity"] = average.float()
    about = dict(
        tasks=tasks, steps=steps, lr=rate, model=description, tau=tau, beta=beta, warmup_ratio=warmup
    )
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, {n: str(v) for n, v in about.items()})


@pytest.mark.parametrize(
    ("description", "tasks", "classes"),
    [
        ("Sequential(Embedding(7,3), Linear(3,4), ReLU, Linear(4,2))", 5, 2),
        ("Sequential(Embedding(7,12), Linear(12,9))", 1, 9),
        ("Sequential(Embedding(7,5), Tanh, Linear(5,6), Tanh, Linear(6,6), ReLU, Linear(6,4))", 8, 4),
    ],
)
def test_taco_agrees_in_other_models_and_task_counts(description, tasks, classes, tmp_path):
    tacos_file(tmp_path / "other.safetensors", layers, description=description, tasks=tasks, classes=classes)
    # the file is of float64, which float32 is further from where a median is of few entries
    assert max(errors(*read(tmp_path / "other.safetensors")).values()) < 5e-5
