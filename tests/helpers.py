"""What several tests use."""

import json
import subprocess
import sys
import time
from pathlib import Path


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


def record_run(folder, settings, log, **facts):
    """Writes the run.json of a training run with these settings and this log, and returns the folder."""
    Path(folder).mkdir(parents=True)
    record = {"status": "finished", "recipe": settings.dump(), "seconds": 12.5, "log": log}
    (Path(folder) / "run.json").write_text(json.dumps(record | facts))
    return Path(folder)


def abandoned_draft(folder, name):
    """A draft of `name` as a SIGKILL leaves it in a folder; `new` in it is missing."""
    box = folder / f".{name}.abcdefgh.stzoo.part"
    box.mkdir()
    (box / "owner").write_text(name)
    return box
