"""Compares an objective, TACO's updates, or the scores of KILT, with the numbers of their authors' own code.

    python tests/parity/check.py FILE [--tolerance X]

FILE.safetensors holds random weights, inputs, losses and gradients (see README.md beside this file). Prints
"max relative error: X", the largest over the total loss, each named loss, the bottleneck and the gradient of
every parameter, each relative to the tensor's largest entry; exit code 1 above the tolerance (1e-5). Of TACO,
a file has the batches of a small model's steps instead, the gradient that each step leaves, and the last
sensitivities.

FILE.json holds KILT's gold and guess and how they score. Prints "max absolute error: X", the largest over all
means and scores of questions that the file has; exit code 1 above the tolerance (1e-9).
"""

import argparse
import ast
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from stzoo import Objective
from stzoo.data import kilt
from stzoo.evaluation import kilt as kilt_scoring
from stzoo.finetuning.balancers import Balancing, Gradients
from stzoo.plugins import manager
from stzoo.pretraining.pretrain import load_base

LOSSES = {"encoder_mlm_loss": "encoder", "decoder_mlm_loss": "decoder", "bow_loss": "bag"}
# MASTER's decoders, and the prefixes of the inputs to its passes and decoders
HEADS = {
    "passage": "c_head",
    "query": "query_head",
    "continuation": "gpt_head",
    "neighbour": "next_head",
    "complement": "overlap_head",
}
VIEWS = {
    "encoder": "",
    "encoder-neighbour": "next_encoder_",
    "encoder-complement": "overlap_encoder_",
    "passage": "decoder_",
    "query": "query_",
    "continuation": "gpt_",
    "neighbour": "next_decoder_",
    "complement": "overlap_decoder_",
}


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a parity file."""
    with safe_open(path, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def kind_of(tensors: dict[str, torch.Tensor]) -> str:
    """The objective whose numbers these are, told by its inputs."""
    if any(name.startswith("param.query_head") for name in tensors):
        return "master"
    return "dupmae" if "input.bow_weight" in tensors else "retromae"


def build(kind: str, about: dict[str, str], weights: dict[str, torch.Tensor], folder: Path) -> Objective:
    """Our objective with the file's weights, through the same door as any base model."""
    config = json.loads(about["config"])
    masked_lm = BertForMaskedLM(BertConfig(**config))
    # tied weights stand in the file once
    missing, unexpected = masked_lm.load_state_dict(part(weights, "lm."), strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("cls.predictions.decoder.") for name in missing), missing
    masked_lm.tie_weights()
    masked_lm.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{number}" for number in range(len(words), masked_lm.config.vocab_size)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), words, strict=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(named)).save_pretrained(folder)

    options = {"layers": int(about["decoder_layers"])} if kind == "master" else {}
    objective = manager.build("objective", kind, load_base(str(folder)).backbone, **options)
    for prefix, layers in decoders(objective).items():
        layers.load_state_dict(part(weights, prefix))
    return objective.eval()


def decoders(objective: Objective) -> dict[str, torch.nn.Module]:
    """Our decoders' layers by the authors' prefix."""
    if hasattr(objective, "heads"):
        return {f"{theirs}.": objective.heads[ours].layers for ours, theirs in HEADS.items()}
    return {"c_head.": objective.head.layers[0]}


class MasterView(NamedTuple):
    """A text as MASTER's losses take it."""

    ids: torch.Tensor
    labels: torch.Tensor
    attention: torch.Tensor


def ours(objective: Objective, inputs: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The losses by name."""
    if kind == "master":
        shared = inputs["attention_mask"].bool()
        return objective.losses(
            **{
                name: MasterView(
                    inputs[f"{prefix}input_ids"],
                    inputs[f"{prefix}labels"],
                    inputs.get(f"{prefix}attention_mask", shared).bool(),
                )
                for name, prefix in VIEWS.items()
            }
        )
    views = {
        "encoder_ids": inputs["encoder_input_ids"],
        "encoder_labels": inputs["encoder_labels"],
        "attention": inputs["attention_mask"].bool(),
        "decoder_ids": inputs["input_ids"],
        "decoder_labels": inputs["decoder_labels"],
        "visible": inputs["decoder_visibility"].bool(),
    }
    if kind == "dupmae":
        views["bag"] = inputs["bow_weight"]
    return objective.losses(**views)


def gradients(objective: Objective) -> dict[str, torch.Tensor | None]:
    """Our gradients under the authors' names."""
    found = {f"lm.{name}": p.grad for name, p in objective.backbone.masked_lm.named_parameters()}
    for prefix, layers in decoders(objective).items():
        found |= {f"{prefix}{name}": p.grad for name, p in layers.named_parameters()}
    return found


def errors(path: Path) -> dict[str, float]:
    """The relative error of each figure in the file."""
    tensors, about = read(path)
    if "tau" in about:
        return taco_errors(tensors, about)
    kind = kind_of(tensors)
    inputs = part(tensors, "input.")
    with tempfile.TemporaryDirectory() as folder:
        objective = build(kind, about, part(tensors, "param."), Path(folder))
    if kind == "dupmae":
        objective.weigh({"bag": float(about["bow_loss_weight"])})
    losses = ours(objective, inputs, kind)
    total = sum(objective.weights[name] * loss for name, loss in losses.items())
    total.backward()

    found = {"loss": relative(total, float(about["loss"]))}
    for key, expected in about.items():  # what the authors' code returned by name
        if key.endswith("_loss"):
            found[key] = relative(losses[LOSSES[key]], float(expected))
    for name, expected in json.loads(about.get("decoder_losses", "{}")).items():
        found[f"loss {name}"] = relative(losses[name], expected)
    if "cls" in tensors:
        with torch.no_grad():
            _, h = objective.encode(inputs["encoder_input_ids"], inputs["attention_mask"].bool())
        found["bottleneck"] = relative(h, tensors["cls"])

    theirs, mine = part(tensors, "grad."), gradients(objective)
    unknown = theirs.keys() - mine.keys()
    assert not unknown, f"parameters that ours does not have: {sorted(unknown)}"
    for name, gradient in mine.items():
        if name in theirs:
            # A key's bias moves all scores of a row alike, so its gradient is 0 but for rounding; it is
            # measured against the gradient of the key's weights.
            scale = theirs[name.replace("key.bias", "key.weight")]
            found[f"gradient {name}"] = relative(gradient, theirs[name], scale)
        else:  # theirs has none
            assert gradient is None or not gradient.any(), f"{name} has a gradient here and none there"
    return found


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
            Balancing(tasks, gradients.rows.shape[1], steps),
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
                gradients.give(balancer(gradients.rows, losses, gradients.values()))
                for name, parameter in zip(names, parameters, strict=True):
                    place = f"step{step}.grad.{name}"
                    found[f"{variant} {place}"] = relative(parameter.grad, theirs[place])
                    parameter -= rate * parameter.grad
        for name, parameter in zip(names, parameters, strict=True):
            found[f"{variant} final.{name}"] = relative(parameter, theirs[f"final.{name}"])
        found[f"{variant} sensitivity"] = relative(balancer.sensitivity, theirs["sensitivity"])
    return found | default_taco_errors(tensors, about)


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
    about_run = Balancing(tasks, gradients.rows.shape[1], steps)
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
            gradients.give(update.clone())
            rate, offset = float(about["lr"]), 0
            for parameter, twin in zip(parameters, exact_parameters, strict=True):
                parameter -= rate * parameter.grad
                twin -= rate * expected[offset : offset + twin.numel()].view_as(twin)
                offset += twin.numel()
    found["default sensitivity"] = relative(balancer.sensitivity, average)
    return found


def relative(value: torch.Tensor | None, expected: Any, scale: torch.Tensor | None = None) -> float:
    """The largest difference, relative to the largest entry of `scale`, or of what is expected."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    scale = expected if scale is None else scale.double()
    value = torch.zeros_like(expected) if value is None else value.detach().double()
    if not torch.isfinite(value).all():
        return float("inf")
    assert value.shape == expected.shape, f"{list(value.shape)} against {list(expected.shape)}"
    return ((value - expected).abs().max() / scale.abs().max().clamp(min=1e-12)).item()


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
