"""What goes on beside training: the progress bar, and scores every so many steps."""

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
    *(
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
    ),  # the host counts no samples of ours
}


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Leaves torch's generators as they were before the block."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


class FindBest(TrainerCallback):
    """Finds the best checkpoint of a run whose folder has been moved, which the host would drop."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Corrects the path that the state has of it, or has lost."""
        if state.best_global_step:
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")


class SetEpoch(TrainerCallback):
    """Tells the batch sampler, and what makes the batches, which epoch begins.

    The host tells the outermost of the samplers that it wraps around ours. When it resumes inside an epoch
    on several processes, that one does not pass it on.
    """

    def __init__(self, collate: Any = None) -> None:
        self.sampler: Any = None
        self.collate = collate

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Tells them."""
        for listener in (self.sampler, self.collate):
            if hasattr(listener, "set_epoch"):
                listener.set_epoch(int(state.epoch))


class EachStep(TrainerCallback):
    """Calls a function with the trainer's control after each optimiser step.

    Args:
        call: may ask for a checkpoint by `control.should_save`.
    """

    def __init__(self, call: Callable[[Any], None]):
        self.call = call

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Calls it."""
        self.call(control)


class Progress(TrainerCallback):
    """A bar on stderr with the last logged losses; without a terminal, a line for each log.

    Args:
        record: is called with the log so far at each checkpoint.
    """

    def __init__(self, record: Callable[[list[dict[str, float]]], None]):
        self.bar: Any = None
        self.record = record

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Keeps the log."""
        self.record(state.log_history)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Opens the bar."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Moves the bar."""
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
        """Shows the numbers."""
        if self.bar is not None and logs:
            shown = {
                name: f"{value:.4g}"
                for name, value in logs.items()
                if isinstance(value, float) and name not in LEFT_OUT and not name.startswith("train_")
            }
            self.bar.set_postfix(shown)
            if self.bar.disable and shown:  # no terminal: a line each time, for the log file
                text = ", ".join(f"{name} {value}" for name, value in shown.items())
                print(f"step {state.global_step}/{state.max_steps}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()


class EveryNSteps(TrainerCallback):
    """Calls a function every so many steps and after the last, leaving torch's generators as they were.

    Args:
        steps: how often.
        call: () -> values to log.
        log: what logs them.
    """

    def __init__(self, steps: int, call: Callable[[], dict[str, float]]):
        self.steps, self.call = steps, call
        self.log: Callable[[dict[str, float]], None] = lambda _: None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Calls if this step is one of them."""
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            due = control.should_log  # which the host takes back after any line of the log
            with preserve_rng_state():
                self.log(self.call())
            control.should_log = due
