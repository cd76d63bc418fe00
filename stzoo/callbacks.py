"""What goes on beside training: the progress bar, and scores every so many steps."""

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

LEFT_OUT = {"epoch", "grad_norm", "learning_rate", "tokens_per_s"}


class Progress(TrainerCallback):
    """A bar on stderr with the last logged losses; silent without a terminal."""

    def __init__(self) -> None:
        self.bar: Any = None

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
        state: Any,  # noqa: ARG002
        control: Any,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Shows the numbers."""
        if self.bar is not None and logs:
            shown = {
                name: f"{value:.3g}"
                for name, value in logs.items()
                if isinstance(value, float) and name not in LEFT_OUT and not name.startswith("train_")
            }
            self.bar.set_postfix(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()


class Every(TrainerCallback):
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
            with torch.random.fork_rng():
                self.log(self.call())
