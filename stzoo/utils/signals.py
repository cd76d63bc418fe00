"""Stop signals: defers Ctrl-C and SIGTERM until the training step is done and a checkpoint is saved."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, NoReturn, Self

from stzoo.utils.messages import notify


class StopSignals:
    """Defers the first Ctrl-C or SIGTERM in a `with` block; a second one takes effect at once.

    Handlers are set in the main thread only, unless the signal is ignored, and are restored at the end of the
    block.

    Attributes:
        received: Number of the signal that was received; 0 if none was.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        if os.getpid() != self._process:  # a forked worker of the data loader, which inherited this handler
            if number == signal.SIGTERM:  # sent by its parent to end it; on Ctrl-C the parent decides
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if self.received:
            self._restore()
            signal.raise_signal(number)
            return
        self.received = number
        with contextlib.suppress(RuntimeError):  # the signal has interrupted another message
            notify("stopping after this step and saving a checkpoint. A second signal stops at once.")

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def leave(self) -> NoReturn:
        """Does what the received signal would have done without this block.

        Raises:
            KeyboardInterrupt: For Ctrl-C.
            SystemExit: For SIGTERM, with the exit code 143, unless the program has a handler for it.
        """
        self._restore()
        before = self._before.get(self.received)
        if callable(before):
            before(self.received, None)
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + self.received)
        raise KeyboardInterrupt
