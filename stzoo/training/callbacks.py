"""Callbacks of the trainer: the progress bar, evaluation every N steps, and fixes for resumed runs."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers import trainer as host
from transformers.trainer_callback import PrinterCallback

from stzoo.training.history import score_label
from stzoo.utils.messages import counted, duration, notify
from stzoo.utils.progress import progress_bar

LEFT_OUT = {
    *("epoch", "grad_norm", "learning_rate", "total_flos"),
    *("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),  # the host counts no samples here
}


BASE_SECONDS = "eval_runtime"  # the host's name of it
NOT_IN_BAR = {"data_wait", "utilisation"}  # for want of room
ESTIMATE_STEPS, ESTIMATE_S = 10, 20  # the time is estimated after so many steps or seconds


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restores the state of torch's generators at the end of the block."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


def remove_host_progress(trainer: Any) -> None:
    """Removes the host's own bar (in a notebook, its table) and printer; `Progress` replaces them."""
    for theirs in (host.DEFAULT_PROGRESS_CALLBACK, PrinterCallback):
        trainer.remove_callback(theirs)


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


class ShowPlan(TrainerCallback):
    """Prints what a training will do.

    Args:
        plan: What it trains on; "" to print nothing.
    """

    def __init__(self, plan: str):
        self.plan = plan

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Prints the plan, with the number of steps."""
        if not self.plan:
            return
        text = f"{self.plan}: {counted(state.max_steps, 'step')}"
        if args.max_steps <= 0:
            text += f" ({args.num_train_epochs:g} epoch{'s' * (args.num_train_epochs != 1)})"
        if state.global_step:
            text += f", of which {state.global_step:,} are done"
        if args.eval_strategy != "no":
            text += f", evaluated every {counted(state.eval_steps, 'step')}"
        notify(f"{text}.")


class Progress(TrainerCallback):
    """A progress bar on stderr with the last logged losses; without a terminal, one line per log entry.

    Scores are printed on lines of their own, with the gain over those of the base (see `ScoreBase`).

    Args:
        record: Function that is called with the log so far at each checkpoint.

    Attributes:
        base: Scores of the base by their names in the log; by default those that `ScoreBase` has logged.
    """

    def __init__(self, record: Callable[[list[dict[str, float]]], None]):
        self.bar: Any = None
        self.record = record
        self.base: dict[str, float] = {}
        self.ended: float | None = None  # when the step before this one ended, if nothing came between
        self.timed: list[float] = []  # seconds of steps, until the time is estimated
        self.is_estimated = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Records the log."""
        self.record(state.log_history)
        self.ended = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Measures the speed without the time of the evaluation."""
        self.ended = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Opens the progress bar."""
        if state.is_world_process_zero:
            form = "{l_bar}{bar:10}{r_bar}"  # leaves room for the losses
            of = dict(total=state.max_steps, initial=state.global_step, unit="step", bar_format=form)
            self.bar = progress_bar(**of, leave=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advances the progress bar, estimates the time after a few steps, and logs the last losses."""
        control.should_log |= control.should_evaluate or state.global_step == state.max_steps
        if self.bar is None:
            return
        self.bar.update(state.global_step - self.bar.n)
        now = time.monotonic()
        if self.ended is not None and not self.is_estimated:
            self.timed.append(now - self.ended)
            enough = len(self.timed) >= ESTIMATE_STEPS or sum(self.timed) >= ESTIMATE_S
            if enough and state.global_step < state.max_steps:
                self.is_estimated = True
                self._estimate(args, state, sum(self.timed) / len(self.timed))
        self.ended = now

    def _estimate(self, args: Any, state: Any, step_s: float) -> None:
        left = state.max_steps - state.global_step
        parts, seconds = [f"{step_s:.2g} s per step"], left * step_s
        if args.eval_strategy != "no":
            done, last = (at // state.eval_steps for at in (state.global_step, state.max_steps))
            count = last - done + (state.max_steps % state.eval_steps > 0)
            each = _of_base(state).get(BASE_SECONDS, 0)
            parts.append(f"{counted(count, 'evaluation')} of {each:.2g} s" if each else "without evaluations")
            parts.append("less if training stops early")
            seconds += count * each
        notify(f"estimated time left: {duration(seconds)} ({', '.join(parts)}).")

    def on_log(
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Shows the logged numbers."""
        if self.bar is None or not logs or not state.global_step:
            return
        shown = {
            name: f"{value:.4g}"
            for name, value in logs.items()
            if isinstance(value, float) and name not in LEFT_OUT and not name.startswith("train_")
        }
        base = self.base or _of_base(state)
        scores = {name: shown.pop(name) for name in list(shown) if score_label(name)}
        texts = [
            f"{score_label(name)} {logs[name]:.4f}"
            + (f" ({logs[name] - base[name]:+.4f} against the base)" if name in base else "")
            for name in scores
        ]
        if not self.bar.disable:
            self.bar.set_postfix({name: value for name, value in shown.items() if name not in NOT_IN_BAR})
        else:  # no terminal: one line per entry, for log files
            texts = [f"{name} {value}" for name, value in shown.items()] + texts
        if texts:
            with tqdm.external_write_mode(file=sys.stderr):
                print(
                    f"step {state.global_step}/{state.max_steps}: {', '.join(texts)}",
                    file=sys.stderr,
                    flush=True,
                )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the block out of the speed from which the bar estimates the time left."""
        begun = time.time()  # the clock of tqdm
        yield
        if self.bar is not None and not self.bar.disable:
            self.bar.last_print_t += time.time() - begun

    def close(self) -> None:
        """Closes the progress bar."""
        if self.bar is not None:
            self.bar.close()


def _of_base(state: Any) -> dict[str, float]:
    """The log entry of the base; {} if it was not scored."""
    return next((line for line in state.log_history[:1] if line["step"] == 0), {})


class ScoreBase(TrainerCallback):
    """Scores the base before the first step, and logs its scores as those of step 0.

    The states of torch's generators stay as they are.

    Args:
        call: Function of the model that returns values to log, under the names that later scores have in the
            log. The processes of a training call it together.

    Attributes:
        log: Function that logs the values; the trainer's, once there is one.
        paused: Context in which the time does not count as that of training; the trainer's, likewise.
    """

    def __init__(self, call: Callable[[Any], dict[str, float]]):
        self.call = call
        self.log: Callable[[dict[str, float]], None] = lambda _: None
        self.paused: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Scores the base, unless the run is resumed."""
        if state.global_step or state.log_history:
            return
        begun = time.monotonic()
        with preserve_rng_state(), self.paused():
            scores = self.call(model)
        notify(f"the base scores {', '.join(f'{score_label(k)} {v:.4f}' for k, v in scores.items())}.")
        self.log(scores | {BASE_SECONDS: time.monotonic() - begun})


class EveryNSteps(ScoreBase):
    """Calls a function for the base, every N steps and after the last one; see `ScoreBase`.

    Args:
        steps: Number of steps between two calls.
        call: Function of the model that returns values to log.
    """

    def __init__(self, steps: int, call: Callable[[Any], dict[str, float]]):
        super().__init__(call)
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Calls the function if it is due at this step."""
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            due = control.should_log  # the host resets it after any log entry
            with preserve_rng_state(), self.paused():
                scores = self.call(model)
            self.log(scores)
            control.should_log = due
