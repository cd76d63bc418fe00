"""The figures of TACO's authors in a parity file: the batches of a small model's steps, the gradient that
each step leaves, and the last sensitivities.
"""

import ast

import torch

from stzoo.finetuning.balancers import BalancerContext, Gradients
from stzoo.plugins import manager
from stzoo.testing.parity import part, relative


def matches(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> bool:  # noqa: ARG001
    """True for a file of this form."""
    return "tau" in about


def errors(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> dict[str, float]:
    """The relative error of each figure."""
    return taco_errors(tensors, about) | default_taco_errors(tensors, about)


def layers(description: str) -> torch.nn.Sequential:
    """The model of "Sequential(Embedding(11,6), Tanh, …)"."""
    made = []
    for layer in ast.parse(description, mode="eval").body.args:
        name, sizes = (layer.func.id, layer.args) if isinstance(layer, ast.Call) else (layer.id, [])
        made.append(getattr(torch.nn, name)(*map(ast.literal_eval, sizes)))
    return torch.nn.Sequential(*made)


def taco_errors(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> dict[str, float]:
    """The relative error of each step's gradient, the last weights and sensitivities; both variants."""
    steps, rate = int(about["steps"]), float(about["lr"])
    found = {}
    for variant, when in (("normalised", "before"), ("raw", "after")):
        theirs = part(tensors, f"{variant}.")
        model = layers(about["model"])
        model.load_state_dict(part(theirs, "init."))
        names, parameters = zip(*model.named_parameters(), strict=True)
        tasks = tuple(str(task) for task in range(int(about["tasks"])))
        gradients = Gradients(parameters, len(tasks))
        balancer = manager.build(
            "balancer",
            "taco",
            BalancerContext(tasks, gradients.rows.shape[1], steps),
            beta=float(about["beta"]),
            tau=float(about["tau"]),
            warmup_ratio=float(about["warmup_ratio"]),
            normalise=when,
            median_over="all",
            scale="released",
        )
        for step in range(steps):
            gradients.rows.zero_()
            losses = torch.zeros(len(tasks))
            for number, task in enumerate(tasks):
                batch = part(theirs, f"step{step}.task{task}.")
                with gradients.row(number):
                    loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
                    loss.backward()
                losses[number] = loss.detach()
            with torch.no_grad():
                gradients.set_gradients(balancer(gradients.rows, losses, gradients.values()))
                for name, parameter in zip(names, parameters, strict=True):
                    place = f"step{step}.grad.{name}"
                    found[f"{variant} {place}"] = relative(parameter.grad, theirs[place])
                    parameter -= rate * parameter.grad
        for name, parameter in zip(names, parameters, strict=True):
            found[f"{variant} final.{name}"] = relative(parameter, theirs[f"final.{name}"])
        found[f"{variant} sensitivity"] = relative(balancer.sensitivity, theirs["sensitivity"])
    return found


def default_taco_errors(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> dict[str, float]:
    """The relative error of each step of TACO with its default options, on the same batches.

    The authors' code has no median over the entries that a gradient reaches and no `scale: sum`, so the
    reference is the formulas as they stand in stzoo_taco.py, in float64 and over all entries at once.
    """
    theirs, steps = part(tensors, "normalised."), int(about["steps"])
    beta, tau = float(about["beta"]), float(about["tau"])
    tasks = tuple(str(task) for task in range(int(about["tasks"])))
    model, exact = layers(about["model"]), layers(about["model"]).double()
    for one in (model, exact):
        one.load_state_dict(part(theirs, "init."))
    parameters, exact_parameters = list(model.parameters()), list(exact.parameters())
    gradients = Gradients(parameters, len(tasks))
    about_run = BalancerContext(tasks, gradients.rows.shape[1], steps)
    warmup = float(about["warmup_ratio"])
    balancer = manager.build("balancer", "taco", about_run, beta=beta, tau=tau, warmup_ratio=warmup)
    average, found = torch.zeros(gradients.rows.shape, dtype=torch.float64), {}
    for step in range(steps):
        gradients.rows.zero_()
        rows = []
        for number, task in enumerate(tasks):
            batch = part(theirs, f"step{step}.task{task}.")
            with gradients.row(number):
                torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"]).backward()
            x = batch["x"].double() if batch["x"].is_floating_point() else batch["x"]
            loss = torch.nn.functional.cross_entropy(exact(x), batch["y"])
            own = torch.autograd.grad(loss, exact_parameters, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in own]))
        stacked, flat = torch.stack(rows), torch.cat([p.detach().flatten() for p in exact_parameters])
        sensitivity = (stacked * flat).abs()
        medians = torch.stack([row[row > 0].median() for row in sensitivity])[:, None]
        average = beta * average + (1 - beta) * sensitivity / medians
        weights = (average / tau).softmax(0)
        expected = stacked.mean(0) if step < int(steps * warmup) else (weights * stacked).sum(0)
        with torch.no_grad():
            update = balancer(gradients.rows, torch.ones(len(tasks)), gradients.values())
            found[f"default step{step}"] = relative(update, expected)
            gradients.set_gradients(update.clone())
            rate, offset = float(about["lr"]), 0
            for parameter, twin in zip(parameters, exact_parameters, strict=True):
                parameter -= rate * parameter.grad
                twin -= rate * expected[offset : offset + twin.numel()].view_as(twin)
                offset += twin.numel()
    found["default sensitivity"] = relative(balancer.sensitivity, average)
    return found
