import pytest
import torch
from stzoo_retromae.bag_of_words import bag_of_words_loss


def plain_loss(hidden, scored, bag, weight, bias):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    best = logits.masked_fill(~scored.unsqueeze(2), torch.finfo(logits.dtype).min).max(1).values
    return -(bag * best.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients_are_those_of_all_scores(with_bias):
    torch.manual_seed(0)
    hidden = torch.randn(4, 9, 6, requires_grad=True)
    weight = torch.randn(31, 6, requires_grad=True)
    bias = torch.randn(31, requires_grad=True) if with_bias else None
    scored = torch.rand(4, 9) < 0.7
    scored[2] = False  # a passage without a scored token
    bag = torch.rand(4, 31)
    bag = bag / bag.sum(1, keepdim=True)
    inputs = [hidden, weight] + ([bias] if with_bias else [])
    one, other = (
        bag_of_words_loss(hidden, scored, bag, weight, bias),
        plain_loss(hidden, scored, bag, weight, bias),
    )
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.autograd.grad(3 * one, inputs), torch.autograd.grad(3 * other, inputs))
