"""The contract between stzoo and its plugins: hooks, and the typed values they return.

A plugin is a module that an entry point of the group `stzoo` names. It implements any of the hooks below
with `@stzoo.hookimpl`. Nothing here imports torch, and a plugin's module should not either: name heavy
parts as "module:attribute", and they are imported when first used.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("stzoo")
hookimpl = pluggy.HookimplMarker("stzoo")


@dataclass(frozen=True, kw_only=True)
class Component:
    """A part that can be asked for by name.

    Attributes:
        name: kebab-case, unique within its kind.
        build: a callable, or "module:attribute" of one.
        summary: one line for `stzoo list`.
        source: URL of the paper or code it comes from.
        citation: of the paper, in BibTeX; models made with the component ask for it in their cards.
    """

    name: str
    build: Callable[..., Any] | str
    summary: str
    source: str = ""
    citation: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Published weights as a row of data, named `method-size.data`, and how `stzoo import` reads them.

    Attributes:
        name: e.g. "retromae-base.msmarco".
        hub_id: e.g. "Shitao/RetroMAE_MSMARCO"; "" for a form that only folders have.
        revision: commit of the Hub repository, or "main" where none was recorded; "" without a `hub_id`.
        license: SPDX identifier in lower case, or "" where none is known.
        source: URL of the paper or repository that published it.
        recipe: name of the recipe that makes the like of it, or "".
        summary: one line for `stzoo list checkpoints`.
        remote_code: True if loading it runs code from the repository.
        importer: `build(published, **options)`, of a `stzoo.hub.published.Published`, that returns a
            `stzoo.hub.importers.Imported`; a callable, or "module:attribute" of one.
        files: patterns of what it reads in the repository beside configuration, tokenizer and weights.
        base: Hub id whose configuration and tokenizer it has, where its own files lack them.
        pooling: name of the pooling that it was trained with.
        normalize: True if its vectors are made one long.
        similarity: "dot" or "cosine".
        prompts: what is put before a text, by name; those of "query" and "document" go by themselves.
        max_tokens: of a passage, special tokens counted; None is all that the weights can read.
        max_query_tokens: of a query, where its authors cut queries apart from passages. Only a model with a
            tower for queries can keep to it.
        expected: published scores: data set, measure, value and the URL where it stands.
        citation: of the paper, in BibTeX, as of a Component.
    """

    name: str
    hub_id: str
    revision: str
    license: str
    source: str
    recipe: str
    summary: str
    remote_code: bool = False
    importer: Callable[..., Any] | str = "stzoo.hub.importers:encoder"
    files: tuple[str, ...] = ()
    base: str = ""
    pooling: str = "cls"
    normalize: bool = False
    similarity: str = "dot"
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    max_query_tokens: int | None = None
    expected: tuple[tuple[str, str, float, str], ...] = ()
    citation: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one command, as a YAML file inside a plugin's distribution.

    Attributes:
        name: what `--recipe` takes, e.g. "retromae-pretrain-msmarco".
        resource: "package:file.yaml", read through importlib.resources.
        summary: one line for `stzoo list recipes`.
        source: URL that the settings come from.
    """

    name: str
    resource: str
    summary: str
    source: str = ""


@hookspec
def stzoo_objectives() -> Iterable[Component]:  # type: ignore[empty-body]
    """Pre-training objectives: `build(backbone, **options) -> stzoo.Objective`, of a `stzoo.Backbone`.

    Example:
        yield Component(name="retromae", build="stzoo_retromae.retromae:RetroMAE", summary="…")
    """


@hookspec
def stzoo_preparations() -> Iterable[Component]:  # type: ignore[empty-body]
    """What makes the columns that an objective reads beside the text: a subclass of `stzoo.Preparation`.

    Its name is that of the objective, if it serves one: `stzoo prepare master`.

    Example:
        yield Component(name="master", build="stzoo_master.prepare:MASTERData", summary="…")
    """


@hookspec
def stzoo_poolings() -> Iterable[Component]:  # type: ignore[empty-body]
    """Poolings: `build(dim, **options) -> Module` that writes "sentence_embedding", float [B, D].

    The module is one of sentence-transformers, or an own subclass of its `base.modules.Module`. Of an own one
    stzoo asks, where it has them:
        take(base, transformer): before training, to take over what it needs of the base (a folder or Hub id),
            of which the Transformer before it was loaded; a ValueError tells the user why it cannot.
        to_builtin_modules(): the modules of sentence-transformers that stand for it in a portable export, or
            None if there are none.
        lossy: one sentence, what that form leaves out. The model is then exported twice: portable, and as it
            was trained in `exact/`, with the file that the class is in. That file must not import stzoo, as
            `SentenceTransformer("…/exact", trust_remote_code=True)` runs it where stzoo is not installed.
    Its forward finds in `features["task"]`, or is given as `task` if that is in its `forward_kwargs`, whether
    the texts are a "query" or a "document"; neither is there if nobody said.

    Example:
        yield Component(name="cls", build="stzoo.models.poolings:cls", summary="…")
    """


@hookspec
def stzoo_losses() -> Iterable[Component]:  # type: ignore[empty-body]
    """Losses of fine-tuning: `build(comparison, **options) -> Module`, of a `losses.Similarity`.

    Its `forward(vectors, candidates)` is given float [B, D] vectors of the queries and of each of their C
    candidates, the positive first, and a `losses.Candidates`; it returns a scalar. `needs_scores` is
    True on a builder whose losses learn from a teacher's scores.

    Example:
        yield Component(name="kl", build="stzoo.finetuning.losses:KL", summary="…")
    """


@hookspec
def stzoo_balancers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Balancers of many tasks' gradients: `build(about, **options)`, of a `balancers.BalancerContext`.

    It is a `balancers.Balancer`, whose `forward(gradients, losses, parameters)` is given float [K, P],
    [K] and [P] once an optimiser step and returns the update, [P]. Its state is its state_dict.

    Example:
        yield Component(name="sum", build="stzoo.finetuning.balancers:Sum", summary="…")
    """


@hookspec
def stzoo_decoders() -> Iterable[Component]:  # type: ignore[empty-body]
    """Decoders: `build(config, **options)` with `forward(query, keys, visible)`.

    query and keys are float [B, T, H], visible is bool [B, 1, T] or [B, T, T] (True where row i may look at
    column j), and the result is float [B, T, H].

    Example:
        yield Component(name="enhanced", build="stzoo.pretraining.decoders:EnhancedDecoder", summary="…")
    """


@hookspec
def stzoo_commands() -> Iterable[Component]:  # type: ignore[empty-body]
    """Commands: `stzoo NAME …`; `build` names a `typer.Typer`.

    It is imported only when the command is called; the summary stands in `stzoo --help`.

    Example:
        yield Component(name="taco", build="stzoo_taco.cli:app", summary="…")
    """


@hookspec
def stzoo_checkpoints() -> Iterable[Checkpoint]:  # type: ignore[empty-body]
    """Checkpoints that the authors published.

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
    """Recipes that `--recipe NAME` finds.

    Example:
        yield Recipe(name="retromae-pretrain", resource="stzoo_retromae.recipes:pretrain.yaml", summary="…")
    """
