"""What several tests use."""

import subprocess
import sys
import time


def cli(*words, **more):
    """Runs `stzoo` with these words."""
    command = [sys.executable, "-m", "stzoo", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)


def wait_for(condition, process, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.001)
