"""What a model's folder says of the model, and of the training runs that made it, in words for a card."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.errors import ModelError, PluginError
from stzoo.hub import redact
from stzoo.hub.layout import POOLING_SWITCHES
from stzoo.plugins import manager
from stzoo.plugins.hookspecs import Component
from stzoo.training.history import as_history
from stzoo.utils.outputs import MERGED, RECORD

DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Model:
    """A model, as its files tell.

    Attributes:
        portable: False if it brings code of its own, which users must trust.
        needs: the first version of sentence-transformers that reads its layout.
        prompts: texts by name, without empty ones.
        similarity: cosine, dot, euclidean or manhattan.
        dimensions: numbers in a vector; None if only code of another package knows.
        lengths: tokens at which texts are cut, by kind of text ("" where all are cut alike); without those
            that have no limit.
        modules: names of their classes, with what a pooling takes.
        merged: name and weight of each model that it is the mean of.
    """

    portable: bool
    needs: int
    prompts: dict[str, str]
    similarity: str
    dimensions: int | None
    lengths: dict[str, int]
    modules: list[str]
    merged: list[tuple[str, float]]


@dataclass(frozen=True)
class Step:
    """A training run, as it may be shown.

    Attributes:
        command: pretrain or finetune.
        base: the model it began from.
        base_id: its id on the Hub, or None.
        methods: kind, name, and the component if the plugin that has it is installed.
        data: what it learnt from, a line each.
        datasets: ids on the Hub of those that came from there.
        outcome: steps, time, best score.
        made_with: versions and hardware.
        recipe: all settings.
        notes: what a reader should know of the data.
        lossy: what the portable form leaves out of what was trained.
    """

    command: str
    base: str
    base_id: str | None
    methods: list[tuple[str, str, Component | None]]
    data: list[str]
    datasets: list[str]
    outcome: str
    made_with: str
    recipe: dict[str, Any]
    notes: list[str]
    lossy: list[str]


def read_model(folder: Path) -> Model:
    """Reads what the files of an exported model say.

    Raises:
        ModelError: if the folder is none.
    """
    if not (folder / "modules.json").is_file():
        raise ModelError(
            f"{folder} is no exported model: it has no modules.json. Give the --output of a finished "
            "`stzoo pretrain`, `finetune`, `merge` or `export`."
        )
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        types = [module["type"] for module in modules]
        towers = _towers(folder, modules)
        about = _object(folder / "config_sentence_transformers.json")
        merged = _object(folder / MERGED).get("merged", [])
        return Model(
            portable=all(kind.startswith("sentence_transformers.") for kind in types),
            needs=5 if all(kind.startswith("sentence_transformers.models.") for kind in types) else 6,
            prompts={name: text for name, text in (about.get("prompts") or {}).items() if text},
            similarity=str(about.get("similarity_fn_name") or "cosine"),
            dimensions=_dimensions(towers),
            lengths=_lengths(towers),
            modules=[_named(folder / module["path"], module["type"]) for module in modules],
            merged=[(redact.shown(one["source"], {}), one["weight"]) for one in merged],
        )
    except DAMAGED as error:
        raise ModelError(f"{folder} is no exported model that can be read: {error!r}.") from error


def read_steps(folder: Path) -> tuple[list[Step], dict[str, str]]:
    """The runs that made a model, the first one first, and what to show of the names in them.

    Raises:
        ModelError: if the record does not hold.
    """
    try:
        facts = _object(folder / RECORD)
        runs = [*facts.get("before", []), facts] if facts else []
        known = redact.names(runs)
        return [_step(run, known) for run in runs], known
    except DAMAGED as error:
        raise ModelError(f"{folder / RECORD} is no record of a training run: {error!r}.") from error


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return found


Tower = list[tuple[Path, str]]  # folder and class of each module that a text goes through


def _routes(router: Path) -> dict[str, Tower]:
    config = _object(router / "router_config.json")
    return {
        route: [(router / place, config["types"][place]) for place in places]
        for route, places in config["structure"].items()
    }


def _towers(folder: Path, modules: list[dict[str, Any]]) -> dict[str, Tower]:
    """The modules by kind of text, "" where all go the same way."""
    found: dict[str, Tower] = {"": []}
    for module in modules:
        place, kind = folder / module["path"], module["type"]
        routes = _routes(place) if kind.endswith(".Router") else {"": [(place, kind)]}
        if "" not in routes:
            found = {route: [*found[""], *tower] for route, tower in routes.items()}
        else:
            found = {route: [*tower, *routes[""]] for route, tower in found.items()}
    return found


def _named(place: Path, kind: str) -> str:
    name = kind.rpartition(".")[2]
    if name == "Router":
        routes = _routes(place).items()
        inside = [f"{route}: {', '.join(_named(*one) for one in tower)}" for route, tower in routes]
        return f"{name} ({'; '.join(inside)})"
    if name == "Pooling":
        return f"{name} ({', '.join(_modes(_object(place / 'config.json')))})"
    return name


def _modes(pooling: Mapping[str, Any]) -> list[str]:
    found = pooling.get("pooling_mode") or [
        name for name, key in POOLING_SWITCHES.items() if pooling.get(key)
    ]
    return [found] if isinstance(found, str) else found


def _dimensions(towers: Mapping[str, Tower]) -> int | None:
    """What the last module that changes it makes of a vector's length."""
    found = None
    for place, kind in next(iter(towers.values())):
        config = _object(place / "config.json")
        if kind.endswith(".Pooling"):
            width = config.get("embedding_dimension") or config["word_embedding_dimension"]
            found = width * len(_modes(config))
        elif kind.endswith(".Dense"):
            found = config["out_features"]
        elif not kind.startswith("sentence_transformers."):
            found = None
    return found


def _lengths(towers: Mapping[str, Tower]) -> dict[str, int]:
    found = {route: _max_tokens(tower[0][0]) for route, tower in towers.items()}
    same = len(set(found.values())) == 1
    return {"" if same else route: limit for route, limit in found.items() if limit}


def _max_tokens(first: Path) -> int | None:
    limits = (
        _object(first / "sentence_bert_config.json").get("max_seq_length"),
        _object(first / "tokenizer_config.json").get("model_max_length"),
    )
    return next((int(limit) for limit in limits if limit and limit < 10**9), None)


def _step(run: Mapping[str, Any], known: Mapping[str, str]) -> Step:
    recipe = run["recipe"]
    history = as_history(dict(run), Path())
    shown = redact.shown(recipe, known)
    hardware = run.get("hardware", {})
    machine = (
        f"{hardware['gpus']} x {hardware['gpu']}"
        if "gpu" in hardware
        else f"{hardware.get('cpus', '?')} CPU cores, {hardware.get('machine', '?')}"
    )
    used = run.get("components", ())
    installed = run.get("versions", {}) | {one["distribution"]: one["version"] for one in used}
    versions = ", ".join(f"{name} {number}" for name, number in installed.items())
    return Step(
        command=history.command,
        base=redact.shown(history.base, known),
        base_id=redact.shown(run.get("base", {}).get("id"), known),
        methods=list(_methods(recipe, used)),
        data=redact.shown(list(_data(run, shown)), known),
        datasets=redact.shown(list(run.get("datasets", ())), known),
        outcome=history.outcome,
        made_with=redact.shown(f"{versions}; {machine}", known),
        recipe={key: value for key, value in shown.items() if key != "schema_version"},
        notes=redact.shown(list(_notes(run)), known),
        lossy=redact.shown(list(run.get("lossy", ())), known),
    )


def _methods(
    recipe: Mapping[str, Any], used: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, str, Component | None]]:
    wanted = [("objective", recipe.get("objective"))]
    wanted += [("loss", name) for name in recipe.get("losses", ())]
    wanted += [("balancer", recipe["balancer"])] if recipe.get("tasks") else []
    wanted += [("pooling", recipe.get("pooling"))]
    for kind, name in wanted:
        if name:
            component = None
            with contextlib.suppress(PluginError):  # not installed here
                component = manager.find(kind, manager.full_name(kind, name, used))
            yield kind, redact.shown(name.rpartition(":")[2], {}), component


def _data(run: Mapping[str, Any], shown: Mapping[str, Any]) -> Iterator[str]:
    """A line a source or task; `shown` is the recipe with names for paths."""
    if "corpus" in run and run["recipe"]["command"] == "pretrain":
        corpus = run["corpus"]
        yield (
            f"{', '.join(shown['corpus'])}: {corpus['passages']:,} passages, {corpus['dropped']:,} too short "
            f"and {corpus['bad_lines']:,} bad lines left out, fingerprint {corpus['fingerprint'][:12]}"
        )
        for one in corpus.get("prepared", ()):
            yield f"its columns were made by {json.dumps(one['made_by'], ensure_ascii=False)}"
        return
    tasks = {task["name"]: task["data"] for task in shown.get("tasks") or ()}
    facts, dev = run.get("data") or {}, run.get("dev")
    for task, name in (tasks or {"": shown.get("data", "")}).items():
        own = facts.get(task, {}) if tasks else facts
        line = f"{task}: {name}" if task else name
        if own:
            line += (
                f": {own['queries']:,} queries, {own['pairs']:,} relevant pairs, {own['negatives']:,} "
                f"negatives, fingerprint {own['fingerprint'][:12]}"
            )
        if own.get("mined"):
            line += f"; negatives mined by {_mined(own['mined'])}"
        held = (dev or {}).get(task) if tasks else dev
        if held:
            line += f"; stopped by {held['queries']:,} held-out queries"
        yield line
    if rounds := shown.get("episodes"):
        first = " (first by bm25s)" if shown.get("first_negatives") == "bm25s" else ""
        yield (
            f"negatives mined by the model itself{first} in {rounds} episodes, as in ANCE (arXiv 2007.00808)"
        )
    if shown.get("teacher"):
        yield f"scores of the teacher {shown['teacher']}"


def _mined(made: Mapping[str, Any]) -> str:
    parts = (made.get(part) for part in ("model", "teacher"))  # of another's file they may be anything
    by = [part["name"] for part in parts if isinstance(part, dict) and isinstance(part.get("name"), str)]
    return " and ".join(by) or "a model that is not named"


def _notes(run: Mapping[str, Any]) -> Iterator[str]:
    yield from run.get("notes", ())
    for one in (run.get("corpus") or {}).get("prepared", ()):
        yield from one["notes"]
    data, dev = run.get("data") or {}, run.get("dev") or {}
    for own in (data, *data.values()):
        if isinstance(own, dict):
            yield from own.get("notes", ())
    for held in (dev, *dev.values()):
        if isinstance(held, dict) and held.get("sharing_answers"):
            yield (
                f"{held['sharing_answers']} of the {held['queries']} held-out queries share an answer with a "
                "training query, so their scores flatter."
            )
