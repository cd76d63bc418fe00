"""Finds, checks and looks up plugins; with hookspecs the only user of pluggy.

A plugin is whatever an entry point of the group `stzoo` names. Plugins are loaded at first use, never at
import, each by itself and in a pluggy manager of its own, so that a broken one leaves nothing behind and
stops no other. What does not hold is left out, and `plugins()` tells why:

- the whole plugin, if it cannot be imported, shares its entry-point name with another distribution's, or
  implements a hook that is not in the contract, or not so: it was written for another contract;
- one hook of it, if the hook raises or yields a wrong value: all of that hook's parts, also those that came
  before the fault, because half a list would look like a whole one. The plugin's other hooks stay;
- a plain name, if two plugins provide it: "plugin:name" picks one. The order of loading never decides.
"""

import functools
import importlib
import importlib.resources
import inspect
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from operator import attrgetter
from typing import Any, get_args, get_type_hints

import pluggy

from . import hookspecs
from .errors import ConflictError, PluginError, RecipeError, StzooError, UnknownNameError, nearest
from .hookspecs import Checkpoint, Component, Recipe
from .inputs import check_number


def singular(plural: str) -> str:
    """The kind of a plural: "objective" of "objectives", "loss" of "losses"."""
    return plural.removesuffix("es") if plural.endswith("sses") else plural.removesuffix("s")


def hook_name(kind: str) -> str:
    """The hook that provides a kind: "stzoo_objectives" of "objective"."""
    return f"stzoo_{kind}{'es' if kind.endswith('s') else 's'}"


# kind -> type of its values, read off the hooks: stzoo_objectives() -> Iterable[Component] makes "objective"
KINDS: dict[str, Any] = {
    singular(name.removeprefix("stzoo_")): get_args(get_type_hints(hook)["return"])[0]
    for name, hook in vars(hookspecs).items()
    if name.startswith("stzoo_")
}
HOUSE = "builtin"  # the entry point of the house's own parts: always loaded, and nobody else's name

_KEBAB = "[a-z0-9]+(-[a-z0-9]+)*"
_NAME = (_KEBAB, "kebab-case")
_CHECKPOINT_NAME = (rf"[a-z0-9]+(-[a-z0-9]+)+\.{_KEBAB}", "method-size.data")


@dataclass
class Plugin:
    """An installed plugin, whether usable or not.

    Attributes:
        name: of the entry point, e.g. "retromae".
        distribution: what pip calls it, e.g. "stzoo-retromae".
        version: of the distribution.
        module: what the entry point names.
        provides: kind -> name -> Component, Checkpoint or Recipe.
        failures: one reason for each thing that was left out.
    """

    name: str
    distribution: str
    version: str
    module: str
    provides: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


class Host:
    """The installed plugins, found when one of the methods is first called.

    The environment variable STZOO_PLUGINS, a comma-separated list of entry-point names, restricts which are
    loaded; the house's own parts always are. A name in it that is not installed makes every method raise
    UnknownNameError.
    """

    @functools.cached_property
    def _plugins(self) -> list[Plugin]:
        entries = sorted(entry_points(group="stzoo"), key=lambda e: (e.name != HOUSE, e.name, _origin(e)))
        plugins = [Plugin(e.name, *_origin(e), e.value) for e in entries]
        names = {p.name for p in plugins}
        chosen = os.environ.get("STZOO_PLUGINS")
        wanted = names if chosen is None else {HOUSE, *filter(None, map(str.strip, chosen.split(",")))}
        for missing in sorted(wanted - names - {HOUSE}):
            raise UnknownNameError("plugin", missing, names, f"STZOO_PLUGINS={chosen} asks for it.")
        for plugin, entry in zip(plugins, entries, strict=True):
            rivals = [str(p) for p in plugins if p.name == plugin.name and p is not plugin]
            if plugin.name not in wanted:
                plugin.failures.append(f"left out by STZOO_PLUGINS={chosen}")
            elif rivals and (plugin.name, plugin.distribution) != (HOUSE, "stzoo"):
                plugin.failures.append(f"the entry-point name is also that of {', '.join(rivals)}")
            else:
                _load(plugin, entry)
        for kind in KINDS:
            for name, owners in _owners(plugins, kind).items():
                for plugin in owners if len(owners) > 1 else ():
                    others = ", ".join(str(p) for p in owners if p is not plugin)
                    plugin.failures.append(f"{kind} {name!r} is also provided by {others}")
        return plugins

    def plugins(self) -> list[Plugin]:
        """Every installed plugin by its name, `builtin` first: what it provides, what was left out."""
        return list(self._plugins)

    def all(self, kind: str) -> dict[str, Any]:
        """Every part of a kind by its name, in the order of the names.

        A name that several plugins provide stands there as "plugin:name", once for each.

        Raises:
            UnknownNameError: if there is no such kind.
        """
        found = {}
        for name, owners in self._by_name(kind).items():
            for plugin in owners:
                key = name if len(owners) == 1 else f"{plugin.name}:{name}"
                found[key] = plugin.provides[kind][name]
        return dict(sorted(found.items()))

    def find(self, kind: str, name: str) -> Any:
        """The Component, Checkpoint or Recipe of that name.

        Args:
            kind: one of KINDS, e.g. "objective".
            name: e.g. "retromae"; or "plugin:name", to pick one where several plugins provide it.

        Raises:
            ConflictError: if several plugins provide the name.
            UnknownNameError: if none does, or there is no such kind.
        """
        chosen, _, plain = name.rpartition(":")
        owners = [p for p in self._by_name(kind).get(plain, []) if chosen in ("", p.name)]
        if not owners:
            faulty = [p for p in self._plugins if p.failures and kind not in p.provides]
            hints = [f"Plugin {p} provides no {kind}: {'; '.join(p.failures)}." for p in faulty]
            raise UnknownNameError(kind, name, self.all(kind), " ".join(hints))
        if len(owners) > 1:
            raise ConflictError(
                f"{len(owners)} plugins provide the {kind} {plain!r}: {', '.join(map(str, owners))}. "
                f"Ask for {' or '.join(f'{p.name}:{plain}' for p in owners)}, or uninstall one."
            )
        return owners[0].provides[kind][plain]

    def build(self, kind: str, name: str, /, *args: Any, **options: Any) -> Any:
        """Calls the component of that name, `build(*args, **options)`, after a look at its options.

        Raises:
            PluginError: if its code cannot be imported, or the kind is data; for the name see `find`.
            RecipeError: if it has no option of a name given, needs one that is not given, or one is of
                another type than the builder is annotated with.
        """
        component = self.find(kind, name)
        if not isinstance(component, Component):
            raise PluginError(f"the {kind} {name!r} is data; only a component can be built.")
        return call(f"{kind} {name!r}", resolve(component), *args, **options)

    def recipe_text(self, name: str) -> str:
        """The YAML text of the recipe of that name.

        Raises:
            PluginError: if its file cannot be read; for the name see `find`.
        """
        return read_recipe(self.find("recipe", name))

    def _by_name(self, kind: str) -> dict[str, list[Plugin]]:
        if kind not in KINDS:
            raise UnknownNameError("kind", kind, KINDS)
        return _owners(self._plugins, kind)


def resolve(component: Component | Checkpoint) -> Callable[..., Any]:
    """What a component's `build`, or a checkpoint's `importer`, names, imported now if it is a string.

    Raises:
        PluginError: if the module cannot be imported, or has no such attribute, or that cannot be called.
    """
    build = named = component.importer if isinstance(component, Checkpoint) else component.build
    if isinstance(build, str):
        module_name, _, attribute = build.partition(":")
        try:
            module = importlib.import_module(module_name)
        except StzooError:
            raise  # it already tells the user what to do, as a missing extra does
        except Exception as error:
            raise PluginError(
                f"{component.name!r} cannot be used: import of {module_name!r} failed: {_reason(error)}."
            ) from error
        try:
            build = attrgetter(attribute)(module)
        except AttributeError as error:
            raise PluginError(
                f"{component.name!r} cannot be used: {named!r} names nothing: {error}."
            ) from error
    if not callable(build):
        raise PluginError(f"{component.name!r} cannot be used: {named!r} cannot be called.")
    return build


def call(what: str, builder: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Calls `builder(*args, **options)` after a look at its options.

    Args:
        what: how an error calls the builder, e.g. "objective 'retromae'".
        builder: what `resolve` returns.
        args: come first, and are no options.
        options: that the user gave.

    Raises:
        RecipeError: if it has no option of a name given, needs one that is not given, or one is of another
            type than the builder is annotated with.
    """
    check_options(what, builder, options, given=len(args))
    return builder(*args, **_typed(what, builder, options))


def check_options(what: str, builder: Callable[..., Any], options: Iterable[str], *, given: int) -> None:
    """Sees that a builder has every option of these names, and needs no other.

    Args:
        what: how an error calls the builder, e.g. "objective 'retromae'".
        builder: what `resolve` returns.
        options: the names.
        given: how many positional arguments come first; they are no options.

    Raises:
        RecipeError: with the nearest spelling and all options there are.
    """
    parameters = list(inspect.signature(builder).parameters.values())[given:]
    known = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    listed = f"Options: {', '.join(known) or 'none'}."
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in options:
        if name not in known and not takes_any:
            near = nearest(name, known)
            guess = f"; did you mean {near!r}?" if near else "."
            raise RecipeError(f"{what} has no option {name!r}{guess} {listed}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise RecipeError(f"{what} needs the option {name!r}. {listed}")


def _typed(what: str, builder: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options as what the builder's annotations say that they are; those without one as they are."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        hints = get_type_hints(builder.__init__ if isinstance(builder, type) else builder)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # annotations for a type checker only, or none at all
        return options
    typed = dict(options)
    for name, value in options.items():
        try:
            check_number(hints.get(name, Any), value)
            kind = TypeAdapter(hints.get(name, Any), config=ConfigDict(arbitrary_types_allowed=True))
            typed[name] = kind.validate_python(value)
        except ValueError as error:
            reason = error.errors()[0]["msg"].lower() if isinstance(error, ValidationError) else error
            raise RecipeError(f"{what}: the option {name} is {value!r}: {reason}.") from None
    return typed


def read_recipe(recipe: Recipe) -> str:
    """The YAML text of a recipe.

    Raises:
        PluginError: if its file cannot be read.
    """
    package, _, file = recipe.resource.partition(":")
    try:
        return importlib.resources.files(package).joinpath(file).read_text(encoding="utf-8")
    except Exception as error:  # importing the package may raise anything
        raise PluginError(
            f"recipe {recipe.name!r}: {recipe.resource!r} cannot be read: {_reason(error)}."
        ) from error


def _origin(entry: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution."""
    return (entry.dist.name or "?", entry.dist.version or "?") if entry.dist else ("?", "?")


def _owners(plugins: list[Plugin], kind: str) -> dict[str, list[Plugin]]:
    owners: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        for name in plugin.provides.get(kind, ()):
            owners.setdefault(name, []).append(plugin)
    return owners


def _load(plugin: Plugin, entry: EntryPoint) -> None:
    """Fills in what the plugin provides and why anything was left out."""
    # SystemExit: a script with sys.exit() at its end, named as a plugin by mistake, must not end the host
    try:
        hooks = _hooks(plugin.name, entry.load())
    except (Exception, SystemExit) as error:
        plugin.failures.append(_reason(error))
        return
    for kind, functions in hooks.items():
        try:
            plugin.provides[kind] = _checked(kind, chain.from_iterable(function() for function in functions))
        except (Exception, SystemExit) as error:
            plugin.failures.append(f"hook {hook_name(kind)}: {_reason(error)}")


def _hooks(name: str, module: Any) -> dict[str, list[Callable[..., Any]]]:
    """The implementations by kind; pluggy raises for a signature that is not the hook's."""
    manager = pluggy.PluginManager("stzoo")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name)
    hooks: dict[str, list[Callable[..., Any]]] = {}
    for caller in manager.get_hookcallers(module) or ():
        kind = singular(caller.name.removeprefix("stzoo_"))
        implementations = caller.get_hookimpls()
        if caller.has_spec():
            hooks[kind] = [i.function for i in implementations]
        elif any(not i.optionalhook for i in implementations):
            near = nearest(caller.name, map(hook_name, KINDS))
            raise PluginError(f"unknown hook {caller.name}" + (f"; the nearest is {near}" if near else ""))
    for kind in KINDS:
        hook = hook_name(kind)
        function = getattr(module, hook, None)
        if function not in (None, getattr(hookspecs, hook)) and kind not in hooks:
            raise PluginError(f"{hook} is not marked with @hookimpl")
    if not hooks:
        raise PluginError("implements no hook")
    return hooks


def _checked(kind: str, values: Iterable[Any]) -> dict[str, Any]:
    """The values of a hook by name."""
    expected = KINDS[kind]
    pattern, form = _CHECKPOINT_NAME if expected is Checkpoint else _NAME
    found: dict[str, Any] = {}
    for value in values:
        if not isinstance(value, expected):
            raise PluginError(f"yields {value!r:.60}; expected a {expected.__name__}")
        if not re.fullmatch(pattern, value.name):
            raise PluginError(f"yields the name {value.name!r}; expected {form}")
        if value.name in found:
            raise PluginError(f"yields {value.name!r} twice")
        found[value.name] = value
    return found


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, StzooError) else f"{type(error).__name__}: {text}"


_shared = Host()
plugins, find, build, recipe_text = _shared.plugins, _shared.find, _shared.build, _shared.recipe_text
all = _shared.all  # noqa: A001 - read as `host.all(kind)`; nothing in this module uses the builtin of that name
