"""Progress bars."""

import os
import subprocess
import sys

import pytest

from stzoo.utils.progress import advance, advancing, progress_bar

NARROW = """
import fcntl, struct, sys, termios
fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
from stzoo.utils.progress import progress_bar
look = dict(desc="A long description of what is done here", unit=" passages", mininterval=0)
for _ in progress_bar(range(3), **look):
    pass
"""


def test_a_bar_over_texts_moves_inside_of_a_shard():
    with progress_bar(total=5, disable=True) as bar:
        bar.n = 0
        bar.update = lambda count: setattr(bar, "n", bar.n + count)
        advance(1)  # outside, nothing moves
        with advancing(bar):
            advance(3)
    assert bar.n == 3


@pytest.mark.skipif(os.name != "posix", reason="there are no pseudo-terminals")
def test_a_bar_fits_a_narrow_terminal():
    import pty

    reader, writer = pty.openpty()
    subprocess.run([sys.executable, "-c", NARROW], stderr=writer, check=True, timeout=300)
    os.close(writer)
    shown = os.read(reader, 10_000).decode()
    lines = [line for line in shown.replace("\n", "\r").split("\r") if line.strip()]
    assert lines
    assert max(map(len, lines)) <= 40
