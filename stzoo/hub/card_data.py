"""The contents of a model's folder, and of the records of its training runs, in words for a card."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.errors import ModelError, PluginError
from stzoo.evaluation.adapt_record import reason_to_keep_base
from stzoo.hub import redact
from stzoo.hub.layout import POOLING_SWITCHES
from stzoo.plugins import classes, manager
from stzoo.plugins.hookspecs import Component
from stzoo.training.history import as_history
from stzoo.training.recipes import with_effect
from stzoo.utils.messages import counted
from stzoo.utils.outputs import ADAPTATION, MERGED, RECORD, no_model

OWN_CLASS = Component(name="", build="", summary="a class of its author's, which no package provides")
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Model:
    """A model as its files describe it.

    Attributes:
        portable: False if it comes with code of its own, which users must trust.
        needs: First major version of sentence-transformers that reads its layout.
        prompts: Texts of the prompts by name, without empty ones.
        similarity: cosine, dot, euclidean or manhattan.
        dimensions: Dimension of the vectors; None if only code of another package knows it.
        lengths: Maximum number of tokens by kind of text ("" if all have the same), without kinds that have
            no limit.
        modules: Class names of the modules, with the modes of a pooling.
        merged: Name and weight of each model that was merged.
        adapted: The record of `stzoo adapt`, empty if it did not make the model.
        keep_base: Why `stzoo adapt` advised to keep the base model; "" if it did not.
    """

    portable: bool
    needs: int
    prompts: dict[str, str]
    similarity: str
    dimensions: int | None
    lengths: dict[str, int]
    modules: list[str]
    merged: list[tuple[str, float]]
    adapted: dict[str, Any]
    keep_base: str


@dataclass(frozen=True)
class Step:
    """A training run without local paths and secrets.

    Attributes:
        command: pretrain or finetune.
        base: Model that the run started from.
        base_id: Id of that model on the Hub, or None.
        methods: Kind and name of each component, and the component itself if its plugin is installed.
        data: One line per source of training data.
        datasets: Ids of the training data on the Hub.
        outcome: Steps, time and best score.
        made_with: Versions and hardware.
        recipe: The settings that had an effect.
        gain: What fine-tuning gained over its base on the dev queries; empty if it was not measured.
        notes: Notes on the data.
        lossy: Notes on trained parts that the portable export leaves out.
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
    gain: dict[str, Any]
    notes: list[str]
    lossy: list[str]


def read_model(folder: Path) -> Model:
    """Reads the files of an exported model.

    Raises:
        ModelError: If the folder is not an exported model.
    """
    if not (folder / "modules.json").is_file():
        raise ModelError(no_model(folder))
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        types = [module["type"] for module in modules]
        towers = _towers(folder, modules)
        config = _object(folder / "config_sentence_transformers.json")
        merged = _object(folder / MERGED).get("merged", [])
        adapted = redact.shown(_object(folder / ADAPTATION).get("adapted", {}), {})
        return Model(
            portable=all(kind.startswith("sentence_transformers.") for kind in types),
            needs=5 if all(kind.startswith("sentence_transformers.models.") for kind in types) else 6,
            prompts={name: text for name, text in (config.get("prompts") or {}).items() if text},
            similarity=str(config.get("similarity_fn_name") or "cosine"),
            dimensions=_dimensions(towers),
            lengths=_lengths(towers),
            modules=[_describe_module(folder / module["path"], module["type"]) for module in modules],
            merged=[(redact.shown(one["source"], {}), one["weight"]) for one in merged],
            adapted=adapted,
            keep_base=reason_to_keep_base(adapted["gain"]) if adapted.get("gain") else "",
        )
    except DAMAGED as error:
        raise ModelError(f"the model in {folder} cannot be read: {error!r}. Export it again.") from error


def read_steps(folder: Path) -> tuple[list[Step], dict[str, str]]:
    """Reads the training runs of a model, first one first, and the public forms of the names in them.

    Raises:
        ModelError: If the record is invalid.
    """
    try:
        record = _object(folder / RECORD)
        runs = [*record.get("before", []), record] if record else []
        known = redact.names(runs)
        return [_step(run, known) for run in runs], known
    except DAMAGED as error:
        raise ModelError(f"{folder / RECORD} is not a valid record of a training run: {error!r}.") from error


def _object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; {} if the file does not exist."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


Tower = list[tuple[Path, str]]  # folder and class of each module that a text passes through


def _routes(router: Path) -> dict[str, Tower]:
    config = _object(router / "router_config.json")
    return {
        route: [(router / name, config["types"][name]) for name in names]
        for route, names in config["structure"].items()
    }


def _towers(folder: Path, modules: list[dict[str, Any]]) -> dict[str, Tower]:
    """The modules by kind of text; "" if all texts have the same."""
    towers: dict[str, Tower] = {"": []}
    for module in modules:
        path, kind = folder / module["path"], module["type"]
        routes = _routes(path) if kind.endswith(".Router") else {"": [(path, kind)]}
        if "" not in routes:
            towers = {route: [*towers[""], *tower] for route, tower in routes.items()}
        else:
            towers = {route: [*tower, *routes[""]] for route, tower in towers.items()}
    return towers


def _describe_module(path: Path, kind: str) -> str:
    name = kind.rpartition(".")[2]
    if name == "Router":
        routes = _routes(path).items()
        parts = [f"{route}: {', '.join(_describe_module(*one) for one in tower)}" for route, tower in routes]
        return f"{name} ({'; '.join(parts)})"
    if name == "Pooling":
        return f"{name} ({', '.join(_modes(_object(path / 'config.json')))})"
    return name


def _modes(pooling: Mapping[str, Any]) -> list[str]:
    modes = pooling.get("pooling_mode") or [
        name for name, key in POOLING_SWITCHES.items() if pooling.get(key)
    ]
    return [modes] if isinstance(modes, str) else modes


def _dimensions(towers: Mapping[str, Tower]) -> int | None:
    """The dimension after the last module that changes it."""
    dimension = None
    for path, kind in next(iter(towers.values())):
        config = _object(path / "config.json")
        if kind.endswith(".Pooling"):
            width = config.get("embedding_dimension") or config["word_embedding_dimension"]
            dimension = width * len(_modes(config))
        elif kind.endswith(".Dense"):
            dimension = config["out_features"]
        elif not kind.startswith("sentence_transformers."):
            dimension = None
    return dimension


def _lengths(towers: Mapping[str, Tower]) -> dict[str, int]:
    limits = {route: _max_tokens(tower[0][0]) for route, tower in towers.items()}
    same = len(set(limits.values())) == 1
    return {"" if same else route: limit for route, limit in limits.items() if limit}


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
    installed = run.get("versions", {}) | {
        one["distribution"]: one["version"] for one in used if one["distribution"]
    }
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
        recipe={key: shown[key] for key in with_effect(recipe, run) if key != "schema_version"},
        gain=run.get("gain") or {},
        notes=redact.shown(list(_notes(run)), known),
        lossy=redact.shown(list(run.get("lossy", ())), known),
    )


def _methods(
    recipe: Mapping[str, Any], used: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, str, Component | None]]:
    methods = [("objective", recipe.get("objective"))]
    methods += [("loss", name) for name in recipe.get("losses", ())]
    methods += [("balancer", recipe["balancer"])] if recipe.get("tasks") else []
    methods += [("pooling", recipe.get("pooling"))]
    for kind, name in methods:
        if name:
            component = OWN_CLASS if classes.is_class(name) else None
            with contextlib.suppress(PluginError):  # not installed here
                component = component or manager.find(kind, manager.full_name(kind, name, used))
            yield kind, redact.shown(classes.plain(name), {}), component


def _data(run: Mapping[str, Any], shown: Mapping[str, Any]) -> Iterator[str]:
    """One line per source or task; `shown` is the recipe with names in place of paths."""
    if "corpus" in run and run["recipe"]["command"] == "pretrain":
        corpus = run["corpus"]
        yield (
            f"{', '.join(shown['corpus'])}: {counted(corpus['passages'], 'passage')}, "
            f"{corpus['dropped']:,} too short and {counted(corpus['bad_lines'], 'bad line')} left out, "
            f"fingerprint {corpus['fingerprint'][:12]}"
        )
        for prepared in corpus.get("prepared", ()):
            yield f"its columns were made by {json.dumps(prepared['made_by'], ensure_ascii=False)}"
        return
    tasks = {task["name"]: task["data"] for task in shown.get("tasks") or ()}
    records, devs = run.get("data") or {}, run.get("dev")
    for task, name in (tasks or {"": shown.get("data", "")}).items():
        record = records.get(task, {}) if tasks else records
        line = f"{task}: {name}" if task else name
        if record:
            line += (
                f": {counted(record['queries'], 'query')}, {counted(record['pairs'], 'relevant pair')}, "
                f"{counted(record['negatives'], 'negative')}, fingerprint {record['fingerprint'][:12]}"
            )
        if record.get("mined"):
            line += f"; negatives mined by {_mined(record['mined'])}"
        dev = (devs or {}).get(task) if tasks else devs
        if dev:
            line += f"; stopped by {counted(dev['queries'], 'held-out query')}"
        yield line
    if rounds := shown.get("episodes"):
        first = " (first by bm25s)" if shown.get("first_negatives") == "bm25s" else ""
        yield (
            f"negatives mined by the model itself{first} in {counted(rounds, 'episode')}, as in ANCE "
            "(arXiv 2007.00808)"
        )
    if shown.get("teacher"):
        yield f"scores of the teacher {shown['teacher']}"


def _mined(manifest: Mapping[str, Any]) -> str:
    parts = (manifest.get(part) for part in ("model", "teacher"))  # other tools' files may have anything here
    names = [part["name"] for part in parts if isinstance(part, dict) and isinstance(part.get("name"), str)]
    return " and ".join(names) or "an unnamed model"


def _notes(run: Mapping[str, Any]) -> Iterator[str]:
    yield from run.get("notes", ())
    for prepared in (run.get("corpus") or {}).get("prepared", ()):
        yield from prepared["notes"]
    data, devs = run.get("data") or {}, run.get("dev") or {}
    for record in (data, *data.values()):
        if isinstance(record, dict):
            yield from record.get("notes", ())
    for dev in (devs, *devs.values()):
        if isinstance(dev, dict) and dev.get("sharing_answers"):
            yield (
                f"{dev['sharing_answers']} of the {dev['queries']} held-out queries share an answer with a "
                "training query, so their scores are too optimistic."
            )
