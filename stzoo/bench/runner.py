"""bench(): every model on every data set, with BM25 beside.

1. Each data set is found, each model loaded: what is missing is said before anything is encoded.
2. A result that is there for the same model, data and settings is reused.
3. Otherwise: encode, search exactly, score over all judged queries, write the result and its run.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import DataError, RecipeError
from ..files import held, write_json
from ..judged import JudgedSet, find_split, is_beir, read_beir
from ..metrics import score
from ..search import Run, retrieve
from . import lexical, results
from .models import open_model
from .results import Result

DEPTH = 1000  # results kept a query: what Recall@1000 needs


@dataclass(frozen=True)
class _System:
    """Anything that turns a judged set into a run."""

    name: str
    revision: str
    meta: dict[str, Any]
    settings: dict[str, Any]
    how: dict[str, Any]
    retrieve: Callable[[JudgedSet], Run]


def bench(
    models: str | Sequence[str],
    *,
    data: str | Path,
    output: str | Path,
    datasets: str | Sequence[str] | None = None,
    split: str = "test",
    bm25: bool = True,
    batch_size: int = 32,
    max_tokens: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    run_files: bool = True,
    overwrite: bool = False,
    progress: bool | None = None,
) -> list[Result]:
    """Scores models on judged sets and files the results under `output` (see `results.py`).

    Args:
        models: one or several of a folder, a Hub id, or NAME=FOLDER_OR_HUB_ID to file it under NAME.
        data: a BEIR folder, or the parent of several.
        output: where results go.
        datasets: folders (or FOLDER/TASK) under `data`, a list or with commas between; None if `data` is
            itself the data set.
        split: of the judgements.
        bm25: True to score BM25 as well.
        batch_size: texts encoded at once.
        max_tokens: longer texts are cut there; None keeps each model's own limit.
        device: of torch; None takes the best there is.
        threads: on the CPU; None leaves it to torch.
        run_files: True to write TREC run files (some 60 kB a query).
        overwrite: True to score anew what was scored on other data or with other settings.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        data set by data set, BM25 first and the models in the order given.

    Raises:
        DataError: if a data set is not there or does not hold.
        ModelError: if a model cannot be loaded or used.
        OutputError: if `output` is in use, or holds results of other data or settings.
        RecipeError: if an option does not hold.
    """
    models = [models] if isinstance(models, str) else models
    datasets = datasets.split(",") if isinstance(datasets, str) else datasets
    if threads:
        import torch

        torch.set_num_threads(threads)
    if batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size}; expected at least 1.")
    if not models and not bm25:
        raise RecipeError("there is nothing to score; give a model, or let BM25 be scored.")
    from tqdm import tqdm

    folders = _folders(Path(data), datasets)
    for folder in folders:
        find_split(folder, split)
    systems = [_bm25(progress)] if bm25 else []
    for text in models:
        opened = open_model(text, max_tokens=max_tokens, device=device)
        systems.append(
            _System(
                opened.name,
                opened.revision,
                opened.meta,
                {"k": DEPTH, **opened.settings},
                {"batch_size": batch_size, "device": opened.model.device.type},
                partial(retrieve, opened.model, k=DEPTH, batch_size=batch_size, progress=progress),
            )
        )
    found = []
    bars = sys.stderr.isatty() if progress is None else progress
    with held(output) as place, tqdm(total=len(folders) * len(systems), disable=not bars) as bar:
        for folder in folders:
            judged = read_beir(folder, split)
            if run_files:
                results.check_ids(judged)
            for system in systems:
                bar.set_description(f"{system.name} on {judged.name}")
                found.append(_score(system, judged, place, run_files, overwrite))
                bar.update()
    return found


def _score(system: _System, judged: JudgedSet, output: Path, run_files: bool, overwrite: bool) -> Result:
    path = results.result_file(output, system.name, system.revision, judged)
    run_path = results.run_file(path, judged.split)
    known = ((system.name, system.revision), judged, system.settings)
    if not overwrite:
        there = results.find(path, *known)
        if there and (run_path.exists() or not run_files):
            return there
    begun = time.monotonic()
    run = system.retrieve(judged)
    scores = score(judged.qrels, run)
    seconds = time.monotonic() - begun
    write_json(path.with_name("model_meta.json"), system.meta)
    run_path.unlink(missing_ok=True)  # so that no kill leaves a run beside scores that are not its own
    result = results.store(path, *known, scores, seconds, system.how)
    if run_files:
        results.write_run(run_path, run, results.slug(system.name))
    return result


def _bm25(progress: bool | None) -> _System:
    revision = version("bm25s")
    settings = {"k": DEPTH, **lexical.SETTINGS}
    meta = {"name": lexical.NAME, "revision": revision, **lexical.SETTINGS}
    return _System(
        lexical.NAME, revision, meta, settings, {}, partial(lexical.retrieve_bm25, k=DEPTH, progress=progress)
    )


def _folders(data: Path, datasets: Sequence[str] | None) -> list[Path]:
    if datasets is None:
        if data.is_dir() and not is_beir(data):
            inside = sorted(folder.name for folder in data.iterdir() if folder.is_dir() and is_beir(folder))
            if inside:
                raise DataError(
                    f"{data} holds several data sets; name some by --datasets: {', '.join(inside)}."
                )
        return [data]
    if not datasets:
        raise RecipeError("the list of data sets is empty.")
    return [data / name for name in datasets]
