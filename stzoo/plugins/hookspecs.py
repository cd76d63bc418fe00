"""The contract between stzoo and its plugins: hooks, and the typed values they return.

A plugin is a module named by an entry point of the group `stzoo`. It implements any of the hooks below with
`@stzoo.hookimpl`. Nothing here imports torch, and neither should a plugin's module: name heavy parts as
"module:attribute", and they are imported when they are first used.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("stzoo")
hookimpl = pluggy.HookimplMarker("stzoo")


@dataclass(frozen=True, kw_only=True)
class Component:
    """A part that users select by name.

    Attributes:
        name: Name in kebab-case, unique within its kind.
        build: A callable, or "module:attribute" of one.
        summary: One line for `stzoo list`.
        source: URL of the paper or code that it comes from.
        citation: BibTeX entry of the paper, which the cards of models made with the component include.
        aliases: Other names that users know it by, e.g. that of the class in sentence-transformers. Case,
            hyphens and a final "loss" do not matter in an alias.
    """

    name: str
    build: Callable[..., Any] | str
    summary: str
    source: str = ""
    citation: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Published weights, and how `stzoo import` reads them.

    Attributes:
        name: Name of the form `method-size.data`, e.g. "retromae-base.msmarco".
        hub_id: Hub id, e.g. "Shitao/RetroMAE_MSMARCO"; "" for a format that is read from local folders only.
        revision: Commit of the Hub repository, or "main" if none was recorded; "" without a `hub_id`.
        license: SPDX identifier in lower case, or "" if unknown.
        source: URL of the paper or repository that published the weights.
        recipe: Name of the recipe that trains such a model, or "".
        summary: One line for `stzoo list checkpoints`.
        importer: A callable `build(published, **options)`, or "module:attribute" of one, that takes a
            `stzoo.hub.published.Published` and returns a `stzoo.hub.importers.Imported`.
        files: Patterns of the files that it reads besides configuration, tokenizer and weights.
        base: Hub id of a model with the same configuration and tokenizer, used if the files lack them.
        pooling: Name of the pooling that it was trained with.
        normalize: True if its vectors are normalised to length 1.
        similarity: "dot" or "cosine".
        prompts: Prompts by name; those named "query" and "document" are used automatically.
        max_tokens: Maximum length of a passage in tokens, special tokens included; None for the limit of the
            weights.
        max_query_tokens: Maximum length of a query in tokens, if it differs from that of passages. Only
            models with a separate tower for queries support it.
        parameters: Number of parameters, from which the size of the download follows; 0 if unknown.
        expected: Published scores, each a data set, a measure, a value and the URL of its source.
        citation: BibTeX entry of the paper, as in Component.
    """

    name: str
    hub_id: str
    revision: str
    license: str
    source: str
    recipe: str
    summary: str
    importer: Callable[..., Any] | str = "stzoo.hub.importers:encoder"
    files: tuple[str, ...] = ()
    base: str = ""
    pooling: str = "cls"
    normalize: bool = False
    similarity: str = "dot"
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    max_query_tokens: int | None = None
    parameters: int = 0
    expected: tuple[tuple[str, str, float, str], ...] = ()
    citation: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a command, as a YAML file in a plugin's distribution.

    Attributes:
        name: Name for `--recipe`, e.g. "retromae-pretrain-msmarco".
        resource: "package:file.yaml", read by importlib.resources.
        summary: One line for `stzoo list recipes`.
        source: URL that the settings come from.
    """

    name: str
    resource: str
    summary: str
    source: str = ""


@hookspec
def stzoo_objectives() -> Iterable[Component]:  # type: ignore[empty-body]
    """Pre-training objectives: `build(backbone, **options) -> stzoo.Objective`, with a `stzoo.Backbone`.

    An objective defines `make_views(batch)`, which gets the tensors of its texts by view
    (`batch["passage"]["input_ids"]`) and makes all random choices, and `losses(**views)`, which draws
    nothing.

    Example:
        yield Component(name="retromae", build="stzoo_retromae.retromae:RetroMAE", summary="…")
    """


@hookspec
def stzoo_preparations() -> Iterable[Component]:  # type: ignore[empty-body]
    """Preparations, which make the columns that an objective reads besides the text.

    `build` is a subclass of `stzoo.Preparation`. A preparation for one objective has the name of the
    objective: `stzoo prepare master`.

    Example:
        yield Component(name="master", build="stzoo_master.prepare:MASTERData", summary="…")
    """


@hookspec
def stzoo_poolings() -> Iterable[Component]:  # type: ignore[empty-body]
    """Poolings: `build(dim, **options) -> Module` that writes "sentence_embedding", float [B, D].

    The module is one of sentence-transformers, or a subclass of its `base.modules.Module`. A subclass may
    have these attributes:
        init_from_base(base, transformer): called before training, to initialise the module from the base (a
            folder or Hub id) that the Transformer before it was loaded from. It raises a ValueError with the
            reason if it cannot.
        to_builtin_modules(): returns the modules of sentence-transformers that replace it in a portable
            export, or None if there are none.
        lossy: one sentence on what that form leaves out. The model is then exported twice: in a portable
            form, and as it was trained in `exact/`, with the file that defines the class. That file must not
            import stzoo, because `SentenceTransformer("…/exact", trust_remote_code=True)` runs it without
            stzoo.
    Its forward gets "query" or "document" in `features["task"]`, or as the argument `task` if its
    `forward_kwargs` name that; it gets neither if the caller gave no task.

    Example:
        yield Component(name="cls", build="stzoo.models.poolings:cls", summary="…")
    """


@hookspec
def stzoo_losses() -> Iterable[Component]:  # type: ignore[empty-body]
    """Fine-tuning losses: `build(similarity, **options) -> Module`, with a `losses.Similarity`.

    Its `forward(vectors, candidates)` gets the float [B, D] vectors of the queries and of each of their C
    candidates, the positive first, and a `losses.Candidates`; it returns a scalar. A builder whose losses
    need a teacher's scores has the attribute `needs_scores = True`.

    Example:
        yield Component(name="kl", build="stzoo.finetuning.losses:KL", summary="…")
    """


@hookspec
def stzoo_balancers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Balancers of several tasks' gradients: `build(context, **options)`, with a `balancers.BalancerContext`.

    It returns a `balancers.Balancer`, whose `forward(gradients, losses, parameters)` gets float [K, P], [K]
    and [P] once per optimizer step and returns the update, [P]. All its state must be in its state_dict.

    Example:
        yield Component(name="sum", build="stzoo.finetuning.balancers:Sum", summary="…")
    """


@hookspec
def stzoo_decoders() -> Iterable[Component]:  # type: ignore[empty-body]
    """Decoders: `build(config, **options)` with `forward(query, keys, visible)`.

    query and keys are float [B, T, H], visible is bool [B, 1, T] or [B, T, T] (True where row i may attend to
    column j), and the result is float [B, T, H].

    Example:
        yield Component(name="enhanced", build="stzoo.pretraining.decoders:EnhancedDecoder", summary="…")
    """


@hookspec
def stzoo_commands() -> Iterable[Component]:  # type: ignore[empty-body]
    """Commands: `stzoo NAME …`. `build` names a `typer.Typer`.

    It is imported only when the command is called; `stzoo --help` shows the summary.

    Example:
        yield Component(name="taco", build="stzoo_taco.cli:app", summary="…")
    """


@hookspec
def stzoo_checkpoints() -> Iterable[Checkpoint]:  # type: ignore[empty-body]
    """Checkpoints: published weights that `stzoo import NAME` reads.

    Example:
        yield Checkpoint(
            name="retromae-base.msmarco",
            hub_id="Shitao/RetroMAE_MSMARCO",
            revision="main",
            license="",
            source="https://github.com/staoxiao/RetroMAE",
            recipe="retromae-pretrain-msmarco",
            summary="…",
            pooling="cls",
            similarity="dot",
            max_tokens=150,
        )
    """


@hookspec
def stzoo_recipes() -> Iterable[Recipe]:  # type: ignore[empty-body]
    """Recipes for `--recipe NAME`.

    Example:
        yield Recipe(name="retromae-pretrain", resource="stzoo_retromae.recipes:pretrain.yaml", summary="…")
    """
