"""Stop signals: Ctrl-C is answered at once, and training ends after a step whose checkpoint is saved."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, Self

from stzoo.utils.messages import notify

_answered = threading.Event()  # the user knows of the last Ctrl-C


@contextlib.contextmanager
def announced_interrupts(seconds: float = 0.5) -> Iterator[None]:
    """Shows a note if the block does not end soon after Ctrl-C.

    Python raises KeyboardInterrupt only when the library that is computing returns, which can take seconds,
    as can the clearing up. A thread is woken by the signal itself.

    Args:
        seconds: Time after which the note is shown.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    waking, woken = socket.socketpair()
    waking.setblocking(False)
    _answered.clear()
    before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_announce, args=(woken, seconds), daemon=True)
    thread.start()
    try:
        yield
    finally:
        _answered.set()
        signal.set_wakeup_fd(before)
        waking.close()
        thread.join()
        woken.close()


def _announce(woken: socket.socket, seconds: float) -> None:
    """Waits for the numbers of signals, until the other end is closed."""
    while number := woken.recv(1):
        if number[0] == signal.SIGINT and not _answered.wait(seconds):
            notify("stopping …", is_passing=True)
            _answered.set()


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
        _answered.set()
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
