"""The check of a pre-training objective: requirements of the trainer, and faults that raise no error."""

import copy
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stzoo.plugins import builders
from stzoo.plugins.hookspecs import Component
from stzoo.pretraining.objective import Objective
from stzoo.testing.tiny_models import TEXTS, sentences, tiny_backbone
from stzoo.testing.torch_modes import Hits, Sight, WithoutDropout
from stzoo.training.batches import split_views

WORDS = sorted({word.strip(".,").lower() for word in " ".join(TEXTS).split()})
# With BERT's 0.02, a model of 32 dimensions would not learn within some hundred steps.
LINEAR_STD, EMBEDDING_STD = 0.08, 0.3
LEARNING_RATE = 1e-2
ROWS = 16  # rows in a batch of random words
WINDOW = 50  # number of last steps over which accuracies are computed
LEAK = 0.25  # accuracy on random words; sound objectives reach up to 0.15, most leaks 0.5 to 1.0
Batch = dict[str, dict[str, Any]]  # tensors by view


class Bench:
    """Builds the same objective on a tiny model as often as needed."""

    def __init__(self, component: Component, family: str, options: Mapping[str, Any]):
        self.what, self.options = f"objective {component.name!r}", dict(options)
        self.build = builders.resolve(component)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone = tiny_backbone(family)
        self.backbone.config.initializer_range = LINEAR_STD  # decoders read it from here
        scaled: set[int] = set()
        for kind, std in ((nn.Embedding, EMBEDDING_STD), (nn.Linear, LINEAR_STD)):
            for module in self.backbone.modules():
                if isinstance(module, kind) and id(module.weight) not in scaled:  # the head is often tied
                    scaled.add(id(module.weight))
                    module.weight.data.mul_(std / 0.02)

    def make(self) -> Objective:
        """Builds the objective, with new parts and in training mode."""
        torch.manual_seed(0)
        objective = builders.call(self.what, self.build, copy.deepcopy(self.backbone), **self.options)
        assert isinstance(objective, Objective), (
            f"build returned {type(objective).__name__}; expected a subclass of stzoo.Objective"
        )
        return objective.train()


class _Row(dict[str, Any]):
    """A row with the declared columns; reading any other column is a fault."""

    def __missing__(self, name: str) -> Any:
        raise AssertionError(
            f"texts() or collate() reads the column {name!r}, which the objective does not declare; name it "
            "and its type in `columns`"
        )

    def get(self, name: str, _: Any = None) -> Any:
        return self[name]


def _rows(objective: Objective, make: Any, count: int) -> list[dict[str, Any]]:
    """Rows with `text` and all declared columns; `make` returns a text."""
    fill = {str: make, list[str]: lambda: [make(), make()]}
    return [
        _Row(id=str(n), text=make(), **{name: fill[kind]() for name, kind in objective.columns.items()})
        for n in range(count)
    ]


def _collated(objective: Objective, make: Any, count: int) -> Batch:
    """A batch of so many rows, as the trainer passes it to the objective."""
    batch = objective.collate(_rows(objective, make, count))
    views: Batch = split_views(batch)
    assert views, f"collate() returns no tensor whose name ends in _input_ids: {sorted(batch)}"
    return views


def _batch(objective: Objective) -> Batch:
    """A batch of eight texts of different lengths."""
    texts = iter(sentences(100))
    return _collated(objective, lambda: next(texts), 8)


def _tensors_of(views: Any) -> list[Tensor]:
    if isinstance(views, Tensor):
        return [views]
    parts = views.values() if isinstance(views, Mapping) else views
    return (
        [t for part in parts for t in _tensors_of(part)] if isinstance(views, (Mapping, list, tuple)) else []
    )


@contextmanager
def _no_draws(where: str, *, torch_too: bool) -> Iterator[None]:
    def states() -> dict[str, Any]:
        numpys = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
        states = {"Python's random": random.getstate(), "numpy's random": numpys}
        return states | ({"torch's generator": torch.get_rng_state().numpy().tobytes()} if torch_too else {})

    before = states()
    yield
    drew = [name for name, state in states().items() if state != before[name]]
    assert not drew, (
        f"{where} draws from {' and '.join(drew)}; make every random choice in make_views(), from torch's "
        "generator, or a resumed run makes other choices"
    )


def check_draws(bench: Bench) -> None:
    """Checks that random choices are made in make_views() only, and from torch's generator only."""
    objective = bench.make()
    with _no_draws("collate()", torch_too=True):
        batch = _batch(objective)
    state, before = _copy(objective), _attributes(objective)
    torch.manual_seed(1)
    with _no_draws("make_views()", torch_too=False):
        drawn = objective.make_views(batch)
    with _no_draws("losses()", torch_too=False):  # dropout draws from torch's
        first = objective.losses(**drawn)
    with WithoutDropout(), _no_draws("losses()", torch_too=True):
        objective.losses(**drawn)
    _restore(objective, state)
    torch.manual_seed(1)
    again = objective.make_views(batch)
    one, other = _tensors_of(drawn), _tensors_of(again)
    same = len(one) == len(other) and all(map(torch.equal, one, other))
    assert same, f"make_views() returns other views {_why(objective, before)}"
    second = objective.losses(**again)
    differing = ", ".join(name for name, loss in first.items() if not torch.equal(loss, second[name]))
    assert not differing, f"losses() returns other values of {differing} {_why(objective, before)}"


def _why(objective: Objective, before: Mapping[str, Any]) -> str:
    now = _attributes(objective)
    changed = ", ".join(f"self.{path}" for path in sorted(now) if now[path] != before.get(path))
    return (
        "for the same seed of torch's generator: it draws from another generator, or depends on state that "
        f"checkpoints do not keep (it changed {changed or 'no attribute'}); register such state as a buffer"
    )


def check_losses(bench: Bench) -> None:
    """Checks that losses are finite named scalars, and train all parameters of encoder and objective."""
    objective = bench.make()
    losses = objective(_batch(objective))
    required = {name for name, weight in objective.weights.items() if weight}
    assert required <= set(losses) <= set(objective.weights), (
        f"losses() returns {sorted(losses)}; `weights` has {sorted(objective.weights)}"
    )
    for name, loss in losses.items():
        assert re.fullmatch(r"[a-z][a-z0-9-]*", name), f"loss name {name!r} is not kebab-case"
        assert loss.shape == (), f"the loss {name} has the shape {list(loss.shape)}; expected a scalar"
        assert torch.isfinite(loss), f"the loss {name} is {loss}"
    total = _total(objective, losses)
    assert total.requires_grad, "no loss has a gradient"
    total.backward()
    untrained = sorted(n for n, p in _own(objective).items() if p.requires_grad and p.grad is None)
    assert not untrained, f"parameters without a gradient: {', '.join(untrained)}"
    assert any(p.grad is not None and p.grad.any() for p in objective.model.parameters()), (
        "no loss trains the encoder"
    )
    odd = [n for n, p in objective.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not odd, f"gradients that are not finite: {', '.join(odd)}"
    assert all(0 <= share <= 1 for share in objective.accuracies().values()), "an accuracy is not in 0..1"


def check_bottleneck(bench: Bench) -> None:
    """Checks that each loss, except the encoder's own, trains the bottleneck."""
    objective = bench.make()
    tokens: list[Tensor] = []
    vectors: list[Tensor] = []

    def cut(_: Any, __: Any, read: dict[str, Any]) -> dict[str, Any]:
        # leaves, so that gradients of the token vectors do not pass through the sentence vector
        for name, leaves in (("token_embeddings", tokens), ("sentence_embedding", vectors)):
            read[name] = read[name].detach().requires_grad_()
            leaves.append(read[name])
        return read

    handle = objective.model.register_forward_hook(cut)
    losses = objective(_batch(objective))
    handle.remove()
    assert vectors, "the objective never runs its encoder; call self.encode(ids, attention)"
    own = [p for p in _own(objective).values() if p.requires_grad]
    trained = False
    for name, loss in losses.items():
        at_vector, at_tokens, at_own = (_reached(loss, parts) for parts in (vectors, tokens, own))
        encoders_own = at_tokens and not at_own
        exempt = name in objective.without_bottleneck
        trained |= at_vector or exempt
        assert at_vector or encoders_own or exempt, (
            f"the loss {name!r} sends no gradient to the bottleneck, the vector that self.encode returns: it "
            "does not use it, or detaches it. If that is intended, name the loss in `without_bottleneck`"
        )
    assert trained, (
        "no loss sends a gradient to the bottleneck, the vector that self.encode returns and that a "
        "retriever uses. If that is intended, name a loss in `without_bottleneck`"
    )


def _reached(loss: Tensor, parts: list[Any]) -> bool:
    if not (loss.requires_grad and parts):
        return False
    gradients = torch.autograd.grad(loss, parts, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def check_padding(bench: Bench) -> None:
    """Checks that the content of padding changes no loss."""
    objective = bench.make()
    tokenizer = objective.backbone.tokenizer
    torch.manual_seed(1)
    drawn = objective.make_views(_batch(objective))

    def disturb(_: Any, args: Any, embedded: Tensor) -> Tensor:
        # only at the end of a row: the random token that replaces a masked one may also be [PAD]
        padding = (args[0] == tokenizer.pad_token_id).flip(-1).cumprod(-1).flip(-1).bool().unsqueeze(-1)
        return torch.where(padding, 10 * torch.randn_like(embedded), embedded)

    def run() -> tuple[dict[str, Tensor], list[Tensor]]:
        vectors: list[Tensor] = []
        handle = objective.model.register_forward_hook(
            lambda _, __, read: vectors.append(read["sentence_embedding"])
        )
        torch.manual_seed(1)
        with torch.no_grad(), WithoutDropout():
            losses = objective.losses(**drawn)
        handle.remove()
        return losses, vectors

    state = _copy(objective)
    losses, vectors = run()
    _restore(objective, state)
    handles = [module.register_forward_hook(disturb) for module in _word_embeddings(objective)]
    losses_then, vectors_then = run()
    for handle in handles:
        handle.remove()

    def differ(one: Tensor, other: Tensor) -> bool:
        return not torch.allclose(one, other, rtol=1e-4, atol=1e-5)

    changed = [f"the loss {name}" for name in losses if differ(losses[name], losses_then[name])]
    if any(map(differ, vectors, vectors_then)):
        changed.append("the bottleneck")
    assert not changed, (
        f"padding changes {' and '.join(changed)}; exclude it from attention, means and labels "
        "(attention_mask is 0 there)"
    )


def _word_embeddings(objective: Objective) -> list[nn.Module]:
    rows = len(objective.backbone.tokenizer)
    return [m for m in objective.modules() if isinstance(m, nn.Embedding) and m.num_embeddings >= rows]


def check_fit(bench: Bench) -> None:
    """Checks that the sum of the losses falls by 1% within 30 steps on one batch with the same choices."""
    objective = bench.make()
    batch = _batch(objective)
    optimiser = torch.optim.Adam(objective.parameters(), 1e-3)
    totals: list[float] = []
    for _ in range(30):
        torch.manual_seed(1)
        totals.append(_step(objective, batch, optimiser))
        if totals[-1] < totals[0] - 0.01 * abs(totals[0]):
            return
    raise AssertionError(
        f"30 steps on one batch changed the sum of the losses from {totals[0]:.3f} to {totals[-1]:.3f} only"
    )


def check_resume(bench: Bench) -> None:
    """Checks that all state is in parameters and persistent buffers, which checkpoints keep."""

    def behave(objective: Objective) -> dict[str, Tensor]:
        torch.manual_seed(1)
        with torch.no_grad(), WithoutDropout():
            return {name: loss.clone() for name, loss in objective(_batch(objective)).items()}

    objective = bench.make()
    before = _attributes(objective)
    optimiser = torch.optim.Adam(objective.parameters(), 1e-3)
    for _ in range(3):
        _step(objective, _batch(objective), optimiser)
    state = _copy(objective)
    numbers = {key: v for key, v in _attributes(objective).items() if v != before.get(key)}
    named = ", ".join(f"self.{path}" for path in sorted(numbers)) or "an attribute"
    fault = (
        "a resumed run would have other losses than an uninterrupted one: {} must be a registered buffer, "
        "which checkpoints keep"
    )
    expected = behave(objective)
    resumed = bench.make()
    _restore(resumed, state)
    actual = behave(resumed)
    assert all(torch.allclose(expected[n], actual[n], rtol=1e-5) for n in expected), fault.format(named)
    for path, value in numbers.items():  # the effect of a counter may show only after many steps
        if isinstance(value, (int, float)):
            owner, _, name = path.rpartition(".")
            outcome = []
            for far in (value, 1000 * value + 1):
                other = bench.make()
                _restore(other, state)
                setattr(other.get_submodule(owner), name, far)
                outcome.append(behave(other))
            same = all(torch.allclose(outcome[0][n], outcome[1][n], rtol=1e-5) for n in expected)
            assert same, fault.format(f"self.{path}")


def _attributes(objective: Objective) -> dict[str, Any]:
    """Attributes of the objective's modules that checkpoints do not keep: numbers, and others as text."""
    attributes = {}
    for path, module in objective.named_modules():
        if path.split(".")[0] != "backbone":
            lost = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
            for name, value in (vars(module) | lost).items():
                if name not in vars(nn.Module()) and name not in ("log_sums", "frozen"):
                    plain = type(value) in (int, float)
                    attributes[f"{path}.{name}".lstrip(".")] = value if plain else repr(value)
    return attributes


def check_sight(bench: Bench) -> None:
    """Checks that the prediction of a word does not see it, apart from the few that masking keeps."""
    objective = bench.make()
    rng = random.Random(0)  # noqa: S311 - no secret
    batch = _collated(objective, lambda: _random_text(rng), ROWS)
    torch.manual_seed(1)
    drawn = objective.make_views(batch)
    sight = Sight(objective, batch)

    def embed(_: Any, args: Any, embedded: Tensor) -> Tensor:
        leaf = embedded.detach().requires_grad_()
        sight.embedded.append((args[0], leaf))
        return leaf

    def cut(_: Any, __: Any, read: dict[str, Any]) -> dict[str, Any]:
        return read | {"sentence_embedding": read["sentence_embedding"].detach()}

    handles = [module.register_forward_hook(embed) for module in _word_embeddings(objective)]
    handles.append(objective.model.register_forward_hook(cut))
    with sight:
        objective.losses(**drawn)
    for handle in handles:
        handle.remove()
    exempt = {f"the loss {name!r}" for name in objective.without_bottleneck}
    seen = [
        f"{name} sees {hits / of:.0%}"
        for name, (hits, of) in sight.counts.items()
        if hits > LEAK * of and name not in exempt
    ]
    assert not seen, (
        f"{' and '.join(seen)} of the words that it predicts, without the bottleneck: hide them in the "
        "encoder's text, in the decoder's text, or (in enhanced decoding) from their own row"
    )


def _random_text(rng: random.Random) -> str:
    """A few different words in random order."""
    return " ".join(rng.sample(WORDS, rng.randint(3, 8)))


def check_leaks(bench: Bench, steps: int) -> None:
    """Trains on random words, of which only frequencies can be learnt, so a high accuracy is a leak."""
    objective = bench.make()
    hits = Hits(objective)
    rng = random.Random(0)  # noqa: S311 - no secret
    optimiser = torch.optim.Adam(objective.parameters(), LEARNING_RATE)
    accuracies: dict[str, float] = {}
    for step in range(1, steps + 1):
        batch = _collated(objective, lambda: _random_text(rng), ROWS)
        with hits:
            _step(objective, batch, optimiser)
        if not hits.counts:
            return  # it predicts no words
        if step % WINDOW == 0:
            accuracies = hits.accuracies()
            if max(accuracies.values()) > LEAK:
                break
    leaks = [f"{name} predicts {share:.0%}" for name, share in accuracies.items() if share > LEAK]
    assert not leaks, (
        f"{' and '.join(leaks)} of its words in texts of random words, which cannot be predicted: the "
        "encoder or the decoder sees its targets (the labels, or text that should be hidden)"
    )


def _step(objective: Objective, batch: Batch, optimiser: Any) -> float:
    optimiser.zero_grad()
    total = _total(objective, objective(batch))
    total.backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimiser.step()
    return float(total.detach())


def _total(objective: Objective, losses: Mapping[str, Tensor]) -> Tensor:
    """The total loss, as in the trainer."""
    return torch.stack([objective.weights[name] * loss for name, loss in losses.items()]).sum()


def _own(objective: Objective) -> dict[str, Tensor]:
    """The parameters that do not belong to the backbone."""
    backbone = {id(p) for p in objective.backbone.parameters()}
    return {n: p for n, p in objective.named_parameters() if id(p) not in backbone}


def _state(objective: Objective) -> dict[str, Tensor]:
    """The tensors that the trainer writes to a checkpoint."""
    persistent = set(objective.state_dict())
    named = [*objective.named_parameters(), *objective.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if name in persistent}


def _copy(objective: Objective) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in _state(objective).items()}


def _restore(objective: Objective, state: Mapping[str, Tensor]) -> None:
    for name, tensor in _state(objective).items():
        tensor.copy_(state[name])
