import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stzoo.pretraining import vocabulary_loss
from stzoo.pretraining.vocabulary_loss import vocabulary_losses


def case(sizes, width, vocabulary, bias):
    count = sum(sizes)
    hidden = torch.randn(count, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    offset = torch.randn(vocabulary, requires_grad=True) if bias else None
    return hidden, torch.randint(vocabulary, (count,)), list(sizes), weight, offset


def plain_losses(hidden, targets, sizes, weight, bias):
    logits = functional.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    parts = zip(logits.split(sizes), targets.split(sizes), strict=True)
    return [functional.cross_entropy(s, t, reduction="sum") / max(len(t), 1) for s, t in parts]


def gradients(losses, factors, inputs):
    total = sum(factor * loss for factor, loss in zip(factors, losses, strict=True))
    return torch.autograd.grad(total, [one for one in inputs if one is not None])


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(2, 40),
    st.booleans(),
    st.integers(1, 200),
    st.lists(st.floats(0.1, 4), min_size=4, max_size=4),
    st.booleans(),
)
def test_losses_and_gradients_are_those_of_plain_cross_entropy(
    sizes, width, vocabulary, bias, chunk, factors, known
):
    factors = factors[: len(sizes)]
    inputs = case(sizes, width, vocabulary, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_loss, "CHUNK", chunk)
        losses, hits = vocabulary_losses(*inputs, scales=factors if known else None)
        got = gradients(losses, factors, (inputs[0], *inputs[3:]))
    expected = plain_losses(*inputs)
    for loss, other in zip(losses, expected, strict=True):
        torch.testing.assert_close(loss, other.float(), rtol=1e-6, atol=2e-6)
    for one, other in zip(got, gradients(expected, factors, (inputs[0], *inputs[3:])), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    best = functional.linear(inputs[0], inputs[3], inputs[4]).argmax(1) == inputs[1]
    assert [int(hit) for hit in hits] == [int(part.sum()) for part in best.split(sizes)]


def test_a_target_whose_probability_is_0_in_float32_has_a_finite_loss():
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [500.0]], requires_grad=True)
    losses, hits = vocabulary_losses(hidden, torch.tensor([0]), [1], weight)
    assert float(losses[0].detach()) == 500
    assert int(hits[0]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_products_are_narrow_and_sums_are_float32(dtype):
    torch.manual_seed(0)
    inputs = case((300, 40), 32, 500, True)
    with torch.autocast("cpu", dtype):
        losses, _ = vocabulary_losses(*inputs)
    got = gradients(losses, (1, 1), (inputs[0], *inputs[3:]))
    expected = plain_losses(*inputs)
    for loss, other in zip(losses, expected, strict=True):
        assert loss.dtype == torch.float32
        assert float(loss.detach()) == pytest.approx(float(other.detach()), rel=5e-3)
    for one, other in zip(got, gradients(expected, (1, 1), (inputs[0], *inputs[3:])), strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


def test_without_a_gradient_no_gradient_is_computed():
    inputs = case((5,), 4, 9, True)
    with torch.no_grad():
        losses, _ = vocabulary_losses(*inputs)
    assert not losses[0].requires_grad
    hidden, targets, sizes, weight, bias = inputs
    losses, _ = vocabulary_losses(hidden, targets, sizes, weight.detach(), bias.detach())
    torch.testing.assert_close(
        torch.autograd.grad(losses[0], hidden), torch.autograd.grad(plain_losses(*inputs)[0], hidden)
    )
