"""A SentenceTransformerTrainer for losses that own parameters (decoders, a new MLM head).

host.py lists the host's problems that its methods work around.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor, nn
from torch import distributed as dist
from transformers import Trainer, set_seed

from stzoo.errors import RecipeError
from stzoo.models.onednn import fast_linear
from stzoo.training.activations import checkpoint_layers
from stzoo.training.batches import Collator, split_views
from stzoo.training.callbacks import EachStep, FindBest, ScoreBase, SetEpoch, ShowPlan, remove_host_progress
from stzoo.training.guarded_trainer import GRADIENT, GuardedTrainer
from stzoo.training.host import check_host
from stzoo.training.optimizer import linear_schedule, parameter_groups
from stzoo.training.settings import Training
from stzoo.training.sharding import full, shards
from stzoo.training.throughput import Throughput, matrix_speed
from stzoo.utils.memory import disable_malloc_trim
from stzoo.utils.messages import counted, notify


class ObjectiveTrainer(GuardedTrainer, SentenceTransformerTrainer):
    """Trains a loss module that owns parameters.

    Args:
        loss: A module with an attribute `model`. It may have `weights` (of its losses by name) and `frozen`
            (True while the encoder must not be trained).
        settings: Settings of the run.
        new: Names of the parameters of `loss` that start untrained and use `settings.new_learning_rate`.
        collate: Function from rows to a batch; None for the host's own.
        record: Function that is called with the log so far at each checkpoint.
        extra_logs: Function of the loss that returns more numbers for the log; None for `loss.accuracies`, if
            it exists.
        plan: What is trained on, for the line that is printed at the start.
        options: Further arguments of the host trainer.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        loss: nn.Module,
        settings: Training,
        new: frozenset[str] = frozenset(),
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        record: Callable[[list[dict[str, float]]], None] | None = None,
        extra_logs: Callable[[Any], dict[str, float]] | None = None,
        plan: str = "",
        **options: Any,
    ):
        check_host()
        if settings.gradient_checkpointing:
            checkpoint_layers(options["model"])
        if collate is not None:
            options["data_collator"] = Collator(preprocess_fn=options["model"].preprocess, function=collate)
        # first, so that no later callback scores a model that is no longer finite
        given = options.get("callbacks") or []
        options["callbacks"] = [EachStep(self._end_step), ShowPlan(plan), *given]
        super().__init__(loss=loss, settings=settings, record=record, **options)
        remove_host_progress(self)
        self.epochs = SetEpoch(collate)
        self.add_callback(self.epochs)
        self.add_callback(FindBest())
        self.add_callback(self.progress)
        for one in given:
            if isinstance(one, ScoreBase):
                one.log, one.paused = self.log, self.paused
        self.extra_logs = extra_logs or (
            lambda loss: loss.accuracies() if hasattr(loss, "accuracies") else {}
        )
        self.new = new
        encoder = {id(tensor) for tensor in [*self.model.parameters(), *self.model.buffers()]}
        self.loss_tensors = {
            name: tensor for name, tensor in self.tensors.items() if id(tensor) not in encoder
        }
        self.throughput = Throughput(self.args.device, settings.precision)
        if self.args.device.type == "cpu":
            disable_malloc_trim()

    # -- batches, losses, log

    def get_batch_sampler(self, *args: Any, **options: Any) -> Any:
        """The host's batch sampler, remembered so that `SetEpoch` can set its epoch.

        Raises:
            RecipeError: If there are fewer batches than processes.
        """
        sampler: Any = super().get_batch_sampler(*args, **options)
        self.epochs.sampler = sampler
        if len(sampler) < self.args.world_size:  # each takes as many, and what is left over is dropped
            raise RecipeError(
                f"the training data make {counted(len(sampler), 'whole batch')} for "
                f"{counted(self.args.world_size, 'process')}; expected one for each or more. Use smaller "
                "batches, fewer processes, or more data."
            )
        if sampler.batch_size and self.args.world_size > 1:
            rows = len(sampler.sampler)
            left = rows - len(sampler) // self.args.world_size * self.args.world_size * sampler.batch_size
            if left > 0:
                notify(
                    f"Each epoch leaves out {left} of {counted(rows, 'row')}, drawn at random, which make no "
                    f"whole batch for each of {self.args.world_size} processes."
                )
        return sampler

    def get_batch_samples(self, *args: Any, **options: Any) -> Any:
        """The host's batches of a step, with the time that they take."""
        with self.throughput.waiting():
            return super().get_batch_samples(*args, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        """Runs the host's step, with the encoder frozen during the head warm-up."""
        counted: AbstractContextManager[None] = nullcontext()
        if hasattr(self.loss, "frozen"):
            self.loss.frozen = self.warming
            counted = self.throughput.step(inputs, self.warming)
        with counted, fast_linear(self.args.device):
            return super().training_step(model, inputs, *args, **options)

    @property
    def head_steps(self) -> int:
        """Number of steps of the head warm-up; 0 if no parameter is new."""
        return getattr(self.settings, "head_warmup_steps", 0) if self.new else 0

    @property
    def warming(self) -> bool:
        """True during the head warm-up."""
        return self.state.global_step < self.head_steps

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the losses; each loss is logged without its weight."""
        self.throughput.count_tokens(inputs)
        weights = getattr(self.loss, "weights", None)
        if weights is None:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            parts = getattr(getattr(self.loss, "loss", self.loss), "last", {})
            total = result[0] if isinstance(result, tuple) else result
            self._watch({**parts, "loss": total})
            return result
        if model == self.model_wrapped and self.loss.model != model:
            self.loss = self.override_model_in_loss(self.loss, model)
        with self.accelerator.autocast():  # the host applies autocast to the encoder only
            losses = self.loss(split_views(inputs))
        self.track_loss_components(losses)
        self._watch(losses)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return (total, {}) if return_outputs else total

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Has the time of the block count neither as training nor in the progress bar."""
        with self.throughput.paused(), self.progress.paused():
            yield

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Runs the host's evaluation, `paused`."""
        with self.paused():
            return super().evaluate(*args, **options)

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """The host's loop, with the evaluator on all processes, as the host has it for FSDP only."""
        before, self.is_fsdp_enabled = self.is_fsdp_enabled, True
        try:
            return super().evaluation_loop(*args, **options)
        finally:
            self.is_fsdp_enabled = before

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds accuracies and the values of `Throughput.read` to the log."""
        if "loss" in logs:
            logs |= self.throughput.read()
            logs |= {name: round(value, 4) for name, value in self.extra_logs(self.loss).items()}
        super().log(logs, start_time)

    # -- optimiser

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ARG002 - the host may pass it
        """Creates AdamW, or the optimizer of `optimizer_cls_and_kwargs`, for all parameters of the loss."""
        if self.optimizer is None:
            kind, options = self.optimizer_cls_and_kwargs or Trainer.get_optimizer_cls_and_kwargs(self.args)
            decaying = set(self.get_decay_parameter_names(self.loss))
            self.optimizer = kind(
                parameter_groups(self.tensors, self.settings, self.new, decaying), **options
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ARG002
        """Linear warm-up and decay; see `linear_schedule`."""
        if self.lr_scheduler is None:
            assert self.optimizer is not None
            self.lr_scheduler = linear_schedule(
                self.optimizer, num_training_steps, self.head_steps, self.settings.warmup_ratio
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model: Any) -> Any:  # noqa: ARG002 - the host passes it
        return self.clip_gradients()

    def clip_gradients(self) -> Any:
        """Averages the gradients over processes, clips and checks them, and returns their norm."""
        if dist.is_initialized() and not self.is_sharded:
            for tensor in self.loss_tensors.values():
                if tensor.grad is not None:
                    dist.all_reduce(tensor.grad)
                    tensor.grad.div_(dist.get_world_size())
        if self.warming:
            for name, tensor in self.tensors.items():
                if name not in self.new:
                    tensor.grad = None
        every = [p for p in self.tensors.values() if isinstance(p, nn.Parameter)]
        norm = full(self.accelerator.clip_grad_norm_(every, self.args.max_grad_norm))
        self._watch({GRADIENT: norm})
        self._check_finite()
        return norm

    # -- training

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        if dist.is_initialized() and dist.get_world_size() > 1:
            for tensor in (self.tensors if shards(self.settings) else self.loss_tensors).values():
                dist.broadcast(tensor.data, 0)
            # From here on each process draws its own masks and dropout; a checkpoint keeps the generators
            # apart.
            set_seed((self.settings.seed + dist.get_rank()) % 2**32)
            self.group = dist.new_group(backend="gloo")
        self.saved_at = time.monotonic()
        if hasattr(self.loss, "frozen"):
            matrix_speed(self.args.device, self.settings.precision)  # now, while there is memory
        self.throughput.restart()
        with self.sharded(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # used by accelerate
            return super()._inner_training_loop(*args, **options)
