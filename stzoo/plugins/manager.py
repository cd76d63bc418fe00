"""Finds, checks and looks up plugins; with hookspecs the only user of pluggy.

A plugin is whatever an entry point of the group `stzoo` names. Plugins are loaded at first use, never at
import, each by itself and in a pluggy manager of its own, so that a broken one leaves nothing behind and
stops no other. What does not hold is left out, and `plugins()` tells why, with file and line:

- the whole plugin, if it cannot be imported, shares its entry-point name with another distribution's, or
  implements a hook that is not in the contract, or not so: it was written for another contract;
- one hook of it, if the hook raises or yields a wrong value: all of that hook's parts, also those that came
  before the fault, because half a list would look like a whole one. The plugin's other hooks stay;
- a plain name, if two plugins provide it: "plugin:name" picks one. The order of loading never decides.
"""

import contextlib
import functools
import importlib
import importlib.resources
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pluggy

from stzoo.errors import (
    ConflictError,
    MissingExtraError,
    PluginError,
    RecipeError,
    StzooError,
    UnknownNameError,
    suggest,
)
from stzoo.plugins import hookspecs
from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe
from stzoo.utils.inputs import check_number


def singular(plural: str) -> str:
    """The kind of a plural: "objective" of "objectives", "loss" of "losses"; a singular as it is."""
    if plural.endswith("ss"):
        return plural
    return plural.removesuffix("es") if plural.endswith("sses") else plural.removesuffix("s")


def plural(kind: str) -> str:
    """The plural of a kind: "objectives" of "objective", "losses" of "loss"."""
    return f"{kind}{'es' if kind.endswith('s') else 's'}"


def hook_name(kind: str) -> str:
    """The hook that provides a kind: "stzoo_objectives" of "objective"."""
    return f"stzoo_{plural(kind)}"


# kind -> type of its values, read off the hooks: stzoo_objectives() -> Iterable[Component] makes "objective"
KINDS: dict[str, Any] = {
    singular(name.removeprefix("stzoo_")): get_args(get_type_hints(hook)["return"])[0]
    for name, hook in vars(hookspecs).items()
    if name.startswith("stzoo_")
}
HOUSE = "builtin"  # the entry point of the house's own parts: always loaded, and nobody else's name

# positional arguments that stzoo gives a builder of a kind; a command is not called, a recipe is data
ARGUMENTS = dict(objective=1, pooling=1, loss=1, balancer=1, decoder=1, preparation=4, checkpoint=1)
# errors that are a programmer's; a ValueError may be about what the user gave
MISTAKES = (TypeError, AttributeError, NameError, LookupError, ImportError, NotImplementedError)

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
        modules: names of the top-level modules of the distribution, and of its components.
        provides: kind -> name -> Component, Checkpoint or Recipe.
        places: kind -> file and line of the hook, in brackets.
        failures: one reason for each thing that was left out, with file and line.
        disabled: True if STZOO_PLUGINS leaves it out.
    """

    name: str
    distribution: str
    version: str
    module: str
    modules: frozenset[str] = frozenset()
    provides: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    disabled: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


class Fault(NamedTuple):
    """Where a plugin's code raised an error: the plugin, the file and the line (counted from 1)."""

    plugin: Plugin
    file: str
    line: int


class Host:
    """The installed plugins, found when one of the methods is first called.

    The environment variable STZOO_PLUGINS, a comma-separated list of entry-point names, restricts which are
    loaded; the house's own parts always are. A name in it that is not installed makes every method raise
    UnknownNameError.
    """

    def __init__(self) -> None:
        self._records: list[list[dict[str, str]]] = []

    @functools.cached_property
    def _plugins(self) -> list[Plugin]:
        entries = sorted(entry_points(group="stzoo"), key=lambda e: (e.name != HOUSE, e.name, _origin(e)))
        plugins = [Plugin(e.name, *_origin(e), e.value, _modules(e)) for e in entries]
        names = {p.name for p in plugins}
        chosen = os.environ.get("STZOO_PLUGINS")
        wanted = names if chosen is None else {HOUSE, *filter(None, map(str.strip, chosen.split(",")))}
        for missing in sorted(wanted - names - {HOUSE}):
            raise UnknownNameError("plugin", missing, names, f"STZOO_PLUGINS={chosen} asks for it.")
        for plugin, entry in zip(plugins, entries, strict=True):
            rivals = [str(p) for p in plugins if p.name == plugin.name and p is not plugin]
            if plugin.name not in wanted:
                plugin.disabled = True
                plugin.failures.append(f"left out by STZOO_PLUGINS={chosen}")
            elif rivals and (plugin.name, plugin.distribution) != (HOUSE, "stzoo"):
                plugin.failures.append(f"the entry-point name is also that of {', '.join(rivals)}")
            else:
                _load(plugin, entry)
        for kind in KINDS:
            for name, owners in _owners(plugins, kind).items():
                for plugin in owners if len(owners) > 1 else ():
                    others = ", ".join(str(p) for p in owners if p is not plugin)
                    plugin.failures.append(
                        f"{kind} {name!r} is also provided by {others}{plugin.places[kind]}"
                    )
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

    def origin(self, kind: str, name: str) -> dict[str, str]:
        """What a record keeps of a component: kind, plain name, plugin, distribution and its version.

        Raises:
            PluginError: as `find`.
        """
        component = self.find(kind, name)
        plugin = self._owner(kind, component)
        found = {"kind": kind, "name": component.name, "plugin": plugin.name}
        return found | {"distribution": plugin.distribution, "version": plugin.version}

    def _owner(self, kind: str, component: Any) -> Plugin:
        parts = ((plugin, plugin.provides.get(kind, {}).get(component.name)) for plugin in self._plugins)
        return next(plugin for plugin, part in parts if part is component)

    def use(self, kind: str, name: str) -> Any:
        """Finds a component, as `find`, and notes in the open recordings that it is used."""
        origin = self.origin(kind, name)
        for record in self._records:
            if origin not in record:
                record.append(origin)
        return self.find(kind, name)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[dict[str, str]]]:
        """Collects the `origin` of each component that is used within the block."""
        record: list[dict[str, str]] = []
        self._records.append(record)
        try:
            yield record
        finally:
            self._records = [one for one in self._records if one is not record]

    def full_name(self, kind: str, name: str, used: Iterable[Mapping[str, str]] = ()) -> str:
        """A component's name with its plugin, as plugin:name, so that names can be compared.

        Args:
            kind: one of KINDS.
            name: with or without the plugin.
            used: the origins in the record that the name comes from; they win over what is installed now.

        Returns:
            the name as it is, if no single plugin is known to have it.
        """
        if ":" in name:
            return name
        owners = {one["plugin"] for one in used if (one["kind"], one["name"]) == (kind, name)}
        owners = owners or {plugin.name for plugin in self._by_name(kind).get(name, ())}
        return f"{owners.pop()}:{name}" if len(owners) == 1 else name

    def culprit(self, error: BaseException) -> Fault | None:
        """The innermost place in a plugin's code (not in stzoo's own) that an error was raised through."""
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            if plugin := self._plugin_of(frame.f_globals.get("__name__")):
                return Fault(plugin, frame.f_code.co_filename, line)
        return None

    def _plugin_of(self, module: str | None) -> Plugin | None:
        top = (module or "").partition(".")[0]
        return next((p for p in self._plugins if top in p.modules and p.name != HOUSE), None)

    def faults(self) -> list[tuple[Plugin, str]]:
        """All that is wrong with the plugins that are not disabled; imports the code of every component."""
        found = []
        for plugin in self._plugins:
            faults = [] if plugin.disabled else list(plugin.failures)
            for kind, parts in plugin.provides.items():
                for part in parts.values():
                    try:
                        _try(kind, part)
                    except MissingExtraError:
                        pass  # what is not installed cannot be tried
                    except StzooError as error:
                        faults.append(f"hook {hook_name(kind)}{plugin.places[kind]}: {error}")
            found += [(plugin, fault) for fault in faults]
        return found

    def build(self, kind: str, name: str, /, *args: Any, **options: Any) -> Any:
        """Calls the component of that name, `build(*args, **options)`, after a look at its options.

        Raises:
            PluginError: if its code cannot be imported, does not take the arguments, or has a mistake in it
                (a TypeError, for example), or if the kind is data; for the name see `find`.
            RecipeError: if it has no option of a name given, needs one that is not given, or one is of
                another type than the builder is annotated with.
        """
        component = self.use(kind, name)
        if not isinstance(component, Component):
            raise PluginError(f"the {kind} {name!r} is data; only a component can be built.")
        plugin = self._owner(kind, component)
        try:
            return call(f"{kind} {name!r}", resolve(component), *args, **options)
        except PluginError as error:
            if type(error) is not PluginError:
                raise
            raise PluginError(f"The plugin {plugin}: {error}") from error
        except MISTAKES as error:
            if plugin.name == HOUSE:
                raise
            raise PluginError(
                f"The plugin {plugin}: {kind} {name!r} cannot be built: {_reason(error)}."
            ) from error

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
        PluginError: if it does not take the arguments.
        RecipeError: if it has no option of a name given, needs one that is not given, or one is of another
            type than the builder is annotated with.
    """
    check_arguments(what, builder, given=len(args))
    check_options(what, builder, options, given=len(args))
    return builder(*args, **_typed(what, builder, options))


def check_arguments(what: str, builder: Callable[..., Any], *, given: int) -> None:
    """Checks that a builder takes so many positional arguments, and everything else by name.

    Raises:
        PluginError: if it does not; with the file and the line.
    """
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):  # of some builders in C
        return
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    takes = sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )
    by_place = [
        parameter.name
        for parameter in list(signature.parameters.values())[given:]
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty
    ]
    if by_place or (takes < given and inspect.Parameter.VAR_POSITIONAL not in kinds):
        name = getattr(builder, "__qualname__", repr(builder))
        raise PluginError(
            f"{what} cannot be built: stzoo calls {name} with {given} positional "
            f"argument{'s' * (given != 1)}, and its options by name; it is "
            f"{name}{signature}{_place(builder)}."
        )


def _place(builder: Any) -> str:
    """File and line of a class or function, in brackets; nothing if it has no code of its own."""
    function = inspect.unwrap(getattr(builder, "__init__") if isinstance(builder, type) else builder)  # noqa: B009
    code = getattr(function, "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code else ""


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
            raise RecipeError(f"{what} has no option {name!r}{suggest(name, known)} {listed}")
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


def _modules(entry: EntryPoint) -> frozenset[str]:
    """Top-level modules of the distribution; at least that of the entry point."""
    listed: set[str] = set()
    if entry.dist:
        listed = set((entry.dist.read_text("top_level.txt") or "").split())
        listed = listed or {Path(f.parts[0]).stem for f in entry.dist.files or () if f.suffix == ".py"}
    return frozenset({*listed, entry.module.partition(".")[0]} - {"stzoo"})


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
        module = entry.load()
    except (Exception, SystemExit) as error:
        plugin.failures.append(_reason(error))
        return
    try:
        hooks = _hooks(plugin.name, module)
    except Exception as error:
        functions = [part for name, part in vars(module).items() if re.search(rf"\b{name}\b", str(error))]
        at = next(filter(None, map(_place, functions)), f" ({getattr(module, '__file__', '?')}:1)")
        plugin.failures.append(_reason(error) + at)
        return
    for kind, functions in hooks.items():
        plugin.places[kind] = _place(functions[0])
        try:
            plugin.provides[kind] = _checked(kind, chain.from_iterable(function() for function in functions))
        except (Exception, SystemExit) as error:
            at = "" if _where(error) else plugin.places[kind]
            plugin.failures.append(f"hook {hook_name(kind)}: {_reason(error)}{at}")
    # of an editable install, the distribution may list no module
    named = (
        getattr(part, "build", getattr(part, "importer", None))
        for parts in plugin.provides.values()
        for part in parts.values()
    )
    tops = {name.partition(":")[0].partition(".")[0] for name in named if isinstance(name, str)}
    plugin.modules |= tops - {"stzoo"}


def _try(kind: str, part: Any) -> None:
    """Imports the code of a component and looks at its signature, or reads a recipe.

    Raises:
        PluginError: if it cannot be used.
    """
    if isinstance(part, Recipe):
        read_recipe(part)
    elif kind in ARGUMENTS:
        check_arguments(f"{kind} {part.name!r}", resolve(part), given=ARGUMENTS[kind])
    else:
        resolve(part)


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
            guess = suggest(caller.name, map(hook_name, KINDS))
            raise PluginError(f"unknown hook {caller.name}{guess}".rstrip("."))
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
    where = _where(error)
    return (text if isinstance(error, StzooError) else f"{type(error).__name__}: {text}") + (
        where and f" ({where})"
    )


def _where(error: BaseException) -> str:
    """File and line at which foreign code, called from here, failed; "" if it was not foreign code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__
    ]
    frames = [frame for frame in frames if frame[0] not in sys.stdlib_module_names | {"pluggy"}]
    own = [f"{file}:{line}" for top, file, line in frames if top == frames[0][0]]  # not what it called
    return own[-1] if own else ""


_shared = Host()
plugins, find, build, recipe_text = _shared.plugins, _shared.find, _shared.build, _shared.recipe_text
origin, use, recording, full_name = _shared.origin, _shared.use, _shared.recording, _shared.full_name
culprit, faults = _shared.culprit, _shared.faults
all = _shared.all  # noqa: A001 - read as `host.all(kind)`; nothing in this module uses the builtin of that name
