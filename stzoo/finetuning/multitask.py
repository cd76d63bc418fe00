"""Training on several tasks: how a batch is divided among them, and how their gradients are combined."""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import SequentialSampler

from stzoo.errors import ModelError, PluginError, RecipeError
from stzoo.finetuning.balancers import Balancer, BalancerContext, Gradients
from stzoo.finetuning.collator import QueryPassageCollator
from stzoo.plugins import manager
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.trainer import ObjectiveTrainer
from stzoo.utils.distributed import world_size
from stzoo.utils.files import atomic_file

STATE = "balancer.safetensors"


def shares(sizes: Sequence[float], batch_size: int, temperature: float = 1.0) -> list[int]:
    """Divides a batch among tasks: in proportion to size ^ (1 / temperature), and at least 1 for each.

    Args:
        sizes: Number of examples of each task, above 0; may be multiplied by weights.
        batch_size: Sum of the shares.
        temperature: 1 gives shares in proportion to size; larger values make them more equal.

    Raises:
        RecipeError: If there are more tasks than examples in a batch.

    Source: WenzhengZhang/TACO @b4ea13e, mt_trainer.py: each task gets one example, and the others are
        distributed so that the shares come close to the proportions.
    """
    if batch_size < len(sizes):
        raise RecipeError(
            f"batch_size is {batch_size}; expected at least {len(sizes)}, one example for each task."
        )
    rates = np.array(sizes, np.float64) ** (1 / temperature)
    extra = np.maximum(batch_size * rates / rates.sum() - 1, 0)
    free = batch_size - len(sizes)
    extra *= free / max(extra.sum(), 1e-12)
    counts = np.floor(extra + 1e-9).astype(int)
    largest = np.argsort(counts - extra, kind="stable")[: free - counts.sum()]
    counts[largest] += 1
    return (counts + 1).tolist()


class TaskBatcher:
    """Makes batches of several tasks; small tasks start over until the largest one is through.

    The content of a batch depends only on the seed and the number of the batch.

    Args:
        examples: Examples by task name.
        shares: Number of examples of each task per step and device, in the order of `examples`; with
            `in_turn`, the batch size for each.
        in_turn: True if each step has a single task, in turn.
        seed: Seed of the order of the examples.

    Attributes:
        batches: Number of batches in an epoch, in which each task is seen at least once in full.
    """

    def __init__(
        self, examples: Mapping[str, QueryPassageCollator], shares: Sequence[int], in_turn: bool, seed: int
    ):
        self.examples, self.shares, self.in_turn, self.seed = dict(examples), list(shares), in_turn, seed
        self.epoch = 0
        every = zip(self.examples.values(), self.shares, strict=True)
        longest = max(-(-len(one.pairs) // share) for one, share in every)
        self.devices = world_size()
        rounds = -(-longest // self.devices) * self.devices
        self.batches = rounds * len(self.examples) if in_turn else rounds
        self._order = lru_cache(maxsize=2 * len(self.examples))(self._draw)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next batches."""
        self.epoch = epoch

    def rows(self) -> Dataset:
        """The data set for the trainer: the numbers of the batches of an epoch."""
        return Dataset.from_dict({"batch": np.arange(self.batches)})

    def __call__(self, rows: list[dict[str, int]]) -> dict[str, Any]:
        """Makes the batch of a number: {"tasks": batches of `QueryPassageCollator` by task name}."""
        number = self.epoch * self.batches + rows[0]["batch"]
        names = list(self.examples)
        if self.in_turn:
            step, device = divmod(number, self.devices)
            turn, place = divmod(step, len(names))
            chosen, number = [place], turn * self.devices + device
        else:
            chosen = list(range(len(names)))
        return {"tasks": {names[task]: self._batch(task, number) for task in chosen}}

    def _batch(self, task: int, number: int) -> dict[str, Any]:
        examples, share = list(self.examples.values())[task], self.shares[task]
        positions = np.arange(number * share, (number + 1) * share)
        rounds, within = np.divmod(positions, len(examples.pairs))
        chosen = [int(self._order(task, around)[place]) for around, place in zip(rounds, within, strict=True)]
        examples.set_epoch(int(rounds[0]))
        return examples([{"example": place} for place in chosen])

    def _draw(self, task: int, around: int) -> np.ndarray:
        examples = list(self.examples.values())[task]
        return np.random.default_rng([self.seed, task, around]).permutation(len(examples.pairs))


def make_task_batcher(
    settings: FinetuneSettings, examples: Mapping[str, QueryPassageCollator]
) -> TaskBatcher:
    """Makes the task batcher that the settings describe.

    Raises:
        RecipeError: If a batch is too small for the tasks.
    """
    in_turn = settings.mixing == "round-robin"
    weights = [task.weight for task in settings.tasks]
    sizes = [w * len(one.pairs) for w, one in zip(weights, examples.values(), strict=True)]
    temperature = settings.mixing_temperature if settings.mixing == "temperature" else 1.0
    parts = [settings.batch_size] * len(sizes) if in_turn else shares(sizes, settings.batch_size, temperature)
    for (task, one), part in zip(examples.items(), parts, strict=True):
        if part == 1 and not one.negatives and not settings.cross_device:
            raise RecipeError(
                f"with batch_size {settings.batch_size}, the task {task} gets a single query per step, which "
                "has no negatives. Increase batch_size (--batch-size), or use data with negatives."
            )
    return TaskBatcher(examples, parts, in_turn, settings.seed)


def in_order(dataset: Any, batch_size: int, drop_last: bool, **kwargs: Any) -> DefaultBatchSampler:  # noqa: ARG001
    """Makes a batch sampler for `TaskBatcher.rows`, where each row is a batch."""
    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=1, drop_last=False, **kwargs)


def check_balancer(settings: FinetuneSettings) -> None:
    """Builds the balancer for a single parameter, to report mistakes in its options before training.

    Raises:
        RecipeError: If its options are invalid, or it does not support the precision or the mixing.
        UnknownNameError: If there is no balancer of that name.
        PluginError: If it is not a `Balancer`.
    """
    if not settings.tasks:
        return
    if settings.precision == "fp16":
        raise RecipeError("fp16 scales a single loss, so it does not support several tasks; use bf16.")
    names = tuple(task.name for task in settings.tasks)
    balancer = manager.build(
        "balancer", settings.balancer, BalancerContext(names, 1, 1), **settings.balancer_options
    )
    if not isinstance(balancer, Balancer):
        raise PluginError(
            f"the balancer {settings.balancer!r} is a {type(balancer).__name__}; expected a subclass of "
            "stzoo.finetuning.balancers.Balancer."
        )
    if settings.mixing == "round-robin" and not balancer.additive:
        raise RecipeError(
            f"the balancer {settings.balancer} needs all tasks in each step, but round-robin mixing has one "
            "task per step. Use the balancer sum, or another mixing."
        )


class MultiTaskTrainer(ObjectiveTrainer):
    """Trains one model on several tasks.

    The gradients of the tasks are kept separate until the last batch of a step. They are averaged over
    devices once per step, by this class and not by the model's wrapper, so that losses may call backward any
    number of times.

    Args:
        mixture: Makes the batches.
        balancer: Name of the balancer; see `stzoo list balancers`.
        options: Options of the balancer.
        before: File with the balancer state of an earlier training, from which this one continues.
        kwargs: Arguments of `ObjectiveTrainer`.
    """

    def __init__(
        self,
        *,
        mixture: TaskBatcher,
        balancer: str,
        options: Mapping[str, Any],
        before: Path | None = None,
        **kwargs: Any,
    ):
        super().__init__(collate=mixture, extra_logs=self._task_losses, **kwargs)
        self.tasks = list(mixture.examples)
        self.in_turn = mixture.in_turn
        self.kind, self.options, self.before = balancer, dict(options), before
        self.balancer: Any = None
        self.empty = True  # no gradient of the next step has been added
        # by task, for the log: sum and number of the losses
        self.sums = torch.zeros(len(self.tasks), 2, device=self.args.device)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Creates the scheduler, and the balancer, which also needs the number of steps."""
        trained = list(self._trained().values())
        context = BalancerContext(
            tuple(self.tasks[:1] if self.in_turn else self.tasks),
            sum(parameter.numel() for parameter in trained),
            num_training_steps,
            self.settings.seed,
            self.args.device,
        )
        self.balancer = manager.build("balancer", self.kind, context, **self.options).to(self.args.device)
        if self.before is not None:
            self._load_balancer(self.before)
        self.gradients = Gradients(trained, 1 if self.balancer.additive else len(self.tasks))
        self.losses = torch.zeros(len(context.tasks), device=self.args.device)
        return super().create_scheduler(num_training_steps, optimizer)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name, in the order of the columns of the gradients."""
        every = self.tensors.items()
        return {name: t for name, t in every if isinstance(t, torch.nn.Parameter) and t.requires_grad}

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Adds the gradient of each task to its own row, and returns the mean of their losses."""
        if self.empty:
            self.gradients.rows.zero_()
            self.losses.zero_()
            self.empty = False
        losses = []
        for name, batch in inputs["tasks"].items():
            task = 0 if self.in_turn else self.tasks.index(name)
            row = 0 if self.balancer.additive else task
            with self.accelerator.no_sync(model), self.gradients.row(row):
                before = len(self.seen)
                loss = super().training_step(model, batch, *args, **kwargs)
                self.seen[before:] = [(f"{name}: {part}", value) for part, value in self.seen[before:]]
            self.losses[task] += loss
            self.sums[self.tasks.index(name)] += torch.stack([loss, torch.ones_like(loss)])
            losses.append(loss)
        return torch.stack(losses).mean()

    def _task_losses(self, _: Any) -> dict[str, float]:
        sums = self.sums.tolist()
        self.sums.zero_()
        scale = self.args.gradient_accumulation_steps  # the trainer has divided each loss by it
        return {
            f"loss_{name}": scale * total / count
            for name, (total, count) in zip(self.tasks, sums, strict=True)
            if count
        }

    def _clip_grad_norm(self, model: Any) -> Any:
        rows = self.gradients.rows
        if dist.is_initialized():
            for tensor in (rows, self.losses):
                dist.all_reduce(tensor)
                tensor.div_(dist.get_world_size())
        if self.state.global_step == 0:
            self._check_gradients()
        # Checked before the balancer runs, since its linear algebra fails on NaN and infinity.
        self._watch({"gradient of the tasks": torch.linalg.vector_norm(rows)})
        self._check_finite(now=True)
        with torch.no_grad():
            values = torch.empty(0) if self.balancer.additive else self.gradients.values()
            self.gradients.set_gradients(self.balancer(rows, self.losses, values))
        self.empty = True
        return super()._clip_grad_norm(model)

    def _check_gradients(self) -> None:
        idle = torch.linalg.vector_norm(self.gradients.rows, float("inf"), dim=1) == 0
        if idle.any():
            names = self.tasks if len(idle) == len(self.tasks) else ["all tasks"]
            which = ", ".join(name for name, zero in zip(names, idle.tolist(), strict=False) if zero)
            raise ModelError(f"the loss of {which} has no gradient in any of the trained parameters.")

    # -- checkpoints

    def save_balancer(self, folder: Path) -> None:
        """Writes the state of the balancer to FOLDER/balancer.safetensors."""
        state = {name: tensor.cpu().contiguous() for name, tensor in self.balancer.state_dict().items()}
        columns = {name: list(tensor.shape) for name, tensor in self._trained().items()}
        metadata = {"tasks": json.dumps(self.tasks), "columns": json.dumps(columns), "balancer": self.kind}
        with atomic_file(folder / STATE) as draft:
            save_file(state, draft, metadata)

    def leave_balancer(self, folder: Path, checkpoint: Path | None) -> None:
        """Writes the balancer's final state; if no step was left to train, copies it from the checkpoint."""
        if self.balancer is not None:
            self.save_balancer(folder)
        elif checkpoint is not None:
            with atomic_file(folder / STATE) as draft:
                shutil.copyfile(checkpoint / STATE, draft)

    def _load_balancer(self, path: Path) -> None:
        with safe_open(path, "pt") as opened:
            tasks = json.loads(opened.metadata()["tasks"])
        if tasks != self.tasks:
            raise ModelError(
                f"{path} belongs to the tasks {', '.join(tasks)}, in this order; this run has "
                f"{', '.join(self.tasks)}."
            )
        self.balancer.load_state_dict(load_file(path))

    def _log_sums(self) -> dict[str, Tensor]:
        return super()._log_sums() | {"tasks": self.sums}

    def _set_log_sums(self, stored: Mapping[str, Tensor]) -> None:
        super()._set_log_sums(stored)
        self.sums = stored["tasks"]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.save_balancer(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_balancer(Path(checkpoint) / STATE)
