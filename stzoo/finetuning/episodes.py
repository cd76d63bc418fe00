"""Refreshed negatives: mines with the current model, trains on the mined negatives, and repeats.

RUN/episodes/N/ contains the files of episode N, from which a run resumes, also in the middle of an episode:

negatives.parquet   the mined negatives, or TASK.negatives.parquet for each of several tasks; during mining,
                    the embeddings and finished parts are in the same folder
checkpoints/        the checkpoints of the training, as in any run
balancer.safetensors  with several tasks, the balancer's final state, from which the next episode continues
end.safetensors     the final weights (those of the episode's best step if there are dev queries)
episode.json        the run it belongs to, what was mined, the log, and checksums of the files above

Source: ANCE (Xiong et al., ICLR 2021, https://arxiv.org/abs/2007.00808).
Unlike it: mining and training alternate, and the learning rate warms up and decays in each episode, both as
in TACO's code; ANCE mines in parallel to the training, with an older model. A single episode is the static
mining that RetroMAE's paper calls ANCE (staoxiao/RetroMAE, issue 10).
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from sentence_transformers.util import get_device_name
from torch import distributed as dist
from transformers import set_seed

from stzoo.data.beir import RetrievalDataset
from stzoo.data.training_sets.builder import TrainingSetWriter, text_key
from stzoo.data.training_sets.read import read_training
from stzoo.data.training_sets.sets import TrainingSet
from stzoo.errors import OutputError
from stzoo.finetuning.data import DEV_METRIC
from stzoo.finetuning.mining.searchers import Dense, Lexical, Searcher
from stzoo.finetuning.mining.shards import mine_into
from stzoo.finetuning.multitask import STATE
from stzoo.models.loaded import LoadedModel
from stzoo.models.loading import like
from stzoo.models.names import parse_name
from stzoo.retrieval.search.retriever import Retriever
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.records import finite
from stzoo.training.run_files import SCRATCH, matching
from stzoo.training.runs import Run
from stzoo.utils.distributed import is_main_process, main_process_first
from stzoo.utils.files import (
    atomic_file,
    clear_drafts,
    fingerprint,
    remove_files,
    sha256,
    write_json,
)
from stzoo.utils.messages import notify, show_progress
from stzoo.utils.parts import damaged, open_manifest

END, METADATA, NEGATIVES = "end.safetensors", "episode.json", "negatives.parquet"
SUMS = "sha256"  # the key of the checksums in episode.json


def train(
    settings: FinetuneSettings,
    run: Run,
    student: Any,
    judged: Mapping[str, RetrievalDataset],
    teacher: Any,
    fit: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Runs the episodes and leaves the student with the best weights, or the last ones without dev queries.

    Args:
        settings: The settings.
        run: The run whose folder contains the episodes.
        student: The SentenceTransformer to train.
        judged: Training queries and the corpus to mine from, by task name; a single task has the name "".
        teacher: Cross-encoder that scores the mined negatives, or None.
        fit: `stzoo.finetuning.fit.fit` with its dev queries.

    Returns:
        The metadata of all "episodes", the total number of "steps" and, with dev queries, the best score, its
        step and its episode.

    Raises:
        OutputError: If the folder of an episode belongs to another run, or its files are damaged.
    """
    made_from = [run.metadata["recipe"], run.metadata["base"], run.metadata["data"]]
    identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    done: list[dict[str, Any]] = []
    old: dict[str, TrainingSet] = {}
    before: Path | None = None
    for number in range(1, settings.episodes + 1):
        folder = run.folder / "episodes" / str(number)
        episode_settings = settings.model_copy(update={"seed": (settings.seed + number - 1) % 2**32})
        files = {task: folder / (f"{task}.{NEGATIVES}" if task else NEGATIVES) for task in judged}
        with main_process_first():
            metadata = _open(folder, identity)
        # no process writes one before all have looked: mining begins when all are there
        missing = [task for task in judged if not files[task].is_file()]
        for task in missing:
            _mine(episode_settings.each()[task], student, judged[task], teacher, files[task], number)
        with main_process_first():
            if is_main_process():
                _clear(folder)
                _seal(folder, metadata, *(file.name for file in files.values()))
        new = {task: read_training(file) for task, file in files.items()}
        if old and settings.keep_old:
            new = {
                task: mixed(new[task], old[task], settings.keep_old, episode_settings.seed) for task in new
            }
        if metadata.get("finished"):
            student.load_state_dict(load_file(folder / END))
            if dist.is_initialized():
                dist.barrier()  # or the first process may remove the file while others read it
        else:
            set_seed(episode_settings.seed)

            def record(folder: Path = folder, metadata: dict[str, Any] = metadata, **more: Any) -> None:
                metadata |= more
                if is_main_process():
                    write_json(folder / METADATA, finite(metadata))

            result = fit(episode_settings, folder, student, new, record=record, before=before)
            if is_main_process():
                weights = {
                    name: tensor.cpu().contiguous().clone() for name, tensor in student.state_dict().items()
                }
                with atomic_file(folder / END) as draft:
                    save_file(weights, draft)
                _seal(folder, metadata, END, *([STATE] if (folder / STATE).is_file() else ()))
            mined = {task: one.made for task, one in new.items()}
            record(**result, mined=mined.get("", mined), finished=True)
        done.append({"episode": number} | {k: v for k, v in metadata.items() if k not in ("run", "finished")})
        run.record(episodes=done)
        old, before = new, folder
    return {"episodes": done} | _best(run.folder, student, done)


def _seal(folder: Path, metadata: dict[str, Any], *names: str) -> None:
    """Records the checksums of files that an episode has written."""
    metadata[SUMS] = metadata.get(SUMS, {}) | {name: sha256(folder / name) for name in names}
    write_json(folder / METADATA, finite(metadata))


def _remove_damaged(folder: Path, metadata: dict[str, Any]) -> None:
    """Removes the files of an episode that were changed since, so that they are made again."""
    for name in damaged(folder, metadata.get(SUMS, {})):
        notify(f"{folder / name} is damaged or missing; creating it again.")
        (folder / name).unlink(missing_ok=True)
        del metadata[SUMS][name]
        if name in (END, STATE):
            metadata.pop("finished", None)  # both are restored from the last checkpoint
    write_json(folder / METADATA, finite(metadata))


def _open(folder: Path, identity: str) -> dict[str, Any]:
    """Reads the metadata of an episode; the main process creates its folder if it is missing."""
    metadata = open_manifest(folder / METADATA, {"run": identity})
    sums = metadata.get(SUMS, {})
    # Damaged files are removed, so no name may point outside the folder.
    if not isinstance(sums, dict) or any(Path(name).name != name for name in sums):
        raise OutputError(f"{folder / METADATA} is damaged. Remove {folder} to start the episode again.")
    if is_main_process():
        _remove_damaged(folder, metadata)
    return metadata


def _mine(
    settings: FinetuneSettings, student: Any, judged: RetrievalDataset, teacher: Any, file: Path, number: int
) -> None:
    """Mines the negatives of a task in an episode and writes them to `file`."""
    folder = file.parent
    bars = show_progress()
    finder: Searcher
    if number == 1 and settings.first_negatives == "bm25s":
        finder = Lexical(judged, settings.language, progress=bars)
    else:
        before = folder.parent / str(number - 1) / END
        weights = before if number > 1 else Path(settings.model)
        revision = fingerprint(weights)[:12] if weights.exists() else "base"
        model = like(student, list(student))  # without the autocast that training wrapped around it
        model.to(settings.device or get_device_name()).eval()
        opened = LoadedModel(parse_name(settings.model)[0], f"episode-{number}", revision, model)
        retriever = Retriever(opened, folder / "embeddings", progress=bars)
        finder = Dense(retriever, judged)
    with settings.on_engine():
        mine_into(
            file,
            finder,
            judged,
            settings,
            work=file.with_suffix(".parts"),
            seed=settings.seed,
            teacher=teacher,
            progress=bars,
        )


def _clear(folder: Path) -> None:
    """Removes the embeddings and intermediate files of mining, and files that an interruption left behind."""
    clear_drafts(folder)
    remove_files(folder, matching(folder, [SCRATCH]))
    with contextlib.suppress(OSError):  # it does not exist, or contains the user's files
        (folder / "embeddings").rmdir()


def mixed(new: TrainingSet, old: TrainingSet, share: float, seed: int) -> TrainingSet:
    """Replaces a share of each query's new negatives by old ones that are not among them.

    Args:
        new: Newly mined negatives.
        old: Earlier negatives of the same queries, in the same order.
        share: Share of old negatives, 0..1.
        seed: Seed of the random choice.
    """
    writer = TrainingSetWriter()
    for number, (row, before) in enumerate(zip(new.rows(), old.rows(), strict=True)):
        taken = {text_key(one.text) for one in (*row.positives, *row.negatives)}
        stale = [one for one in before.negatives if text_key(one.text) not in taken]
        draw = np.random.default_rng([seed, number])
        count = min(round(share * len(row.negatives)), len(stale))
        kept = [stale[place] for place in np.sort(draw.permutation(len(stale))[:count])]
        left = [row.negatives[place] for place in np.sort(draw.permutation(len(row.negatives))[count:])]
        writer.add(row.query, row.positives, [*left, *kept], row.query_id)
    return writer.finish(new.name, new.folder, notes=new.notes, made=new.made)


def _best(folder: Path, student: Any, done: list[dict[str, Any]]) -> dict[str, Any]:
    """Loads the weights of the episode with the best dev score, if there are dev scores."""
    result: dict[str, Any] = {"steps": sum(one["steps"] for one in done)}
    scored = [one for one in done if one.get(DEV_METRIC) is not None]
    if scored:
        best = max(scored, key=lambda one: (one[DEV_METRIC], -one["episode"]))
        if is_main_process():  # it exports them, and may still be writing them
            end = folder / "episodes" / str(best["episode"]) / END
            if sha256(end) != best.get(SUMS, {}).get(END, sha256(end)):
                raise OutputError(f"{end} is damaged. Run again with --resume to create it again.")
            student.load_state_dict(load_file(end))
        result |= {name: best[name] for name in (DEV_METRIC, "best_step")} | {"best_episode": best["episode"]}
    return result
