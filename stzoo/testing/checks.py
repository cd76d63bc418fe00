"""A check for each kind of component."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stzoo.errors import PluginError
from stzoo.plugins import builders, classes, manager
from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe
from stzoo.testing.tiny_models import tiny_masked_lm, tiny_t5


def check_objective(
    component: Component | type,
    family: str = "bert",
    *,
    options: Mapping[str, Any] | None = None,
    steps: int = 150,
) -> None:
    """Checks on a tiny model that an objective trains and resumes, and learns from what it should.

    Among others it finds: columns that are read but not declared; random choices outside `make_views`, or
    from a generator other than torch's; losses that do not train the bottleneck; padding that changes a loss;
    state that checkpoints do not keep; and labels or unmasked text that the encoder or a decoder can see. The
    component need not be installed.

    Args:
        component: Component of the objective, or its class.
        family: Family of the tiny model, one of `FAMILIES`.
        options: Options of the objective.
        steps: Number of training steps on random words, which find leaks that gradients do not show; 0 to
            skip that part, which takes longest.

    Raises:
        AssertionError: If the objective has a fault, which the message describes.
        PluginError: If the objective cannot be built.

    Example:
        >>> check_objective(manager.find("objective", "retromae"))
    """
    import torch

    from stzoo.testing import objectives

    component = classes.as_component(component)
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
    """Checks that the settings of a preparation can be flags, and that its columns have supported types.

    Test the values that it makes yourself, with models and corpora of your choice.

    Raises:
        AssertionError: If the preparation has a fault, which the message describes.
    """
    from stzoo.pretraining.prepare import Preparation
    from stzoo.training.pretrain_settings import PrepareSettings

    _check_texts(component)
    kind = builders.resolve(component)
    assert isinstance(kind, type), f"{kind!r} is not a class"
    assert issubclass(kind, Preparation), f"{kind.__name__} is not a subclass of Preparation"
    assert issubclass(kind.Settings, PrepareSettings), (
        f"{kind.__name__}.Settings is not a subclass of PrepareSettings"
    )
    undescribed = [name for name, field in kind.Settings.model_fields.items() if not field.description]
    assert not undescribed, f"settings without a description: {undescribed}"
    assert kind.columns, "it makes no columns"
    for name, column in {**kind.columns, **kind.reads}.items():
        assert re.fullmatch("[a-z][a-z_]*", name), f"the column name {name!r} is not in snake_case"
        assert column in (str, list[str]), f"the column {name} is of type {column}; expected str or list[str]"


def check_pooling(component: Component) -> None:
    """Checks that a pooling returns one finite vector per text, whatever the padding contains.

    It is added to a tiny masked LM, as `stzoo finetune --pooling` adds it to a base, or to a tiny T5 if it
    refuses the masked LM.

    Raises:
        AssertionError: If the pooling has a fault, which the message describes.
    """
    import torch

    from stzoo.models.loading import load_model

    def add_to(base: Path) -> Any:
        transformer = load_model(str(base))[0]
        module = _build("pooling", component, transformer.get_embedding_dimension())
        if hasattr(module, "init_from_base"):
            module.init_from_base(str(base), transformer)
        return module

    _check_texts(component)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            pooling = add_to(tiny_masked_lm("bert", folder))
        except ValueError:  # it does not fit this model
            pooling = add_to(tiny_t5(Path(folder, "t5")))
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
    """Checks that a fine-tuning loss is a finite scalar with gradients, and is lower for better vectors.

    Raises:
        AssertionError: If the loss has a fault, which the message describes.
    """
    import torch

    from stzoo.finetuning.candidates import Candidates, Similarity

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
    value = loss(vectors, candidates)
    assert value.shape == (), f"shape {list(value.shape)}; expected a scalar"
    assert torch.isfinite(value)
    value.backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in vectors[1:]), (
        "a candidate's vector gets no gradient"
    )
    right = loss([queries, queries, -queries, -queries], candidates)
    assert right < value, (
        f"the loss is {float(right)} with the positives ranked first, and {float(value)} otherwise"
    )


def check_balancer(component: Component | type) -> None:
    """Checks that a balancer combines gradients into a finite update, and that its state_dict is complete.

    Raises:
        AssertionError: If the balancer has a fault, which the message describes.
    """
    import torch

    from stzoo.finetuning.balancers import BalancerContext

    component = classes.as_component(component)
    _check_texts(component)
    K, P = 3, 50
    context = BalancerContext(("one", "two", "three"), P, steps=10, seed=1)
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(K, P, generator=generator) for _ in range(6)]
    losses, parameters = torch.tensor([1.0, 2.0, 0.5]), torch.randn(P, generator=generator)
    before = parameters.clone()

    def update(balancer: Any, gradients: Any) -> Any:
        rows = gradients.sum(0, keepdim=True) if balancer.additive else gradients.clone()
        with torch.no_grad():
            return balancer(rows, losses.clone(), parameters).clone()

    whole = _build("balancer", component, context)
    updates = [update(whole, gradients) for gradients in steps]
    assert all(one.shape == (P,) for one in updates), f"shape {list(updates[0].shape)}; expected [P]"
    assert all(torch.isfinite(one).all() for one in updates)
    assert torch.equal(parameters, before), "the balancer changes parameters"
    first, second = (_build("balancer", component, context) for _ in range(2))
    for gradients in steps[:3]:
        update(first, gradients)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    for gradients, expected in zip(steps[3:], updates[3:], strict=True):
        assert torch.equal(update(second, gradients), expected), (
            "its state_dict does not contain all of its state"
        )
    alike = update(_build("balancer", component, context), steps[0][:1].repeat(K, 1))
    factors = alike / steps[0][0]
    assert 0.5 < factors.min() <= factors.max() < 2, "for equal gradients, the update is far from their mean"
    broken = steps[0].clone()
    broken[1, 3] = float("inf")
    combined = update(_build("balancer", component, context), broken)
    torch.testing.assert_close(
        combined, broken.mean(0), msg="if a gradient is infinite, the update is not the mean"
    )


def check_command(component: Component) -> None:
    """Checks that a command is a typer.Typer that shows its help.

    Raises:
        AssertionError: If the command has a fault, which the message describes.
    """
    import typer
    from typer.testing import CliRunner

    _check_texts(component)
    app = builders.resolve(component)
    assert isinstance(app, typer.Typer), f"{type(app).__name__}; expected a typer.Typer"
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def check_decoder(component: Component) -> None:
    """Checks that a decoder keeps shapes, respects its mask, and gives no NaN for a row that sees nothing.

    Raises:
        AssertionError: If the decoder has a fault, which the message describes.
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
    assert torch.allclose(decoder(query, changed, visible)[:, :3], out[:, :3]), (
        "a row attends to a column that is not visible"
    )
    assert not torch.allclose(decoder(query, changed, visible)[0, 3:], out[0, 3:]), (
        "a row does not attend to a visible column"
    )
    shared = torch.ones(2, 1, 5, dtype=torch.bool)
    assert decoder(query, keys, shared).shape == (2, 5, 16), "visible of the shape [B, 1, T] is not supported"


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Checks the fields of a checkpoint. Nothing is downloaded.

    Raises:
        AssertionError: If a field is invalid.
        PluginError: If its importer cannot be imported.
        UnknownNameError: If no plugin provides its recipe or pooling.
    """
    _check_texts(checkpoint)
    for field in ("hub_id", "base"):
        value = getattr(checkpoint, field)
        assert re.fullmatch(r"([\w.-]+/[\w.-]+)?", value), f"{field} {value!r} is not of the form owner/name"
    assert re.fullmatch("main|[0-9a-f]{40}" if checkpoint.hub_id else "", checkpoint.revision), (
        f"revision {checkpoint.revision!r} is not a commit of {checkpoint.hub_id!r}"
    )
    assert re.fullmatch(r"[a-z0-9.+-]*", checkpoint.license), (
        f"license {checkpoint.license!r} is not a lower-case SPDX identifier"
    )
    assert checkpoint.source, "source is empty; expected the URL of the paper or repository"
    if checkpoint.recipe:
        manager.find("recipe", checkpoint.recipe)
    manager.find("pooling", checkpoint.pooling)
    builders.resolve(checkpoint)
    assert checkpoint.similarity in ("dot", "cosine"), f"similarity {checkpoint.similarity!r}"
    assert all(isinstance(text, str) for pair in checkpoint.prompts.items() for text in pair)
    for length in (checkpoint.max_tokens, checkpoint.max_query_tokens):
        assert length is None or length > 0, f"a length of {length}"
    assert checkpoint.parameters >= 0, f"parameters is {checkpoint.parameters}"
    for data, measure, value, url in checkpoint.expected:
        assert data, "a score without a data set"
        assert measure, "a score without a measure"
        assert 0 < value <= 1, f"{measure} {value} on {data} is not in 0..1"
        assert re.fullmatch(r"https?://\S+", url), f"{url!r}, the source of {measure} on {data}, is not a URL"


def check_recipe(recipe: Recipe) -> None:
    """Checks that a recipe can be read, and that its settings and options exist and have valid values.

    It may leave out settings that the user must give, such as the base and the corpus.

    Raises:
        AssertionError: If a setting is invalid.
        StzooError: If the file cannot be read, or the objective, a loss or an option is unknown.
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
    from stzoo.training.finetune_settings import FinetuneSettings, MineSettings
    from stzoo.training.pretrain_settings import PrepareSettings, PretrainSettings
    from stzoo.training.recipes import SCHEMA_VERSION
    from stzoo.training.rerank_settings import RerankSettings

    _check_texts(recipe)
    values = yaml.safe_load(builders.read_recipe(recipe))
    assert isinstance(values, dict), "it contains no settings"
    assert values.pop("schema_version", None) == SCHEMA_VERSION, f"expected schema_version: {SCHEMA_VERSION}"
    kinds: tuple[Any, ...] = (
        *(PretrainSettings, FinetuneSettings, MineSettings, RerankSettings, PrepareSettings),
        *(BenchSettings, ScoreSettings, CompareSettings, ReportSettings, ContaminationSettings),
    )
    commands = {kind.command: kind for kind in kinds}
    command = values.pop("command", None)
    assert command in commands, f"command is {command!r}; expected one of {sorted(commands)}"
    if command == PrepareSettings.command:
        preparation: Any = builders.resolve(manager.find("preparation", values["preparation"]))
        commands[command] = preparation.Settings
    try:
        commands[command].model_validate(values)
    except ValidationError as error:
        faults = [f"{fault['loc']}: {fault['msg']}" for fault in error.errors() if fault["type"] != "missing"]
        assert not faults, faults
    if name := values.get("objective"):
        build = builders.resolve(manager.find("objective", name))
        builders.check_options(f"objective {name!r}", build, values.get("options", {}), given=1)
    for name in values.get("losses", {}):
        build = builders.resolve(manager.find("loss", name))
        builders.check_options(f"loss {name!r}", build, values.get("loss_options", {}).get(name, {}), given=1)


def _build(kind: str, component: Component, *args: Any) -> Any:
    """Builds a component that need not be installed."""
    return builders.call(f"{kind} {component.name!r}", builders.resolve(component), *args)


def _check_texts(part: Checkpoint | Component | Recipe) -> None:
    if not isinstance(part, Checkpoint | Component | Recipe):
        given = f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"
        raise PluginError(
            f"the check got {given}; expected what a hook of the plugin yields, e.g. stzoo.Component("
            'name="mine", build=Mine, summary="what it does").'
        )
    assert part.summary.strip(), "summary is empty"
    assert "\n" not in part.summary, "summary is more than one line"
    assert re.fullmatch(r"(https?://\S+)?", part.source), f"source {part.source!r} is not a URL"
    citation = getattr(part, "citation", "")
    assert re.fullmatch(r"(@\w+\{[^`]+\}\s*)?", citation), f"citation {citation!r} is not BibTeX"
