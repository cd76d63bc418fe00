"""A trainer that stops in time: at values that are not finite, and at signals, after a checkpoint is saved.

host.py lists the host's problems that its methods work around.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from stzoo.errors import TrainingError
from stzoo.training.callbacks import Progress
from stzoo.training.checkpoint_trainer import CheckpointTrainer
from stzoo.training.checkpoints import complete
from stzoo.training.sharding import own
from stzoo.utils.distributed import largest
from stzoo.utils.messages import counted, notify
from stzoo.utils.signals import StopSignals

GRADIENT = "gradient norm"


class GuardedTrainer(CheckpointTrainer):
    """Stops all processes together when a watched value is not finite, or when a signal asks to.

    A subclass adds `EachStep(self._end_step)` and `self.progress` to its callbacks.

    Args:
        record: Function that is called with the log so far at each checkpoint.
        options: Arguments of `CheckpointTrainer`.
    """

    def __init__(self, *, record: Callable[[list[dict[str, float]]], None] | None = None, **options: Any):
        super().__init__(**options)
        self.record = record or (lambda _: None)
        self.progress = Progress(self._saved)
        self.signals = StopSignals()
        self.stopping = False  # True once all processes have agreed to stop
        self.saved_at = time.monotonic()
        self.group: Any = None  # lets processes agree without waiting for a device
        self.seen: list[tuple[str, Tensor]] = []  # losses and gradient norms of the step so far
        # values that a GPU still computes
        self.unchecked: deque[tuple[int, list[str], Tensor, Any]] = deque()

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

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        self._check_finite(now=True)
        self._check_weights()
        super()._save_checkpoint(*args, **options)
        self.saved_at = time.monotonic()

    def _check_weights(self) -> None:
        """Raises TrainingError if a weight is not finite, before such a checkpoint replaces a good one."""
        weights = {name: t for name, t in self.tensors.items() if isinstance(t, nn.Parameter)}
        broken = torch.stack([~torch.isfinite(own(weight)).all() for weight in weights.values()]).tolist()
        wrong = [
            name for name, is_broken in zip(weights, largest(broken, self.group), strict=True) if is_broken
        ]
        if wrong:
            more = f" and {counted(len(wrong) - 3, 'more tensor')}" if len(wrong) > 3 else ""
            what = f"weights are not finite after the update ({', '.join(wrong[:3])}{more})"
            raise self._failure(self.state.global_step, what)
