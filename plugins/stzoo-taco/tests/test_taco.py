"""TACO does what its paper says, its peers what theirs say; tests/parity holds it to the authors' numbers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stzoo_taco.inspect import inspect, summary
from support import processes

import stzoo
from stzoo import RecipeError
from stzoo.cli import main
from stzoo.finetuning.balancers import BalancerContext
from stzoo.plugins import manager
from stzoo.testing import sentences, tiny_masked_lm


def build(name, tasks=3, entries=40, steps=10, **options):
    about = BalancerContext(tuple(f"t{number}" for number in range(tasks)), entries, steps, seed=2)
    return manager.build("balancer", name, about, **options)


def drawn(seed, tasks=3, entries=40):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, entries, generator=draw), torch.randn(entries, generator=draw)


def reference(gradients, parameters, average, *, beta, tau, before, used, released, sign=1):
    """One step, written down as the formulas stand, in float64; the update and the new average."""

    def medians(rows):
        return torch.stack([row[row > 0].median() if used else row.median() for row in rows])[:, None] + 1e-12

    found = (gradients * parameters).abs()
    if before:
        found = found / medians(found)
    average = beta * average + (1 - beta) * found
    level = average if before else average / medians(average)
    update = ((sign * level / tau).softmax(0) * gradients).sum(0)
    return update / len(gradients) if released else update, average


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    tasks=st.integers(1, 5),
    entries=st.integers(2, 70_000),
    beta=st.floats(0, 0.999),
    tau=st.floats(0.05, 50),
    normalise=st.sampled_from(["before", "after"]),
    median_over=st.sampled_from(["used", "all"]),
    idle=st.floats(0, 0.45),
    discourage=st.booleans(),
    scale=st.sampled_from(["released", "sum"]),
)
@example(  # lerp_ would round this beta
    seed=1035, tasks=4, entries=713, beta=1e-5, tau=1.0, normalise="before", median_over="all", idle=0.4375,
    discourage=False, scale="released",
)  # fmt: skip
def test_updates_are_those_of_the_formulas(
    seed, tasks, entries, beta, tau, normalise, median_over, idle, discourage, scale
):
    options = dict(beta=beta, tau=tau, normalise=normalise, median_over=median_over, discourage=discourage)
    options |= dict(warmup_ratio=0.0, scale=scale)
    balancer = build("taco", tasks, entries, **options)
    average = torch.zeros(tasks, entries, dtype=torch.float64)
    for step in range(3):
        gradients, parameters = drawn(seed + step, tasks, entries)
        gradients[:, : int(idle * entries)] = 0.0
        expected, average = reference(
            gradients.double(), parameters.double(), average, beta=beta, tau=tau,
            before=normalise == "before", used=median_over == "used", released=scale == "released",
            sign=-1 if discourage else 1,
        )  # fmt: skip
        update = balancer(gradients, torch.ones(tasks), parameters)
        torch.testing.assert_close(update.double(), expected, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(balancer.sensitivity.double(), average, rtol=1e-4, atol=1e-6)


def test_words_that_no_text_has_do_not_make_every_parameter_one_tasks():
    """Of all entries the median is 0 then, and what is divided by nearly nothing is infinitely far apart."""
    gradients, parameters = drawn(4, 3, 1000)
    gradients[:, :600] = 0.0
    mean, follows = gradients.mean(0)[600:], {}
    for over in ("used", "all"):
        balancer = build("taco", 3, 1000, beta=0.999, warmup_ratio=0.0, median_over=over)
        update = balancer(gradients.clone(), torch.ones(3), parameters)[600:]
        alone = ((update[None] - gradients[:, 600:]).abs() < 1e-6).any(0)
        follows[over] = float(alone.float().mean())
        if over == "used":  # one step of a slow average weighs nearly alike
            torch.testing.assert_close(update, mean, atol=0.15, rtol=0)
    assert follows["used"] < 0.05
    assert follows["all"] > 0.95
    nothing = build("taco", 3, 1000, warmup_ratio=0.0)(torch.zeros(3, 1000), torch.ones(3), parameters)
    assert not nothing.any()


def test_a_parameter_that_matters_to_one_task_follows_it():
    gradients = torch.tensor([[5.0, 0.1, 1.0, 1.0], [0.1, 5.0, 1.0, 1.0]])
    balancer = build("taco", 2, 4, beta=0.0, warmup_ratio=0.0, tau=0.5)
    update = balancer(gradients.clone(), torch.ones(2), torch.ones(4))
    mean = gradients.mean(0)
    assert update[0] / update[2] > mean[0] / mean[2]
    torch.testing.assert_close(update[0], update[1])
    other = build("taco", 2, 4, beta=0.0, warmup_ratio=0.0, tau=0.5, discourage=True)
    assert other(gradients.clone(), torch.ones(2), torch.ones(4))[0] < 0.2 * update[0]


def test_warm_up_takes_the_mean_and_watches_sensitivities():
    balancer = build("taco", steps=40, warmup_ratio=0.05)
    for step in range(4):
        gradients, parameters = drawn(step)
        mean, before = gradients.mean(0), balancer.sensitivity.clone()
        update = balancer(gradients, torch.ones(3), parameters)
        assert torch.allclose(update, mean) == (step < 2)
        assert not torch.equal(balancer.sensitivity, before)


@pytest.mark.parametrize("normalise", ["before", "after"])
@pytest.mark.parametrize(("scale", "factor"), [("sum", 1.0), ("released", 1 / 3)])
def test_with_an_endless_temperature_taco_is_the_plain_sum_up_to_its_scale(normalise, scale, factor):
    """The control: weights that are all 1/T leave the mean; the authors' code divides it by T once more."""
    taco = build("taco", steps=10, tau=1e9, warmup_ratio=0.2, scale=scale, normalise=normalise)
    plain = build("sum", steps=10)
    for step in range(10):
        gradients, parameters = drawn(step)
        summed = plain(gradients.sum(0, keepdim=True), torch.ones(3), parameters)
        expected = summed if step < 2 else summed * factor
        torch.testing.assert_close(taco(gradients, torch.ones(3), parameters), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_an_infinite_gradient_takes_the_mean_and_learns_nothing(bad):
    balancer = build("taco", warmup_ratio=0.0)
    gradients, parameters = drawn(1)
    gradients[1, 7] = bad
    expected = gradients.mean(0)
    before = balancer.sensitivity.clone()
    update = balancer(gradients, torch.ones(3), parameters)
    torch.testing.assert_close(update, expected, equal_nan=True)
    assert torch.equal(balancer.sensitivity, before)


def test_a_sampled_median_is_near_the_exact_one():
    entries = 1_200_000
    gradients, parameters = drawn(3, 2, entries)
    found = {}
    for sample in (10**6, 0):
        balancer = build("taco", 2, entries, warmup_ratio=0.0, beta=0.0, median_sample=sample)
        assert (balancer.sample is None) == (sample == 0)
        found[sample] = balancer(gradients.clone(), torch.ones(2), parameters).clone()
    assert not torch.equal(found[10**6], found[0])
    away = torch.linalg.vector_norm(found[10**6] - found[0]) / torch.linalg.vector_norm(found[0])
    assert away < 2e-3
    again = build("taco", 2, entries, warmup_ratio=0.0, beta=0.0, median_sample=10**6)
    assert torch.equal(again(gradients.clone(), torch.ones(2), parameters), found[10**6])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(beta=1.0), "beta is 1.0"),
        (dict(tau=0.0), "tau is 0.0"),
        (dict(warmup_ratio=1.5), "warmup_ratio"),
        (dict(normalise="never"), "normalise"),
        (dict(scale="half"), "scale"),
        (dict(median_over="none"), "median_over"),
        (dict(median_sample=100), "at least 1e6"),
        (dict(bta=0.9), "did you mean 'beta'|beta"),
    ],
)
def test_wrong_options_are_errors(options, told):
    with pytest.raises(RecipeError, match=told):
        build("taco", **options)


def test_gradnorm_pulls_the_task_that_lags_behind():
    balancer = build("gradnorm", 2)
    gradients, parameters = drawn(1, 2)
    gradients /= torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    for step in range(20):
        losses = torch.tensor([1.0, 1.0 - 0.03 * step])  # the second is learnt, the first is not
        balancer(gradients.clone(), losses, parameters)
    assert balancer.weights[0] > 1.1 > 0.9 > balancer.weights[1]
    torch.testing.assert_close(balancer.weights.sum(), torch.tensor(2.0))


def test_gradnorm_shortens_the_longer_gradient():
    balancer = build("gradnorm", 2)
    gradients, parameters = drawn(1, 2)
    gradients[0] *= 10
    for _ in range(20):
        balancer(gradients.clone(), torch.ones(2), parameters)
    assert balancer.weights[0] < 0.8 < 1.2 < balancer.weights[1]


def test_cgd_favours_the_task_whose_gradient_the_others_share():
    shared = torch.tensor([1.0, 0.0, 0.0])
    gradients = torch.stack([shared, shared + 0.1, torch.tensor([0.0, 1.0, 0.0])])
    balancer = build("cgd", 3, 3, tau=1.0)
    for _ in range(3):
        update = balancer(gradients.clone(), torch.ones(3), torch.ones(3))
    assert balancer.weights[2] < balancer.weights[:2].min()
    torch.testing.assert_close(balancer.weights.sum(), torch.tensor(1.0))
    torch.testing.assert_close(update, balancer.weights @ gradients)


def trained(root, **given):
    """A finished run of two tasks with a tiny model."""
    base = tiny_masked_lm("bert", root / "base")
    tasks = []
    for number, name in enumerate(("one", "two")):
        rows = [
            {"anchor": " ".join(text.split()[:4]), "positive": text} for text in sentences(16, seed=number)
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks.append({"name": name, "data": str(root / f"{name}.jsonl")})
    return stzoo.finetune(
        str(base), tasks=tasks, balancer="taco", dev_queries=0, batch_size=8, max_steps=2, device="cpu",
        output=root / "run", **given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("inspected"))


def test_inspect_measures_a_run_before_and_after(run):
    (found,) = inspect([run], batches=2)
    assert found["tasks"] == ["one", "two"]
    for when in ("before", "after"):
        assert 0 < found[when]["entropy"] < 1
        assert set(found[when]["layers"]) == {"embeddings", "layer 0", "layer 1"}
        assert "attention.self.query" in found[when]["modules"]
        for one in (*found[when]["layers"].values(), *found[when]["modules"].values()):
            assert sum(one["shares"]) == pytest.approx(1, abs=2e-3)
    assert found["before"] != found["after"]
    assert inspect([run], batches=2) == [found]
    assert (run / "figures/specialisation.png").read_bytes().startswith(b"\x89PNG")


def test_a_pooling_is_inspected_with_the_options_it_was_trained_with(tmp_path, monkeypatch):
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)  # takes seconds
    pytest.importorskip("stzoo_retromae")
    options = {"projection": 8, "top_k": 5}
    run = trained(tmp_path, pooling="dupmae", pooling_options=options, portable=False)
    (found,) = inspect([run], batches=1)
    for when in ("before", "after"):  # 32 numbers of [CLS] to 8, not to the 384 that it has by itself
        assert found[when]["modules"]["1.project"]["parameters"] == 32 * 8


def test_entropy_is_of_shares_and_leaves_out_what_nobody_needs():
    shares = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 3.0, 1.0, 0.0]])

    class Four(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4))

    found = summary(shares, Four())
    # two serve one task, one serves both, and one nobody
    assert found["entropy"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["layers"]["others"]["parameters"] == 3
    assert found["layers"]["others"]["shares"] == [0.5, 0.5]


def test_inspect_is_a_command_of_stzoo(run, capsys):
    command = [sys.executable, "-m", "stzoo", "taco", "inspect", str(run), "--batches", "1"]
    done = processes.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "entropy before" in done.stdout
    with pytest.raises(SystemExit) as ended:
        main(["taco", "inspect", str(run.parent)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "does not contain a run" in said
    assert "Traceback" not in said


def test_the_picture_stands_in_the_report(run, tmp_path):
    inspect([run], batches=1)
    path = tmp_path / "report.html"
    results = Path(__file__).parents[3] / "benchmarks/results"
    stzoo.report(results, runs=[run], output=path, formats=["html"])
    assert "specialisation of run" in path.read_text().lower()
