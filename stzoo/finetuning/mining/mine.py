"""`stzoo mine`: writes a training file with hard negatives."""

import contextlib
from pathlib import Path
from typing import Any

import torch

from stzoo.data.find_datasets import locate
from stzoo.data.training_sets.mined import check_mined_name, read_made
from stzoo.data.training_sets.read import read_judged
from stzoo.errors import DataError, OutputError, RecipeError
from stzoo.finetuning.mining.manifest import build_manifest
from stzoo.finetuning.mining.mined_file import MinedFile
from stzoo.finetuning.mining.rules import check_rules
from stzoo.finetuning.mining.searchers import Dense, Lexical, Searcher
from stzoo.finetuning.mining.shards import mine_into, remove, unfinished
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.loaded import open_model
from stzoo.plugins import manager
from stzoo.retrieval import bm25
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.training.finetune_settings import MineSettings
from stzoo.utils.distributed import is_main_process, local_device
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import show_progress
from stzoo.utils.outputs import check_output, check_resume
from stzoo.utils.parts import check_manifest
from stzoo.utils.public import public


@public(MineSettings)
def mine(
    model: Any = None,
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> MinedFile:
    """Searches a corpus with a model and keeps passages that rank high but are not known answers.

    Args:
        model: Path to a sentence-transformers model folder, its Hub id, or a SentenceTransformer; or "bm25s".
        recipe: Path to a YAML file, or the name of an installed recipe.
        output: Path to the file, .parquet or .jsonl. It has one row per query with FlagEmbedding's columns
            ("query", "pos", "neg", "pos_scores", "neg_scores") and the ids. Unfinished work is stored in a
            hidden folder next to it.
        resume: True to continue unfinished work, or to start if there is none; a finished file is kept.
        overwrite: True to start from scratch, and to replace the file at the end.
        progress: True for progress bars on stderr; None shows them on a terminal only.
        settings: Fields of `MineSettings`, e.g. data, depth, relative_margin; they override those of the
            recipe.

    Returns:
        The file, a Path that finetune, rerank and contamination take as data, with `.record` (how it was
        made) and `.counts`.

    Raises:
        StzooError: If the user made a mistake; see `stzoo.errors`.
    """
    config = MineSettings.read(recipe, settings if model is None else settings | {"model": model})
    check_rules(config)
    if config.language is not None and config.model != bm25.NAME:
        raise RecipeError(f"language (--language) applies to {bm25.NAME} only; leave it out.")
    if config.engine != "local" and config.model == bm25.NAME and not config.teacher:
        raise RecipeError(
            f"--engine {config.engine} has no effect on {bm25.NAME} without --teacher, as workers encode and "
            "score; drop it."
        )
    check_resume(resume, overwrite)
    read = [config.model, config.data, config.corpus, config.teacher]
    if config.store:
        check_output(config.store, kind="results", inputs=read)
    path = check_output(
        check_mined_name(output),
        kind="file",
        inputs=read,
        is_ours=_is_mined,
        what="a file that stzoo mine wrote",
    )
    work = path.with_name(f".{path.name}.mining")
    left = unfinished(work)
    if is_main_process() and not (resume or overwrite) and (path.exists() or left):
        what = f"{work} contains an unfinished run" if left else f"{path} exists already"
        raise OutputError(f"{what}. Use --resume to continue, --overwrite, or another --output.")
    if config.threads:
        torch.set_num_threads(config.threads)
    bars = show_progress(progress)
    judged = read_judged(
        locate(config.data, on_hub=True, progress=bars),
        config.split,
        corpus=locate(config.corpus, progress=bars) if config.corpus else None,
        columns=config.columns,
        progress=progress,
    )
    teacher = (
        open_teacher(config.teacher, max_tokens=config.teacher_tokens, device=config.device or local_device())
        if config.teacher
        else None
    )
    with manager.recording() as used:
        finder = _finder(config, judged, bars)
    if used:  # for example a plugin's pooling
        finder.metadata = finder.metadata | {"components": used}
    if path.exists() and not overwrite and not left:
        metadata = read_made(path)
        assert metadata is not None, "see is_ours"
        check_manifest(path, metadata, build_manifest(finder, judged, config, config.seed, teacher))
    else:
        try:
            with config.on_engine():
                mine_into(
                    path,
                    finder,
                    judged,
                    config,
                    work=work,
                    seed=config.seed,
                    teacher=teacher,
                    memory_gib=config.memory_gib,
                    overwrite=overwrite,
                    progress=bars,
                )
        finally:
            if is_main_process():
                with contextlib.suppress(OSError):  # it contains finished parts
                    work.rmdir()
    if is_main_process():
        remove(work)
    return MinedFile(path)


def _is_mined(path: Path) -> bool:
    try:
        return read_made(path) is not None
    except DataError:  # the file cannot be read
        return False


def _finder(settings: MineSettings, judged: Any, bars: bool) -> Searcher:
    if settings.model == bm25.NAME:
        if settings.max_tokens is not None:
            raise RecipeError(f"{bm25.NAME} reads texts of any length; leave max_tokens out.")
        return Lexical(judged, settings.language, progress=bars)
    opened = open_model(
        settings.model, max_tokens=settings.max_tokens, device=settings.device or local_device()
    )
    return Dense(
        Retriever(
            opened,
            user_path(settings.store, OutputError) if settings.store else default_root(),
            batch_tokens=settings.batch_tokens,
            memory_gib=settings.memory_gib,
            progress=bars,
        ),
        judged,
    )
