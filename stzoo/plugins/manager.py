"""Finds, checks and looks up plugins. Only this module and hookspecs use pluggy.

A plugin is the module that an entry point of the group `stzoo` names. Plugins are loaded at first use, never
at import, each in its own pluggy manager, so a broken plugin does not affect the others. Faulty parts are
left out, and `plugins()` reports why, with file and line:

- the whole plugin, if it cannot be imported, has the same entry-point name as another distribution, or
  implements a hook that the contract lacks or with another signature (it was written for another version);
- one of its hooks, if the hook raises or yields an invalid value: all values of that hook are left out,
  because half a list would look complete. The plugin's other hooks stay;
- a plain name, if two plugins provide it: "plugin:name" selects one. The order of loading never decides.
"""

import contextlib
import functools
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pluggy

from stzoo.errors import ConflictError, MissingExtraError, PluginError, StzooError, UnknownNameError, suggest
from stzoo.plugins import classes, hookspecs
from stzoo.plugins.builders import ARGUMENTS, call, check_arguments, read_recipe, resolve
from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe
from stzoo.plugins.locate import defined_at, raised_at, reason


def singular(plural: str) -> str:
    """The singular of a kind: "objective" for "objectives", "loss" for "losses"."""
    if plural.endswith("ss"):
        return plural
    return plural.removesuffix("es") if plural.endswith("sses") else plural.removesuffix("s")


def plural(kind: str) -> str:
    """The plural of a kind: "objectives" for "objective", "losses" for "loss"."""
    return f"{kind}{'es' if kind.endswith('s') else 's'}"


def hook_name(kind: str) -> str:
    """The hook that provides a kind: "stzoo_objectives" for "objective"."""
    return f"stzoo_{plural(kind)}"


# kind -> type of its values, from the hooks: stzoo_objectives() -> Iterable[Component] gives "objective"
KINDS: dict[str, Any] = {
    singular(name.removeprefix("stzoo_")): get_args(get_type_hints(hook)["return"])[0]
    for name, hook in vars(hookspecs).items()
    if name.startswith("stzoo_")
}
BUILTIN = "builtin"  # entry point of the built-in components: always loaded, and reserved

# programming errors; a ValueError may be about the user's input
MISTAKES = (TypeError, AttributeError, NameError, LookupError, ImportError, NotImplementedError)

_KEBAB = "[a-z0-9]+(-[a-z0-9]+)*"
_NAME = (_KEBAB, "kebab-case")
_CHECKPOINT_NAME = (rf"[a-z0-9]+(-[a-z0-9]+)+\.{_KEBAB}", "method-size.data")


@dataclass
class Plugin:
    """An installed plugin, whether usable or not.

    Attributes:
        name: Name of the entry point, e.g. "retromae".
        distribution: Name of the distribution, e.g. "stzoo-retromae".
        version: Version of the distribution.
        module: Module that the entry point names.
        modules: Names of the top-level modules of the distribution and of its components.
        provides: For each kind, its Components, Checkpoints or Recipes by name.
        locations: For each kind, file and line of the hook, in brackets.
        failures: One reason for each part that was left out, with file and line.
        disabled: True if STZOO_PLUGINS excludes the plugin.
    """

    name: str
    distribution: str
    version: str
    module: str
    modules: frozenset[str] = frozenset()
    provides: dict[str, dict[str, Any]] = field(default_factory=dict)
    locations: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    disabled: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


class Fault(NamedTuple):
    """The place in a plugin's code that raised an error: plugin, file and line (counted from 1)."""

    plugin: Plugin
    file: str
    line: int


class Host:
    """The installed plugins, which are loaded when a method is first called.

    The environment variable STZOO_PLUGINS, a comma-separated list of entry-point names, restricts which
    plugins are loaded; the built-in components always are. If a plugin in that list is not installed, every
    method raises UnknownNameError.
    """

    def __init__(self) -> None:
        self._records: list[list[dict[str, str]]] = []
        self._own = Plugin(classes.PLUGIN, "", "", "")  # what was registered

    @functools.cached_property
    def _plugins(self) -> list[Plugin]:
        entries = sorted(entry_points(group="stzoo"), key=lambda e: (e.name != BUILTIN, e.name, _origin(e)))
        plugins = [Plugin(e.name, *_origin(e), e.value, _modules(e)) for e in entries]
        names = {p.name for p in plugins}
        chosen = os.environ.get("STZOO_PLUGINS")
        enabled = names if chosen is None else {BUILTIN, *filter(None, map(str.strip, chosen.split(",")))}
        for missing in sorted(enabled - names - {BUILTIN}):
            hints = [f"STZOO_PLUGINS={chosen} lists it.", *_not_installed(plugins)]
            raise UnknownNameError("plugin", missing, names, " ".join(hints))
        for plugin, entry in zip(plugins, entries, strict=True):
            rivals = [str(p) for p in plugins if p.name == plugin.name and p is not plugin]
            if plugin.name not in enabled:
                plugin.disabled = True
                plugin.failures.append(f"excluded by STZOO_PLUGINS={chosen}")
            elif rivals and (plugin.name, plugin.distribution) != (BUILTIN, "stzoo"):
                plugin.failures.append(f"{', '.join(rivals)} has the same entry-point name")
            else:
                _load(plugin, entry)
        for kind in KINDS:
            for name, owners in _owners(plugins, kind).items():
                for plugin in owners if len(owners) > 1 else ():
                    others = ", ".join(str(p) for p in owners if p is not plugin)
                    plugin.failures.append(
                        f"{kind} {name!r} is also provided by {others}{plugin.locations[kind]}"
                    )
        return plugins

    def plugins(self) -> list[Plugin]:
        """All installed plugins sorted by name, `builtin` first, including those with faults."""
        return list(self._plugins)

    def all(self, kind: str) -> dict[str, Any]:
        """All parts of a kind by name, sorted.

        A name that several plugins provide is listed as "plugin:name", once per plugin.

        Raises:
            UnknownNameError: If there is no such kind.
        """
        parts = {}
        for name, owners in self._by_name(kind).items():
            for plugin in owners:
                key = name if len(owners) == 1 else f"{plugin.name}:{name}"
                parts[key] = plugin.provides[kind][name]
        return dict(sorted(parts.items()))

    def find(self, kind: str, name: str) -> Any:
        """Finds the Component, Checkpoint or Recipe of a name.

        Args:
            kind: A kind of KINDS, e.g. "objective".
            name: Name of the part, e.g. "retromae", or "plugin:name" if several plugins provide it.

        Raises:
            ConflictError: If several plugins provide the name.
            UnknownNameError: If no plugin provides it, or there is no such kind.
            PluginError: If it is a class that was registered in another process.
        """
        chosen, _, plain = self.canonical(kind, name).rpartition(":")
        if chosen == self._own.name:
            with contextlib.suppress(KeyError):
                return self._own.provides[kind][plain]
            raise PluginError(
                f"The {kind} {name!r} is a class that was passed in Python. Pass it there again, unchanged, "
                f"as {kind}=CLASS, or make it a plugin."
            )
        owners = [p for p in self._by_name(kind).get(plain, []) if chosen in ("", p.name)]
        if not owners:
            faulty = [p for p in self._plugins if p.failures and kind not in p.provides]
            hints = [f"Plugin {p} provides no {kind}: {'; '.join(p.failures)}." for p in faulty]
            hints += _not_installed(self._plugins)
            aliases = [alias for part in self.all(kind).values() for alias in getattr(part, "aliases", ())]
            raise UnknownNameError(kind, name, self.all(kind), " ".join(hints), aliases)
        if len(owners) > 1:
            raise ConflictError(
                f"{len(owners)} plugins provide the {kind} {plain!r}: {', '.join(map(str, owners))}. "
                f"Use {' or '.join(f'{p.name}:{plain}' for p in owners)}, or uninstall one of the plugins."
            )
        return owners[0].provides[kind][plain]

    def register(self, kind: str, given: Component | Callable[..., Any]) -> str:
        """Makes a class or function of this process a component, so that it needs no plugin.

        Other processes do not know it, and neither does the command line.

        Args:
            kind: A kind of KINDS whose parts are components, e.g. "objective".
            given: The class or function, or a Component of it; see `classes.as_component`.

        Returns:
            Its full name for `find`: "python:NAME@FINGERPRINT", or the name of an installed component if it
            is one.

        Raises:
            PluginError: As in `classes.as_component`, or if a component's code cannot be imported.
        """
        place = f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', '')}"
        for name, part in self.all(kind).items():
            if given in (part, part.build) or place == part.build:
                return name
        component = classes.as_component(given)
        if isinstance(given, Component) and not re.fullmatch(_KEBAB, given.name):
            raise PluginError(f"The {kind} has the name {given.name!r}; expected kebab-case.")
        name = f"{component.name}@{classes.fingerprint(resolve(component))}"
        self._own.provides.setdefault(kind, {})[name] = replace(component, name=name)
        return f"{self._own.name}:{name}"

    def canonical(self, kind: str, name: str) -> str:
        """The name of the component that has an alias; the unchanged name if none, or several, have it."""
        if ":" in name or name in self._by_name(kind):
            return name
        owners = {
            part.name
            for part in self.all(kind).values()
            if _squashed(name) in map(_squashed, (part.name, *getattr(part, "aliases", ())))
        }
        return owners.pop() if len(owners) == 1 else name

    def origin(self, kind: str, name: str) -> dict[str, str]:
        """The entry of a component in records: kind, plain name, plugin, distribution and version.

        Raises:
            PluginError: As in `find`.
        """
        component = self.find(kind, name)
        plugin = self._owner(kind, component)
        part = {"kind": kind, "name": component.name, "plugin": plugin.name}
        return part | {"distribution": plugin.distribution, "version": plugin.version}

    def _owner(self, kind: str, component: Any) -> Plugin:
        parts = (
            (plugin, plugin.provides.get(kind, {}).get(component.name))
            for plugin in [*self._plugins, self._own]
        )
        return next(plugin for plugin, part in parts if part is component)

    def use(self, kind: str, name: str) -> Any:
        """Finds a component like `find`, and adds it to the open recordings."""
        origin = self.origin(kind, name)
        for record in self._records:
            if origin not in record:
                record.append(origin)
        return self.find(kind, name)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[dict[str, str]]]:
        """Collects the `origin` of each component that is used while the block runs."""
        record: list[dict[str, str]] = []
        self._records.append(record)
        try:
            yield record
        finally:
            self._records = [one for one in self._records if one is not record]

    def full_name(self, kind: str, name: str, used: Iterable[Mapping[str, str]] = ()) -> str:
        """The name of a component with its plugin, "plugin:name", so that names can be compared.

        Args:
            kind: A kind of KINDS.
            name: Name with or without the plugin.
            used: Origins in the record that the name comes from; they take precedence over installed plugins.

        Returns:
            The full name, or the unchanged name if none or several plugins are known to provide it.
        """
        if ":" in name:
            return name
        owners = {one["plugin"] for one in used if (one["kind"], one["name"]) == (kind, name)}
        owners = owners or {plugin.name for plugin in self._by_name(kind).get(name, ())}
        return f"{owners.pop()}:{name}" if len(owners) == 1 else name

    def culprit(self, error: BaseException) -> Fault | None:
        """The innermost place in a plugin's code (not stzoo's) in the traceback of an error."""
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            if plugin := self._plugin_of(frame.f_globals.get("__name__")):
                return Fault(plugin, frame.f_code.co_filename, line)
        return None

    def _plugin_of(self, module: str | None) -> Plugin | None:
        top = (module or "").partition(".")[0]
        return next((p for p in self._plugins if top in p.modules and p.name != BUILTIN), None)

    def faults(self) -> list[tuple[Plugin, str]]:
        """All faults of the plugins that are not disabled. Imports the code of every component."""
        everything = []
        for plugin in self._plugins:
            faults = [] if plugin.disabled else list(plugin.failures)
            for kind, parts in plugin.provides.items():
                for part in parts.values():
                    try:
                        _try(kind, part)
                    except MissingExtraError:
                        pass  # needs an optional package, so it cannot be checked
                    except StzooError as error:
                        faults.append(f"hook {hook_name(kind)}{plugin.locations[kind]}: {error}")
            everything += [(plugin, fault) for fault in faults]
        return everything

    def build(self, kind: str, name: str, /, *args: Any, **options: Any) -> Any:
        """Checks the options of a component and calls its `build(*args, **options)`.

        Raises:
            PluginError: If its code cannot be imported, does not accept the arguments, or has a programming
                error (e.g. a TypeError), or if the kind is data; for the name see `find`.
            RecipeError: If an option is unknown, missing, or not of the type that the builder is annotated
                with.
        """
        component = self.use(kind, name)
        if not isinstance(component, Component):
            raise PluginError(f"the {kind} {name!r} is data and cannot be built; expected a component.")
        plugin = self._owner(kind, component)
        by = "" if plugin is self._own else f"the plugin {plugin}: "
        try:
            return call(f"{kind} {name!r}", resolve(component), *args, **options)
        except PluginError as error:
            if type(error) is not PluginError:
                raise
            raise PluginError(f"{by}{error}") from error
        except MISTAKES as error:
            if plugin.name == BUILTIN:
                raise
            raise PluginError(f"{by}{kind} {name!r} cannot be built: {reason(error)}.") from error

    def recipe_text(self, name: str) -> str:
        """The YAML text of a recipe.

        Raises:
            PluginError: If its file cannot be read; for the name see `find`.
        """
        return read_recipe(self.find("recipe", name))

    def _by_name(self, kind: str) -> dict[str, list[Plugin]]:
        if kind not in KINDS:
            raise UnknownNameError("kind", kind, KINDS)
        return _owners(self._plugins, kind)


def _squashed(name: str) -> str:
    """A name without what does not matter in aliases: "MarginMSELoss" and "margin-mse" are the same."""
    return re.sub("[^a-z0-9]", "", name.lower()).removesuffix("loss")


def _origin(entry: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution."""
    return (entry.dist.name or "?", entry.dist.version or "?") if entry.dist else ("?", "?")


def _modules(entry: EntryPoint) -> frozenset[str]:
    """The top-level modules of the distribution, at least that of the entry point."""
    listed: set[str] = set()
    if entry.dist:
        listed = set((entry.dist.read_text("top_level.txt") or "").split())
        listed = listed or {Path(f.parts[0]).stem for f in entry.dist.files or () if f.suffix == ".py"}
    return frozenset({*listed, entry.module.partition(".")[0]} - {"stzoo"})


def _not_installed(plugins: list[Plugin]) -> list[str]:
    """A sentence with the command to run if plugins that stzoo depends on are not installed; else nothing."""
    try:
        needs = requires("stzoo") or []
    except PackageNotFoundError:  # stzoo is on the path, but not installed
        return []
    named = {need: found[0] for need in needs if (found := re.match(r"stzoo-[\w-]+", need))}
    missing = {need: name for need, name in named.items() if name not in {p.distribution for p in plugins}}
    command = f"pip install {' '.join(map(repr, missing))}"
    return [f"Not installed: {', '.join(missing.values())}. Run: {command}"] if missing else []


def _owners(plugins: list[Plugin], kind: str) -> dict[str, list[Plugin]]:
    owners: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        for name in plugin.provides.get(kind, ()):
            owners.setdefault(name, []).append(plugin)
    return owners


def _load(plugin: Plugin, entry: EntryPoint) -> None:
    """Loads a plugin: records what it provides, and why anything was left out."""
    # SystemExit: a script that ends in sys.exit(), named as a plugin by mistake, must not end this process
    try:
        module = entry.load()
    except (Exception, SystemExit) as error:
        plugin.failures.append(reason(error))
        return
    try:
        hooks = _hooks(plugin.name, module)
    except Exception as error:
        functions = [part for name, part in vars(module).items() if re.search(rf"\b{name}\b", str(error))]
        at = next(filter(None, map(defined_at, functions)), f" ({getattr(module, '__file__', '?')}:1)")
        plugin.failures.append(reason(error) + at)
        return
    for kind, functions in hooks.items():
        plugin.locations[kind] = defined_at(functions[0])
        try:
            plugin.provides[kind] = _checked(kind, chain.from_iterable(function() for function in functions))
        except (Exception, SystemExit) as error:
            at = "" if raised_at(error) else plugin.locations[kind]
            plugin.failures.append(f"hook {hook_name(kind)}: {reason(error)}{at}")
    # the distribution of an editable install may list no modules
    named = (
        getattr(part, "build", getattr(part, "importer", None))
        for parts in plugin.provides.values()
        for part in parts.values()
    )
    tops = {name.partition(":")[0].partition(".")[0] for name in named if isinstance(name, str)}
    plugin.modules |= tops - {"stzoo"}


def _try(kind: str, part: Any) -> None:
    """Imports the code of a component and checks its signature, or reads a recipe.

    Raises:
        PluginError: If it cannot be used.
    """
    if isinstance(part, Recipe):
        read_recipe(part)
    elif kind in ARGUMENTS:
        check_arguments(f"{kind} {part.name!r}", resolve(part), given=ARGUMENTS[kind])
    else:
        resolve(part)


def _hooks(name: str, module: Any) -> dict[str, list[Callable[..., Any]]]:
    """The hook implementations by kind; pluggy raises an error if a signature differs from the hook's."""
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
    """Checks the values of a hook and returns them by name."""
    expected = KINDS[kind]
    pattern, form = _CHECKPOINT_NAME if expected is Checkpoint else _NAME
    checked: dict[str, Any] = {}
    for value in values:
        if not isinstance(value, expected):
            raise PluginError(f"yields {value!r:.60}; expected a {expected.__name__}")
        if not re.fullmatch(pattern, value.name):
            raise PluginError(f"yields the name {value.name!r}; expected {form}")
        if value.name in checked:
            raise PluginError(f"yields {value.name!r} twice")
        checked[value.name] = value
    return checked


_shared = Host()
plugins, find, build, recipe_text = _shared.plugins, _shared.find, _shared.build, _shared.recipe_text
origin, use, recording, full_name = _shared.origin, _shared.use, _shared.recording, _shared.full_name
culprit, faults, canonical = _shared.culprit, _shared.faults, _shared.canonical
register = _shared.register
all = _shared.all  # noqa: A001 - used as `manager.all(kind)`; nothing in this module uses the builtin
