"""A SentenceTransformerTrainer for losses that own parameters, with workarounds for the host problems below.

The host trainer neglects the parameters of a loss (decoders, a new MLM head). Problems measured with
sentence-transformers 6.2 and transformers 5.23, each with the method that works around it; those that lose or
skew weights are reproduced in tests/training/test_trainer.py.

checkpoint_trainer.py:

- checkpoints contain the encoder only: `_save`, `_load_from_checkpoint`
- a killed save leaves a checkpoint that looks complete, and damaged checkpoints are loaded:
  `_save_checkpoint`, checkpoints.py
- old checkpoints are removed before the new one is complete, along with the user's files in them: `rotate`
- a run that was moved loses its best checkpoint: `_load_best_model`, `FindBest`
- a resumed run forgets how long early stopping has waited, and trains past its end: `train_from`
- the first log line after a resume leaves out the steps before it: `_log_sums`

This module:

- Ctrl-C and SIGTERM lose the steps since the last checkpoint: `StopSignals`, `_end_step`
- training continues with a loss that is not finite, and its checkpoints replace the good ones:
  `_check_finite`
- all processes draw the same masks: `_inner_training_loop`
- gradients of the loss's own parameters are neither clipped nor averaged over processes: `_clip_grad_norm`
- the loss's own parameters start different on each process: `_inner_training_loop`
- `optimizer_cls_and_kwargs` leaves them out: `create_optimizer`
- a loss that is a mean counts once per accumulated batch: `loss_is_scaled_for_ga`
- autocast covers the encoder only: `compute_loss`
- a resume within an epoch on several processes changes the order of the batches: `get_batch_sampler`,
  `SetEpoch`

Most of these are private methods of the host library; `check_host` checks at the start that each exists.
"""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from torch import distributed as dist
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from stzoo.errors import RecipeError, StzooError, TrainingError
from stzoo.models.onednn import fast_linear
from stzoo.training.callbacks import EachStep, FindBest, Progress, ScoreBase, SetEpoch, ShowPlan
from stzoo.training.checkpoint_trainer import CheckpointTrainer
from stzoo.training.checkpoints import complete
from stzoo.training.settings import Training
from stzoo.training.throughput import Throughput, matrix_speed
from stzoo.utils.distributed import largest
from stzoo.utils.malloc import disable_malloc_trim
from stzoo.utils.messages import counted, notify
from stzoo.utils.signals import StopSignals

TESTED = {"sentence-transformers": (6, 2), "transformers": (5, 23)}
HOOKS = (
    "_save",
    "_load_from_checkpoint",
    "_load_best_model",
    "_save_checkpoint",
    "_load_rng_state",
    "_clip_grad_norm",
    "_inner_training_loop",
    "create_optimizer",
    "create_scheduler",
    "add_model_card_callback",
    "compute_loss",
    "track_loss_components",
    "loss_is_scaled_for_ga",
)
GRADIENT = "gradient norm"


def check_host() -> None:
    """Warns if a host library is newer than the tested versions.

    Raises:
        StzooError: If a method that is overridden here no longer exists.
    """
    missing = [name for name in HOOKS if not hasattr(SentenceTransformerTrainer, name)]
    if missing:
        raise StzooError(
            f"the installed sentence-transformers {version('sentence-transformers')} and transformers "
            f"{version('transformers')} lack {', '.join(missing)}, which stzoo relies on. Install "
            "sentence-transformers 6.2 and transformers 5.23."
        )
    for package, (major, minor) in TESTED.items():
        installed = tuple(int(part) for part in version(package).split(".")[:2])
        if installed > (major, minor):
            warnings.warn(
                f"stzoo is tested with {package} up to {major}.{minor}; {version(package)} is installed.",
                stacklevel=3,
            )


@dataclass
class Collator(SentenceTransformerDataCollator):
    """A collator that calls `function`; the host trainer refuses plain functions.

    Attributes:
        function: Function from rows to a batch.
    """

    function: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Makes a batch of rows."""
        assert self.function is not None
        return self.function(features)


def split_views(batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Groups a batch by view: `batch["passage_input_ids"]` becomes `views["passage"]["input_ids"]`."""
    views = [name.removesuffix("_input_ids") for name in batch if name.endswith("_input_ids")]
    return {
        view: {
            name.removeprefix(f"{view}_"): value
            for name, value in batch.items()
            if name.startswith(f"{view}_")
        }
        for view in views
    }


def checkpoint_layers(model: nn.Module) -> None:
    """Makes the encoder compute the activations of its layers again in the backward pass.

    Raises:
        RecipeError: If the encoder's architecture cannot.
    """
    # not the host's argument, which calls a deprecated method
    encoders = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not encoders or not encoders[0].supports_gradient_checkpointing:
        raise RecipeError("this model cannot recompute activations; drop --gradient-checkpointing.")
    device = encoders[0].device
    # a mode of the forward pass is not in force in the backward pass
    contexts = {"context_fn": lambda: (nullcontext(), fast_linear(device))}
    encoders[0].activation_checkpointing_enable({"use_reentrant": False, **contexts})


class ObjectiveTrainer(CheckpointTrainer, SentenceTransformerTrainer):
    """Trains a loss module that owns parameters.

    Args:
        loss: A module with an attribute `model`. It may have `weights` (of its losses by name) and `frozen`
            (True while the encoder must not be trained).
        settings: Settings of the run.
        new: Names of the parameters of `loss` that start untrained and use `settings.new_learning_rate`.
        collate: Function from rows to a batch; None for the host's own.
        record: Function that is called with the log so far at each checkpoint.
        extra_logs: Function that returns more numbers for the log; None for `loss.accuracies`, if it exists.
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
        extra_logs: Callable[[], dict[str, float]] | None = None,
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
        super().__init__(loss=loss, settings=settings, **options)
        for theirs in (ProgressCallback, PrinterCallback):
            self.remove_callback(theirs)
        self.epochs = SetEpoch(collate)
        self.add_callback(self.epochs)
        self.add_callback(FindBest())
        self.record = record or (lambda _: None)
        self.progress = Progress(self._saved)
        self.add_callback(self.progress)
        for one in given:
            if isinstance(one, ScoreBase):
                one.log, one.paused = self.log, self.paused
        self.extra_logs: Any = extra_logs or getattr(loss, "accuracies", dict)
        self.new = new
        encoder = {id(tensor) for tensor in [*self.model.parameters(), *self.model.buffers()]}
        self.loss_tensors = {
            name: tensor for name, tensor in self.tensors.items() if id(tensor) not in encoder
        }
        self.throughput = Throughput(self.args.device, settings.precision)
        self.signals = StopSignals()
        self.stopping = False  # True once all processes have agreed to stop
        self.saved_at = time.monotonic()
        self.group: Any = None  # lets processes agree without waiting for a device
        self.seen: list[tuple[str, Tensor]] = []  # losses and gradient norms of the step so far
        # values that a GPU still computes
        self.unchecked: deque[tuple[int, list[str], Tensor, Any]] = deque()
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds accuracies and the values of `Throughput.read` to the log."""
        if "loss" in logs:
            logs |= self.throughput.read()
            logs |= {name: round(value, 4) for name, value in self.extra_logs().items()}
        super().log(logs, start_time)

    # -- optimiser

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ARG002 - the host may pass it
        """Creates AdamW, or the optimizer of `optimizer_cls_and_kwargs`, for all parameters of the loss."""
        if self.optimizer is None:
            kind, options = self.optimizer_cls_and_kwargs or Trainer.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(self._groups(), **options)
        return self.optimizer

    def _groups(self) -> list[dict[str, Any]]:
        decaying = set(self.get_decay_parameter_names(self.loss))
        new_rate = getattr(self.settings, "new_learning_rate", None) or self.settings.learning_rate
        groups: list[dict[str, Any]] = []
        for is_new, rate in ((False, self.settings.learning_rate), (True, new_rate)):
            for decays in (True, False):
                chosen = [
                    parameter
                    for name, parameter in self.tensors.items()
                    if isinstance(parameter, nn.Parameter)
                    and parameter.requires_grad
                    and (name in self.new) == is_new
                    and (name in decaying) == decays
                ]
                decay = self.settings.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        return groups

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ARG002
        """Linear warm-up and decay; for the encoder, they begin after the head warm-up."""
        if self.lr_scheduler is None:
            head = min(self.head_steps, num_training_steps)

            def slope(start: int) -> Callable[[int], float]:
                length = max(num_training_steps - start, 1)
                rise = round(self.settings.warmup_ratio * length)

                def factor(step: int) -> float:
                    at = step - start
                    if at < 0:
                        return 0.0
                    return (at + 1) / (rise + 1) if at < rise else (length - at) / max(length - rise, 1)

                return factor

            slopes = [slope(head), slope(head), slope(0), slope(0)]
            assert self.optimizer is not None
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, slopes)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model: Any) -> Any:  # noqa: ARG002 - the host passes it
        return self.clip_gradients()

    def clip_gradients(self) -> Any:
        """Averages the gradients over processes, clips and checks them, and returns their norm."""
        if dist.is_initialized():
            for tensor in self.loss_tensors.values():
                if tensor.grad is not None:
                    dist.all_reduce(tensor.grad)
                    tensor.grad.div_(dist.get_world_size())
        if self.warming:
            for name, tensor in self.tensors.items():
                if name not in self.new:
                    tensor.grad = None
        every = [p for p in self.tensors.values() if isinstance(p, nn.Parameter)]
        norm = self.accelerator.clip_grad_norm_(every, self.args.max_grad_norm)
        self._watch({GRADIENT: norm})
        self._check_finite()
        return norm

    # -- what stops a run

    def _watch(self, values: Mapping[str, Tensor]) -> None:
        """Remembers scalars that must be finite for `_check_finite`."""
        self.seen += [(name, value.detach()) for name, value in values.items()]

    def _check_finite(self, now: bool = False) -> None:
        """Stops training, in all processes, when a watched value is not finite.

        On a GPU, values are copied to the CPU while it computes and checked one step later, or before a
        checkpoint is saved or the model is scored, so that training need not wait for them.

        Args:
            now: True to wait for the values of this step.

        Raises:
            TrainingError: If a value is NaN or infinite.
        """
        if self.seen:
            names = [name for name, _ in self.seen]
            values = [value.float().reshape(()).to(self.args.device) for _, value in self.seen]
            self.seen = []
            cuda = self.args.device.type == "cuda"
            copied, ready = torch.stack(values).to("cpu", non_blocking=cuda), None
            if cuda:
                ready = torch.cuda.Event()
                ready.record()
            self.unchecked.append((self.state.global_step + 1, names, copied, ready))
        while self.unchecked and (now or self.args.device.type != "cuda" or len(self.unchecked) > 1):
            step, names, copied, ready = self.unchecked.popleft()
            if ready is not None:
                ready.synchronize()
            self._judge(step, dict(zip(names, copied.tolist(), strict=True)))

    def _judge(self, step: int, values: dict[str, float]) -> None:
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        scaler = getattr(self.accelerator, "scaler", None)
        if wrong.keys() == {GRADIENT} and scaler is not None and scaler.get_scale() >= 1:
            wrong = {}  # fp16: the step is skipped, and the scale lowered
        if not largest([bool(wrong)], self.group)[0]:
            return
        # the part that is not finite says more than the total loss or the gradient
        parts = {n: v for n, v in wrong.items() if not n.endswith("loss") and not n.startswith("gradient")}
        text = ", ".join(f"{name} is {value}" for name, value in (parts or wrong).items())
        texts: list[Any] = [text]
        if self.group is not None:
            texts *= dist.get_world_size()
            dist.all_gather_object(texts, text, group=self.group)
        raise self._failure(step, next(filter(None, texts)))

    def _failure(self, step: int, what: str) -> TrainingError:
        saved = complete(Path(str(self.args.output_dir)))
        last = f"The last good checkpoint is {saved[-1]}." if saved else "No checkpoint was saved yet."
        fp16 = ", --precision bf16 or fp32 instead of fp16" if self.settings.precision == "fp16" else ""
        return TrainingError(
            f"training stopped at step {step} of {self.state.max_steps}: {what}. {last} Try a lower "
            f"--learning-rate, a larger --warmup-ratio, a smaller --max-grad-norm{fp16}, or check the "
            "data and the base model for faults; then start again with --overwrite or another --output."
        )

    def _end_step(self, control: Any) -> None:
        """Requests a checkpoint in all processes when one is due by time, or a signal asks to stop."""
        if control.should_save or control.should_evaluate:
            self._check_finite(now=True)
        late = time.monotonic() - self.saved_at >= 60 * self.settings.save_minutes
        number, due = largest([self.signals.received, late and self.is_world_process_zero()], self.group)
        if number:
            self.signals.received, self.stopping = int(number), True
        if number or due:
            control.should_save = True

    def _saved(self, log: list[dict[str, float]]) -> None:
        self.record(log)
        if self.stopping:
            notify(f"saved a checkpoint after step {self.state.global_step} of {self.state.max_steps}.")
            self.signals.leave()

    # -- training and resuming

    def train_or_resume(self, checkpoint: Path | None) -> None:
        """Trains from a checkpoint or from the start. If training ended at the checkpoint, only loads it.

        Ctrl-C and SIGTERM end training after the current step, once a checkpoint is saved; see `StopSignals`.

        Args:
            checkpoint: Folder of the checkpoint to resume from; None to train from the start.

        Raises:
            TrainingError: If a loss, the gradient or a weight is not finite.
            OutputError: If the best checkpoint is damaged.
        """
        try:
            with self.signals:
                self.train_from(checkpoint)
                if self.signals.received:  # after the last step
                    self.signals.leave()
        except TrainingError:
            self.record(self.state.log_history)
            raise
        finally:
            self.progress.close()
            if self.group is not None:
                dist.destroy_process_group(self.group)
                self.group = None

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        if dist.is_initialized() and dist.get_world_size() > 1:
            for tensor in self.loss_tensors.values():
                dist.broadcast(tensor.data, 0)
            # From here on each process draws its own masks and dropout; a checkpoint keeps the generators
            # apart.
            set_seed((self.settings.seed + dist.get_rank()) % 2**32)
            self.group = dist.new_group(backend="gloo")
        self.saved_at = time.monotonic()
        if hasattr(self.loss, "frozen"):
            matrix_speed(self.args.device, self.settings.precision)  # now, while there is memory
        self.throughput.restart()
        return super()._inner_training_loop(*args, **options)

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        self._check_finite(now=True)
        self._check_weights()
        super()._save_checkpoint(*args, **options)
        self.saved_at = time.monotonic()

    def _check_weights(self) -> None:
        """Raises TrainingError if a weight is not finite, before such a checkpoint replaces a good one."""
        weights = {name: t for name, t in self.tensors.items() if isinstance(t, nn.Parameter)}
        finite = torch.stack([torch.isfinite(weight).all() for weight in weights.values()]).tolist()
        wrong = [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]
        if wrong:
            more = f" and {counted(len(wrong) - 3, 'more tensor')}" if len(wrong) > 3 else ""
            what = f"weights are not finite after the update ({', '.join(wrong[:3])}{more})"
            raise self._failure(self.state.global_step, what)
