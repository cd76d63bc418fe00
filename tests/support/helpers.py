"""What several tests use."""

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from stzoo.cli import main
from support import processes

# Python code for other processes, as the fixture `unverified` is for this one
UNVERIFIED = """
import sys
from importlib import import_module
sys.modules["matplotlib"] = None
import_module("stzoo.hub.export")._verify = lambda *_, **__: None
"""


def cli(*words, cwd=".", env=None):
    """Runs `stzoo` with these words, in this process or, with an environment, in one of its own."""
    command = [sys.executable, "-m", "stzoo", *map(str, words)]
    if env is not None:
        return processes.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(command[3:])
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


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
    """A draft of `name` as a SIGKILL leaves it in a folder, in the middle of a write by safetensors."""
    box = folder / f".{name}.abcdefgh.stzoo.part"
    box.mkdir()
    (box / "owner").write_text(name)
    (box / ".tmpWLB4Df").write_bytes(b"half of it")
    return box


def in_trec_order(found):
    """A query's document ids as trec_eval orders them: by float32 score, then by id, both descending."""
    return sorted(found, key=lambda document: (np.float32(found[document]), document), reverse=True)


class Pool:
    """Workers that take values ahead, and give the results back in another order."""

    capacity = 4

    def __init__(self, compute):
        self.compute, self.waiting = compute, []

    def submit(self, number, value):
        assert len(self.waiting) < self.capacity
        self.waiting.append((number, value))

    def next(self):
        number, value = self.waiting.pop()
        return number, self.compute(value)
