import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import stzoo
from stzoo import ModelError, RecipeError
from stzoo.finetuning.balancers import BalancerContext, Gradients, finite
from stzoo.plugins import manager
from stzoo.testing import check_balancer

THREE = BalancerContext(("a", "b", "c"), 50, steps=10)


@pytest.mark.parametrize("name", manager.all("balancer"))  # of every stzoo_balancers hook
def test_each_balancer_makes_an_update(name):
    check_balancer(manager.find("balancer", name))


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
def test_rows_hold_each_tasks_gradient(seed, tasks, rounds):
    net = model(seed)
    frozen = net[1].bias.requires_grad_(False)
    gradients = Gradients(list(net.parameters()), tasks)
    trained = [p for p in net.parameters() if p.requires_grad]
    assert gradients.rows.shape == (tasks, sum(p.numel() for p in trained))
    batches = torch.randint(0, 7, (tasks, rounds, 6))
    for task in range(tasks):
        for batch in batches[task]:  # several backward passes add up
            with gradients.row(task):
                net(batch).square().mean().backward()
    for task in range(tasks):
        total = sum(net(batch).square().mean() for batch in batches[task])
        expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, trained)])
        torch.testing.assert_close(gradients.rows[task], expected)
    assert all(p.grad is None for p in net.parameters())
    gradients.set_gradients(gradients.rows[0])
    assert frozen.grad is None
    assert trained[0].grad.data_ptr() == gradients.rows.data_ptr()  # no copy
    torch.testing.assert_close(gradients.values(), torch.cat([p.detach().reshape(-1) for p in trained]))


def test_gradients_that_are_dropped_on_the_way_are_an_error():
    net = model()
    gradients = Gradients(list(net.parameters()), 1)
    with pytest.raises(ModelError, match=r"5 of 5 gradients were replaced"), gradients.row(0):
        net.zero_grad()  # sets them to None, and backward makes others
        net(torch.arange(3)).sum().backward()


def test_nothing_to_train_is_an_error():
    net = model().requires_grad_(False)
    with pytest.raises(ModelError, match="all are frozen"):
        Gradients(list(net.parameters()), 2)


def test_parameters_of_several_kinds_are_an_error():
    with pytest.raises(ModelError, match=r"float16.*float32"):
        Gradients([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.float16))], 2)


def test_the_sum_is_the_mean_over_tasks():
    rows = torch.randn(3, 50)
    build = manager.build("balancer", "sum", THREE)
    expected = rows.mean(0)
    torch.testing.assert_close(build(rows.sum(0, keepdim=True), torch.ones(3), torch.empty(0)), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_gradient_that_is_not_finite_is_noticed(bad):
    rows = torch.zeros(3, 50)
    assert finite(rows)
    rows[2, 7] = bad
    assert not finite(rows)


def test_pcgrad_removes_what_conflicts():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 1.0])
    balancer = manager.build("balancer", "pcgrad", BalancerContext(("a", "b"), 2, 1))
    update = balancer(torch.stack([one, other]), torch.ones(2), torch.zeros(2))
    # each without its part along the other, and the mean of both
    expected = (one - (one @ other) / (other @ other) * other + other + 0.5 * one) / 2
    torch.testing.assert_close(update, expected)


def test_what_a_balancer_draws_depends_on_seed_and_step_alone():
    rows = torch.randn(4, 20, generator=torch.Generator().manual_seed(3))

    def updates(noise):
        balancer = manager.build("balancer", "pcgrad", BalancerContext(("a", "b", "c", "d"), 20, 9, seed=5))
        found = []
        for _ in range(6):
            torch.rand(noise)  # something else draws, too
            before = torch.random.get_rng_state()
            found.append(balancer(rows.clone(), torch.ones(4), torch.zeros(20)))
            assert torch.equal(torch.random.get_rng_state(), before)
        return torch.stack(found)

    assert torch.equal(updates(1), updates(7))
    assert len(updates(1).unique(dim=0)) > 1  # the order of projections is drawn anew each step


def test_an_unknown_balancer_lists_those_there_are():
    with pytest.raises(stzoo.UnknownNameError, match=r"did you mean 'pcgrad'|pcgrad"):
        manager.build("balancer", "pcgard", THREE)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("cagrad", {"c": -1.0}, "c must be non-negative"),
        ("cagrad", {"d": 1.0}, "d"),
        ("aligned-mtl", {"scale_mode": "most"}, "most|scale_mode"),
    ],
)
def test_wrong_options_of_a_balancer_are_errors(name, options, told):
    with pytest.raises(RecipeError, match=told):
        balancer = manager.build("balancer", name, THREE, **options)
        balancer(torch.randn(3, 50), torch.ones(3), torch.zeros(50))
