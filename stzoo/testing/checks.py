"""A check for each kind of component: what must hold of any."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stzoo.plugins import manager
from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe
from stzoo.testing.tiny_models import tiny_masked_lm, tiny_t5


def check_objective(
    component: Component, family: str = "bert", *, options: Mapping[str, Any] | None = None, steps: int = 150
) -> None:
    """Checks on a tiny model that an objective trains and resumes, and learns from what it should.

    Among others it finds: reading of columns that are not declared; random choices outside `make_views`, or
    from another generator than torch's; losses that do not train the bottleneck; padding that changes a loss;
    state that a checkpoint does not keep; and labels or uncorrupted text that the encoder or a decoder sees.
    The component need not be installed.

    Args:
        component: of the objective.
        family: of the tiny model, one of `FAMILIES`.
        options: for the objective.
        steps: of training on random words, which find leaks that no gradient shows; 0 leaves that part, the
            longest, out.

    Raises:
        AssertionError: with the fault.
        PluginError: if the objective cannot be built.
    """
    import torch

    from stzoo.testing import objectives

    _check_texts(component)
    with torch.random.fork_rng():
        bench = objectives.Bench(component, family, options or {})
        objectives.check_losses(bench)
        objectives.check_draws(bench)
        objectives.check_bottleneck(bench)
        objectives.check_padding(bench)
        objectives.check_sight(bench)
        objectives.check_fit(bench)
        objectives.check_resume(bench)
        objectives.check_leaks(bench, steps)


def check_preparation(component: Component) -> None:
    """Sees that a preparation has settings that can be flags, and columns of types that can be kept.

    What it makes is its own to test: models and corpora are its own, too.

    Raises:
        AssertionError: with what does not hold.
    """
    from stzoo.pretraining.prepare import Preparation
    from stzoo.training.settings import PrepareSettings

    _check_texts(component)
    kind = manager.resolve(component)
    assert isinstance(kind, type), f"{kind!r} is no class"
    assert issubclass(kind, Preparation), f"{kind.__name__} is no Preparation"
    assert issubclass(kind.Settings, PrepareSettings), f"{kind.__name__}.Settings is no PrepareSettings"
    undescribed = [name for name, field in kind.Settings.model_fields.items() if not field.description]
    assert not undescribed, f"settings without a description: {undescribed}"
    assert kind.columns, "it makes no columns"
    for name, column in {**kind.columns, **kind.reads}.items():
        assert re.fullmatch("[a-z][a-z_]*", name), f"column {name!r}"
        assert column in (str, list[str]), f"the column {name} is of type {column}; expected str or list[str]"


def check_pooling(component: Component) -> None:
    """Sees that a pooling writes one finite vector a text, whatever padding stands behind it.

    It is put on a tiny masked LM, as `stzoo finetune --pooling` puts it on a base, or on a tiny T5 if it
    refuses the masked LM.

    Raises:
        AssertionError: with what does not hold.
    """
    import torch

    from stzoo.models.loading import load_model

    def put_on(base: Path) -> Any:
        transformer = load_model(str(base))[0]
        made = _build("pooling", component, transformer.get_embedding_dimension())
        if hasattr(made, "init_from_base"):
            made.init_from_base(str(base), transformer)
        return made

    _check_texts(component)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            pooling = put_on(tiny_masked_lm("bert", folder))
        except ValueError:  # it does not suit this model
            pooling = put_on(tiny_t5(Path(folder, "t5")))
        pooling.eval()
    hidden, attention = torch.randn(3, 5, 32), torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])

    def pool(tokens: Any) -> Any:
        features = {"input_ids": attention * 9, "token_embeddings": tokens, "attention_mask": attention}
        with torch.no_grad():
            return pooling(features)["sentence_embedding"]

    vectors = pool(hidden)
    assert vectors.shape == (3, pooling.get_embedding_dimension()), f"shape {list(vectors.shape)}"
    assert torch.isfinite(vectors).all()
    noisy = hidden + 100 * (1 - attention).unsqueeze(2)
    assert torch.equal(pool(noisy), vectors), "padding changes the vector"


def check_loss(component: Component) -> None:
    """Sees that a loss of fine-tuning is a finite scalar that can be learnt, and falls where it should.

    Raises:
        AssertionError: with what does not hold.
    """
    import torch

    from stzoo.finetuning.losses import Candidates, Similarity

    _check_texts(component)
    loss = _build("loss", component, Similarity("cosine", 0.1))
    torch.manual_seed(0)
    queries = torch.randn(4, 8)
    vectors = [queries, *(torch.randn(4, 8).requires_grad_() for _ in range(3))]
    candidates = Candidates(
        ids=torch.arange(12).view(4, 3),
        positives=torch.arange(0, 12, 3).view(4, 1),
        scores=torch.tensor([[10.0, -10.0, -10.0]]).repeat(4, 1),
    )
    found = loss(vectors, candidates)
    assert found.shape == (), f"shape {list(found.shape)}; expected a scalar"
    assert torch.isfinite(found)
    found.backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in vectors[1:]), (
        "a candidate's vector gets no gradient"
    )
    right = loss([queries, queries, -queries, -queries], candidates)
    assert right < found, f"{float(right)} where positives are found, {float(found)} where they are not"


def check_balancer(component: Component) -> None:
    """Sees that a balancer makes one finite update of several gradients, and that its state is all it has.

    Raises:
        AssertionError: with what does not hold.
    """
    import torch

    from stzoo.finetuning.balancers import BalancerContext

    _check_texts(component)
    K, P = 3, 50
    about = BalancerContext(("one", "two", "three"), P, steps=10, seed=1)
    draw = torch.Generator().manual_seed(0)
    steps = [torch.randn(K, P, generator=draw) for _ in range(6)]
    losses, parameters = torch.tensor([1.0, 2.0, 0.5]), torch.randn(P, generator=draw)
    kept = parameters.clone()

    def update(balancer: Any, gradients: Any) -> Any:
        given = gradients.sum(0, keepdim=True) if balancer.additive else gradients.clone()
        with torch.no_grad():
            return balancer(given, losses.clone(), parameters).clone()

    whole = _build("balancer", component, about)
    updates = [update(whole, gradients) for gradients in steps]
    assert all(one.shape == (P,) for one in updates), f"shape {list(updates[0].shape)}; expected [P]"
    assert all(torch.isfinite(one).all() for one in updates)
    assert torch.equal(parameters, kept), "the balancer changes parameters"
    first, second = (_build("balancer", component, about) for _ in range(2))
    for gradients in steps[:3]:
        update(first, gradients)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    for gradients, expected in zip(steps[3:], updates[3:], strict=True):
        assert torch.equal(update(second, gradients), expected), "its state_dict is not all of its state"
    alike = update(_build("balancer", component, about), steps[0][:1].repeat(K, 1))
    factors = alike / steps[0][0]
    assert 0.5 < factors.min() <= factors.max() < 2, "of equal gradients the update is not about their mean"
    broken = steps[0].clone()
    broken[1, 3] = float("inf")
    found = update(_build("balancer", component, about), broken)
    torch.testing.assert_close(
        found, broken.mean(0), msg="where a gradient is infinite, the update is no mean"
    )


def check_command(component: Component) -> None:
    """Sees that a command can be called for its help, which names what it does.

    Raises:
        AssertionError: with what does not hold.
    """
    import typer
    from typer.testing import CliRunner

    _check_texts(component)
    app = manager.resolve(component)
    assert isinstance(app, typer.Typer), f"{type(app).__name__}; expected a typer.Typer"
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0, shown.output
    assert "Usage" in shown.output


def check_decoder(component: Component) -> None:
    """Sees that a decoder keeps shapes and to its mask, and gives no NaN for a row that sees nothing.

    Raises:
        AssertionError: with what does not hold.
    """
    import torch
    from transformers import BertConfig

    _check_texts(component)
    config = BertConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = _build("decoder", component, config).eval()
    query, keys = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    visible = torch.ones(2, 5, 5, dtype=torch.bool).tril()
    visible[1, 4] = False
    out = decoder(query, keys, visible)
    assert out.shape == (2, 5, 16), f"shape {list(out.shape)}"
    assert torch.isfinite(out).all(), "a row that sees nothing gives NaN"
    changed = keys.clone()
    changed[:, 3:] += 1
    assert torch.allclose(decoder(query, changed, visible)[:, :3], out[:, :3]), "a hidden column is seen"
    assert not torch.allclose(decoder(query, changed, visible)[0, 3:], out[0, 3:]), "a visible one is not"
    shared = torch.ones(2, 1, 5, dtype=torch.bool)
    assert decoder(query, keys, shared).shape == (2, 5, 16), "visible [B, 1, T] is not taken"


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Sees that a checkpoint's row of data holds; nothing is downloaded.

    Raises:
        AssertionError: with what does not hold.
        PluginError: if its importer cannot be imported.
        UnknownNameError: if it names a recipe or a pooling that no plugin provides.
    """
    for field in ("hub_id", "base"):
        value = getattr(checkpoint, field)
        assert re.fullmatch(r"([\w.-]+/[\w.-]+)?", value), f"{field} {value!r} is no owner/name"
    assert re.fullmatch("main|[0-9a-f]{40}" if checkpoint.hub_id else "", checkpoint.revision), (
        f"revision {checkpoint.revision!r} is no commit of {checkpoint.hub_id!r}"
    )
    assert re.fullmatch(r"[a-z0-9.+-]*", checkpoint.license), (
        f"license {checkpoint.license!r} is no lower-case SPDX"
    )
    assert checkpoint.source, "source is empty: who published it?"
    _check_texts(checkpoint)
    if checkpoint.recipe:
        manager.find("recipe", checkpoint.recipe)
    manager.find("pooling", checkpoint.pooling)
    manager.resolve(checkpoint)
    assert checkpoint.similarity in ("dot", "cosine"), f"similarity {checkpoint.similarity!r}"
    assert all(isinstance(text, str) for pair in checkpoint.prompts.items() for text in pair)
    for length in (checkpoint.max_tokens, checkpoint.max_query_tokens):
        assert length is None or length > 0, f"a length of {length}"
    for data, measure, value, url in checkpoint.expected:
        assert data, "a score of no data set"
        assert measure, "a score of no measure"
        assert 0 < value <= 1, f"{measure} {value} on {data} is no share"
        assert re.fullmatch(r"https?://\S+", url), f"{url!r}, where {measure} on {data} stands, is no URL"


def check_recipe(recipe: Recipe) -> None:
    """Sees that a recipe can be read, and sets only what its command and objective have, to values that hold.

    What it leaves out, such as the base and the corpus, is the user's to give.

    Raises:
        AssertionError: with what does not hold.
        StzooError: if the file cannot be read, or the objective, a loss or an option of it is unknown.
    """
    import yaml
    from pydantic import ValidationError

    from stzoo.evaluation.settings import (
        BenchSettings,
        CompareSettings,
        ContaminationSettings,
        ReportSettings,
        ScoreSettings,
    )
    from stzoo.training.settings import (
        SCHEMA_VERSION,
        FinetuneSettings,
        MineSettings,
        PrepareSettings,
        PretrainSettings,
    )

    _check_texts(recipe)
    values = yaml.safe_load(manager.read_recipe(recipe))
    assert isinstance(values, dict), "it holds no settings"
    assert values.pop("schema_version", None) == SCHEMA_VERSION, f"expected schema_version: {SCHEMA_VERSION}"
    kinds: tuple[Any, ...] = (
        *(PretrainSettings, FinetuneSettings, MineSettings, PrepareSettings),
        *(BenchSettings, ScoreSettings, CompareSettings, ReportSettings, ContaminationSettings),
    )
    commands = {kind.command: kind for kind in kinds}
    command = values.pop("command", None)
    assert command in commands, f"command is {command!r}; expected one of {sorted(commands)}"
    if command == PrepareSettings.command:
        preparation: Any = manager.resolve(manager.find("preparation", values["preparation"]))
        commands[command] = preparation.Settings
    try:
        commands[command].model_validate(values)
    except ValidationError as error:
        faults = [f"{fault['loc']}: {fault['msg']}" for fault in error.errors() if fault["type"] != "missing"]
        assert not faults, faults
    if name := values.get("objective"):
        build = manager.resolve(manager.find("objective", name))
        manager.check_options(f"objective {name!r}", build, values.get("options", {}), given=1)
    for name in values.get("losses", {}):
        build = manager.resolve(manager.find("loss", name))
        manager.check_options(f"loss {name!r}", build, values.get("loss_options", {}).get(name, {}), given=1)


def _build(kind: str, component: Component, *args: Any) -> Any:
    """Builds a component that need not be installed."""
    return manager.call(f"{kind} {component.name!r}", manager.resolve(component), *args)


def _check_texts(part: Checkpoint | Component | Recipe) -> None:
    assert part.summary.strip(), "summary is empty"
    assert "\n" not in part.summary, "summary is more than one line"
    assert re.fullmatch(r"(https?://\S+)?", part.source), f"source {part.source!r} is no URL"
    citation = getattr(part, "citation", "")
    assert re.fullmatch(r"(@\w+\{[^`]+\}\s*)?", citation), f"citation {citation!r} is no BibTeX"
