"""Completes values on the command line: names of components, recipes, data sets and settings.

Nothing is imported or looked up before the shell asks.
"""

from collections.abc import Callable, Iterable
from typing import Any

import typer

from stzoo.errors import StzooError

Complete = Callable[[str], list[str]]


def complete_names(kind: str) -> Complete:
    """Completes names of a kind of component, of data sets if it is "data", also of suites if it is
    "dataset", or of published checkpoints if it is "model".

    Of names with commas between, the last is completed.
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in known_names(kind)]

    return complete


def complete_choices(words: Iterable[str]) -> Complete:
    """Completes one of some words."""

    def complete(incomplete: str) -> list[str]:  # noqa: ARG001 - typer looks for the beginning itself
        return list(words)

    return complete


def complete_recipes(incomplete: str) -> list[str]:  # noqa: ARG001
    """Completes names of installed recipes."""
    return known_names("recipe")


def complete_settings(settings: Any) -> Complete:
    """Completes the KEY= of --set, also where the key names a loss."""

    def complete(incomplete: str) -> list[str]:
        if incomplete.startswith("losses.") and "losses" in settings.model_fields:
            return [f"losses.{name}=" for name in known_names("loss")]
        return [f"{name}=" for name in settings.model_fields]

    return complete


def complete_kinds(incomplete: str) -> list[str]:  # noqa: ARG001
    """Completes the kinds of `stzoo list`."""
    from stzoo.plugins import manager

    return [*map(manager.plural, manager.KINDS), "datasets"]


def complete_listed(ctx: typer.Context, incomplete: str) -> list[str]:  # noqa: ARG001
    """Completes names of the kind that was given to `stzoo list`."""
    from stzoo.plugins import manager

    return known_names(manager.singular(ctx.params.get("kind") or ""))


def known_names(kind: str) -> list[str]:
    """Names of a kind of component, or of data sets and suites; none if they cannot be had."""
    try:
        if kind in ("dataset", "data"):
            from stzoo.data import registry

            return [*(registry.suites() if kind == "dataset" else ()), *registry.entries()]
        from stzoo.plugins import manager

        return list(manager.all("checkpoint" if kind == "model" else kind))
    except StzooError:
        return []
