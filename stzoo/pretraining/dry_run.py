"""Estimates what a pre-training will need, from its tokens and a few of its steps."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stzoo.pretraining.pretrain import make_trainer, set_up
from stzoo.pretraining.token_cache import TokenRows
from stzoo.training.arguments import choose_precision
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.sharding import check_loss, check_sharding
from stzoo.training.throughput import matrix_speed
from stzoo.training.trainer import ObjectiveTrainer
from stzoo.utils.distributed import check_launcher, world_size
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.memory import peak_memory_mib

QUANTILES = (
    0.05,
    0.25,
    0.5,
    0.75,
    0.95,
    1.0,
)  # sizes of the batches that are timed; the last needs most memory


def dry_run(recipe: str | Path | None = None, **settings: Any) -> dict[str, Any]:
    """Runs a few steps of a pre-training and writes nothing but the caches of its corpus.

    Args:
        recipe: Path to a YAML file, or the name of an installed recipe.
        settings: Fields of `stzoo.training.pretrain_settings.PretrainSettings`; they override those of the
            recipe.

    Returns:
        precision: As chosen, with the reason.
        parameters: Numbers of those of the encoder, of all other parts, and of those that start untrained.
        passages, epochs, steps: Numbers.
        tokens: Of the first view per epoch, without padding; None if the objective tokenises by itself.
        padding: Padding / all tokens of the first view; None likewise.
        tokens_per_step, seconds_per_step, tokens_per_s, seconds: Means, and the time of all steps. Tokens are
            those of the first view without padding.
        peak_memory_mib: Of this process, or of its GPU, in the largest step; None on Windows without a GPU.
        utilisation: Arithmetic of a step of usual size / what large products of matrices of this precision
            would do in its time, 0..1.

    Raises:
        StzooError: If something in the settings, the data or the model is wrong; see `stzoo.errors`.
    """
    check_launcher()
    config = PretrainSettings.read(recipe, settings)
    check_sharding(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    precision = choose_precision(config)
    config = config.model_copy(update={"precision": precision["used"], "probe": None})
    setup = set_up(config)
    check_loss(config, setup.objective)
    with tempfile.TemporaryDirectory() as scratch, silence_hf_logging():
        trainer = make_trainer(config, setup, Path(scratch), lambda _: None)
        trainer.get_train_dataloader()
        sampler: Any = trainer.epochs.sampler
        batches = list(sampler)
        sizes = np.array([len(batch) * int(sampler.lengths[batch].max()) for batch in batches])
        timed = np.argsort(sizes, kind="stable")[[round(q * (len(sizes) - 1)) for q in QUANTILES]]
        with trainer.sharded():
            seconds, utilisation = _time(trainer, setup.rows, [batches[at] for at in timed], config.precision)
    memory = (
        torch.cuda.max_memory_allocated() / 2**20 if trainer.args.device.type == "cuda" else peak_memory_mib()
    )
    epoch = float(np.interp(sizes, sizes[timed], seconds).sum()) / world_size()
    per_epoch = len(batches) / (config.accumulation * world_size())
    steps = config.max_steps or max(1, round(config.epochs * per_epoch))
    encoder = sum(parameter.numel() for parameter in setup.base.backbone.model.parameters())
    parameters = dict(setup.objective.named_parameters())
    tokens = int(setup.rows.lengths.sum()) if isinstance(setup.rows, TokenRows) else None
    step_s = epoch / per_epoch
    return {
        "precision": precision,
        "device": str(trainer.args.device),
        "parameters": {
            "encoder": encoder,
            "other": sum(parameter.numel() for parameter in parameters.values()) - encoder,
            "untrained": sum(parameters[name].numel() for name in setup.new),
        },
        "passages": len(setup.rows),
        "tokens": tokens,
        "padding": None if tokens is None else 1 - tokens / int(sizes.sum()),
        "epochs": steps / per_epoch,
        "steps": steps,
        "tokens_per_step": None if tokens is None else tokens / per_epoch,
        "seconds_per_step": step_s,
        "tokens_per_s": None if tokens is None else tokens / epoch,
        "seconds": steps * step_s,
        "peak_memory_mib": memory,
        "utilisation": utilisation,
    }


def _time(
    trainer: ObjectiveTrainer, rows: Any, batches: list[list[int]], precision: str
) -> tuple[list[float], float]:
    """Seconds of a step on each batch, and the utilisation of a step on the batch in the middle."""
    trainer.create_optimizer()
    optimizer: Any = trainer.optimizer
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.global_step = trainer.head_steps  # or the encoder is frozen

    def step(batch: list[int]) -> float:
        inputs = trainer.data_collator(rows.__getitems__(batch))
        begun = time.perf_counter()
        trainer.training_step(trainer.model, inputs)
        trainer.clip_gradients()
        optimizer.step()
        optimizer.zero_grad()
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def without_counting(batch: list[int]) -> float:
        kinds = len(trainer.throughput.per_token)
        seconds = step(batch)
        return seconds if len(trainer.throughput.per_token) == kinds else step(batch)

    step(batches[-1])  # the largest first: if memory is too small, it shows at once
    seconds = [without_counting(batch) for batch in batches]
    trainer.throughput.restart()
    usual = step(batches[len(batches) // 2])
    rate = trainer.throughput.operations / usual
    return seconds, rate / matrix_speed(trainer.args.device, precision)
