"""Callbacks of the trainer: the progress bar, evaluation every N steps, and fixes for resumed runs."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

LEFT_OUT = {
    *("epoch", "grad_norm", "learning_rate", "total_flos"),
    *("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),  # the host counts no samples here
}


NOT_IN_BAR = {"data_wait", "utilisation"}  # for want of room


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restores the state of torch's generators at the end of the block."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


class FindBest(TrainerCallback):
    """Finds the best checkpoint of a run whose folder was moved; the host would lose it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Sets the path of the best checkpoint."""
        if state.best_global_step:
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")


class SetEpoch(TrainerCallback):
    """Sets the epoch of the batch sampler and of the collator.

    The host sets it on the outermost of the samplers that it wraps around the batch sampler. When it resumes
    within an epoch on several processes, that one does not pass it on.
    """

    def __init__(self, collate: Any = None) -> None:
        self.sampler: Any = None
        self.collate = collate

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Sets the epoch."""
        for listener in (self.sampler, self.collate):
            if hasattr(listener, "set_epoch"):
                listener.set_epoch(int(state.epoch))


class EachStep(TrainerCallback):
    """Calls a function with the trainer's control after each optimiser step.

    Args:
        call: Function of the trainer's control; it may request a checkpoint by `control.should_save`.
    """

    def __init__(self, call: Callable[[Any], None]):
        self.call = call

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Calls the function."""
        self.call(control)


class Progress(TrainerCallback):
    """A progress bar on stderr with the last logged losses; without a terminal, one line per log entry.

    Args:
        record: Function that is called with the log so far at each checkpoint.
    """

    def __init__(self, record: Callable[[list[dict[str, float]]], None]):
        self.bar: Any = None
        self.record = record

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Records the log."""
        self.record(state.log_history)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Opens the progress bar."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Advances the progress bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Shows the logged numbers."""
        if self.bar is not None and logs:
            shown = {
                name: f"{value:.4g}"
                for name, value in logs.items()
                if isinstance(value, float) and name not in LEFT_OUT and not name.startswith("train_")
            }
            self.bar.set_postfix({name: value for name, value in shown.items() if name not in NOT_IN_BAR})
            if self.bar.disable and shown:  # no terminal: one line per entry, for log files
                text = ", ".join(f"{name} {value}" for name, value in shown.items())
                print(f"step {state.global_step}/{state.max_steps}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the progress bar."""
        if self.bar is not None:
            self.bar.close()


class EveryNSteps(TrainerCallback):
    """Calls a function every N steps and after the last one, without changing torch's generators.

    Args:
        steps: Number of steps between two calls.
        call: Function that returns values to log.

    Attributes:
        log: Function that logs the values; the trainer's, once there is one.
    """

    def __init__(self, steps: int, call: Callable[[], dict[str, float]]):
        self.steps, self.call = steps, call
        self.log: Callable[[dict[str, float]], None] = lambda _: None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Calls the function if it is due at this step."""
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            due = control.should_log  # the host resets it after any log entry
            with preserve_rng_state():
                self.log(self.call())
            control.should_log = due
