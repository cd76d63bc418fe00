"""Python processes that start in milliseconds, for tests that start many of them; fresh ones except on Linux.

A fresh process needs seconds to import torch, transformers and sentence-transformers. `Popen` and `run` are
those of `subprocess`, but a server that has imported such libraries, though not stzoo, forks the processes.
The workers of pytest-xdist share the servers.
All else is as in a fresh process: pid, signals, exit code, streams, folder, environment, the end of the
interpreter. Two servers take turns, so that a process and the one that continues its work hash strings
differently, as two fresh processes do. `run_ranks` stands in for torchrun.

The environment variables that are read as Python or a library starts must be as they are in the tests, but
for those of the Hub's libraries: where they differ, another two servers fork, which have not imported them.
"""

import atexit
import contextlib
import errno
import gc
import importlib
import itertools
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import types
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import torch

LIBRARIES = """
faiss httpx2 jinja2 numpy pandas pluggy pyarrow.parquet pydantic rich.table safetensors.torch scipy.stats
sklearn.metrics torch._dynamo torch.distributed.tensor typer yaml
"""
HUB_LIBRARIES = "accelerate bm25s datasets ir_measures peft sentence_transformers transformers"
FIXED = "CUDA_ MKL_ OMP_ OPENBLAS_ PYTHONHASHSEED PYTHONIOENCODING PYTHONUTF8 TMPDIR TOKENIZERS_ TORCH_"
HUB_FIXED = "HF_ HOME TRANSFORMERS_ XDG_"
ENVIRONMENT = dict(os.environ)  # before a test changes it
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
SERVERS = {}
TURNS = {hub: itertools.cycle(range(2)) for hub in (True, False)}


class Popen(subprocess.Popen):
    """`subprocess.Popen` for [sys.executable, ["-P"], "-c" CODE | "-m" MODULE | SCRIPT, *arguments]."""

    def _execute_child(self, args, executable, preexec_fn, _close_fds, pass_fds, cwd, env, *more):
        # this is where subprocess.Popen forks; `ends` are those of its pipes, -1 where a stream is no pipe
        ends, (session, group) = more[3:9], more[-2:]
        assert args[0] == sys.executable
        assert (executable, preexec_fn, pass_fds, session, group) == (None, None, (), False, -1)
        env = dict(os.environ if env is None else env)
        assert _as_here(env, FIXED), "this needs a fresh process"
        words = [os.fspath(word) for word in args[1:]]
        streams = [own if end == -1 else end for own, end in enumerate((ends[0], ends[3], ends[5]))]
        self._control, theirs = Pipe()
        with theirs:
            socket.send_fds(_server(_as_here(env, HUB_FIXED)), [b"1"], [theirs.fileno(), *streams])
        self._control.send({"words": words, "folder": str(Path(cwd or ".").absolute()), "env": env})
        self.pid = self._control.recv()
        self._child_created = True
        self._close_pipe_fds(*ends)

    def _internal_poll(self, _deadstate=None):
        return self._ended(0)

    def _wait(self, timeout):
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _ended(self, timeout):
        if self.returncode is None and self._control.poll(timeout):
            self._handle_exitstatus(self._control.recv())
            self._control.close()
        return self.returncode


if sys.platform != "linux":  # other systems' own libraries may not survive a fork
    Popen = subprocess.Popen


def run(command, *, timeout=None, check=False, capture_output=False, **options):
    """`subprocess.run` with these processes."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def run_check(command, *, env, **options):
    """`subprocess.run` for the check of an export, whose environment hides GPUs and limits the threads."""
    unused = ["CUDA_VISIBLE_DEVICES"]
    if "--trust" not in command:
        unused.append("HF_MODULES_CACHE")  # where code would go
    shared = {name: value for name, value in env.items() if name not in unused}
    shared |= {name: ENVIRONMENT[name] for name in unused if name in ENVIRONMENT}
    if torch.cuda.is_available() or command[0] != sys.executable or not _as_here(shared, FIXED):
        return subprocess.run(command, env=env, **options)
    _skip_turn(shared)
    return run(command, env=shared, **options)


def run_ranks(count, command, *, timeout=300, env=None, to_the_end=False, torchrun=True):
    """Runs a command in processes that train together, as torchrun does, until one fails.

    With `to_the_end`, none is killed, as by srun, and `codes` has the exit code of each. Without `torchrun`,
    the first process has the store.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
    }
    if torchrun:
        shared |= {
            "TORCHELASTIC_RUN_ID": "tests",
            "TORCHELASTIC_RESTART_COUNT": 0,
            "TORCHELASTIC_USE_AGENT_STORE": True,  # the one above: no process finds a free port
        }
    else:
        del store  # which frees the port
    if count % 2 == 0:
        _skip_turn(env or os.environ)
    end = time.monotonic() + timeout
    with tempfile.TemporaryFile("w+") as errors, contextlib.ExitStack() as stack:
        ranks = []
        for rank in range(count):
            own = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            options = dict(env={**(env or os.environ), **own}, stdout=subprocess.DEVNULL, stderr=errors)
            ranks.append(stack.enter_context(Popen(command, **options)))
            stack.callback(ranks[-1].kill)
        while None in (codes := [one.poll() for one in ranks]) and (to_the_end or not any(codes)):
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(command, timeout)
            time.sleep(0.01)
        errors.seek(0)
        done = subprocess.CompletedProcess(command, next(filter(None, codes), 0), "", errors.read())
        done.codes = codes
        return done


def _as_here(env, prefixes):
    """Whether the variables with these prefixes are those of the tests' environment."""
    names = [name for name in {*env, *ENVIRONMENT} if name.startswith(tuple(prefixes.split()))]
    return all(env.get(name) == ENVIRONMENT.get(name) for name in names)


def _skip_turn(env):
    """Passes over a server, so that the next processes have others than those whose work they may continue.

    A check takes two turns, and ranks take an odd number.
    """
    next(TURNS[_as_here(env, HUB_FIXED)])


def _server(hub):
    """The connection to the server whose turn it is. The first worker that needs the server starts it.

    Args:
        hub: True for a server that has also imported the libraries of the Hub.
    """
    key = hub, next(TURNS[hub])
    if key not in SERVERS:
        # an abstract address, which only Linux has; it leaves no file
        address = f"\0stzoo-tests-{RUN}-{key}"
        SERVERS[key] = connection = socket.socket(socket.AF_UNIX)
        atexit.register(connection.close)
        while connection.connect_ex(address) == errno.ECONNREFUSED:  # nobody listens
            _start(address, f"{LIBRARIES} {HUB_LIBRARIES}" if hub else LIBRARIES)
    return SERVERS[key]


def _start(address, libraries):
    """Starts a server, unless another worker is about to do so."""
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            time.sleep(0.01)
        else:
            listening.listen()
            command = [sys.executable, __file__, str(listening.fileno()), *libraries.split()]
            subprocess.Popen(command, pass_fds=[listening.fileno()], env=ENVIRONMENT)


def _serve(listening, libraries):
    """Forks a process for each request, and returns in it the words to run."""
    for name in libraries:
        importlib.import_module(name)
    gc.freeze()  # or each process copies all objects as it ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    clients = [_accepted(listening)]
    while clients or select.select([listening], [], [], 0)[0]:
        ready = select.select([listening, *clients], [], [])[0]
        if listening in ready:
            ready.remove(listening)
            clients.append(_accepted(listening))
        for client in ready:
            _, fds, *_ = socket.recv_fds(client, 1, 4)
            if not fds:
                clients.remove(client)
                client.close()
            elif os.fork() == 0:
                for one in (listening, *clients):
                    one.close()
                return _child(Connection(fds[0]), fds[1:])
            for fd in fds:
                os.close(fd)
    sys.exit()  # the tests have ended


def _accepted(listening):
    """The next connection, which must be of the same user: what it asks for is run."""
    client, _ = listening.accept()
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    assert user == os.getuid(), "another user connected to the server of the tests' processes"
    return client


def _child(control, streams):
    """Forks once more, to wait for the process, in which it returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = control.recv()
    if pid := os.fork():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for fd in streams:
            os.close(fd)
        control.send(pid)
        control.send(os.waitpid(pid, 0)[1])
        os._exit(0)
    control.close()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    names = ("stdin", "r", 1), ("stdout", "w", -1), ("stderr", "w", 1)
    for number, (name, mode, buffering) in enumerate(names):
        errors = "backslashreplace" if name == "stderr" else "strict"
        stream = os.fdopen(number, mode, buffering, errors=errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    servers, own = (one.get("PYTHONPATH", "").split(os.pathsep) for one in (ENVIRONMENT, request["env"]))
    sys.path[:] = [*filter(None, own), *(path for path in sys.path if path not in servers)]
    sys.modules["numpy"].random.seed()  # `random` does so by itself
    return request["words"]


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    words = _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    own_path = words[0] != "-P"
    match words if own_path else words[1:]:
        case ["-c", code, *arguments]:
            sys.argv, sys.path[:0] = ["-c", *arguments], [""] * own_path
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), vars(main))
        case ["-m", module, *arguments]:
            sys.argv, sys.path[:0] = ["-m", *arguments], [str(Path.cwd())] * own_path
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *arguments]:
            sys.argv, sys.path[:0] = [script, *arguments], [str(Path(script).resolve().parent)] * own_path
            runpy.run_path(script, run_name="__main__")
