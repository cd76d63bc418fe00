"""Turns any exception that ends a command into one message and an exit code.

0    success
1    the reader of the output has closed it (broken pipe)
2    a mistake that the user can fix, a full disk, or too little memory
70   anything else: a bug in stzoo or in a plugin; the traceback is saved to a file
130  Ctrl-C
143  SIGTERM

With STZOO_DEBUG=1 the traceback is printed as well.
"""

import datetime
import errno
import functools
import io
import os
import platform
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from stzoo.errors import StzooError, suggest
from stzoo.utils.distributed import report_failure
from stzoo.utils.signals import announced_interrupts

BROKEN_PIPE, MISTAKE, FAULT, INTERRUPTED, TERMINATED = 1, 2, 70, 130, 143
ISSUES = "https://github.com/stzoo/stzoo/issues"
RESUMED = ("pretrain", "finetune", "prepare", "mine", "rerank")  # commands with --resume
REPEATED = (
    "adapt",
    "ask",
    "demo",
    "bench",
    "judge",
    "publish",
)  # commands that continue when they are run again
# errors of the operating system that the user can fix
OF_THE_SYSTEM = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE),
    *(errno.EDQUOT, errno.EIO, errno.ENXIO, errno.ETXTBSY, errno.ENOTSUP),
}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
PATHS = ("path", "file", "place", "source", "folder", "data")  # names of variables whose value is a path
LONGEST = 1000  # characters of an exception's text to show


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def guarded(work: Callable[[], Any], words: Sequence[str]) -> int:
    """Runs a command and returns its exit code; explains an exception on stderr.

    Args:
        work: The command; the number it returns, if any, is the exit code.
        words: The command line, without the program's name.
    """
    for stream in (sys.stdout, sys.stderr):  # escape what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    main_thread = threading.current_thread() is threading.main_thread()
    replace = main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if replace:
        signal.signal(signal.SIGTERM, functools.partial(_terminate, os.getpid()))
    try:
        with announced_interrupts():
            code = work()
        return code if isinstance(code, int) else 0
    except BaseException as error:
        text, code = explain(error, words)
        if text:
            typer.echo(f"stzoo: {text}", err=True)
        if code in (MISTAKE, FAULT):
            report_failure()
        return code
    finally:
        if replace:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(process: int, number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal calls it
    if os.getpid() != process:  # a worker that was forked with this handler
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    raise Terminated


def leave(code: int) -> None:
    """Ends the process; after an interrupt without waiting for threads, e.g. of a download."""
    if code in (INTERRUPTED, TERMINATED) and any(
        thread is not threading.current_thread() and not thread.daemon for thread in threading.enumerate()
    ):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def explain(error: BaseException, words: Sequence[str]) -> tuple[str, int]:
    """The message for the exception that ended a command, and the exit code.

    Args:
        error: The exception.
        words: The command line, without the program's name.
    """
    if isinstance(error, SystemExit):
        code = error.code
        return ("", code if isinstance(code, int) else 0) if not isinstance(code, str) else (code, 1)
    if isinstance(error, typer.Exit):
        return "", error.exit_code
    if isinstance(error, BrokenPipeError) and error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "", BROKEN_PIPE
    if os.environ.get("STZOO_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, StzooError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _stopped(words), TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    if type(error).__name__ == "NoSuchOption":  # of click, which typer keeps to itself
        return _unknown_option(error), MISTAKE
    if hasattr(error, "format_message"):  # click's own errors of usage
        return error.format_message(), getattr(error, "exit_code", MISTAKE)
    if found := _of_the_machine(error, words):
        return found, MISTAKE
    return _fault(error, words), FAULT


def _unknown_option(error: Any) -> str:
    """The message for an option that a command does not have."""
    flags = [
        flag
        for parameter in error.ctx.command.get_params(error.ctx)
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("-")
    ]
    guess = suggest(error.option_name, flags)
    return f"{error.message}{guess} `{error.ctx.command_path} --help` shows all."


def _stopped(words: Sequence[str]) -> str:
    command = _command(words)
    if command in RESUMED:
        return "stopped. To continue, run the same command with --resume."
    return "stopped. To continue, run the same command again." if command in REPEATED else "stopped."


def _command(words: Sequence[str]) -> str:
    return next((word for word in words if not word.startswith("-")), "")


def _of_the_machine(error: BaseException, words: Sequence[str]) -> str:
    """A sentence for errors of the disk, the memory or the file system; "" for other errors."""
    from stzoo.utils.files import is_disk_full

    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    file = f" ({_file(error)})" if _file(error) else ""
    name = f"stzoo {_command(words)}".rstrip()
    if is_disk_full(error):
        return f"`{name}` stopped because a file could not be written{file}: the disk is full."
    said = str(error).lower()
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(one in said for one in OUT_OF_MEMORY))
    ):
        return (
            f"`{name}` stopped because there is too little memory ({_words(error)}). Use smaller batches "
            f"(--batch-size, --batch-tokens), a smaller model, or a larger machine. {_kept(error, words)}"
        )
    if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
        return f"`{name}` stopped because of the file system{file}: {error.strerror or error}."
    return ""


def _fault(error: BaseException, words: Sequence[str]) -> str:
    """The message for an unexpected exception."""
    name = f"stzoo {_command(words)}".rstrip()
    file, fault = _file(error), _plugin(error)
    place = next((frame for frame in _frames(error) if _is_ours(frame, fault)), None)
    where = f" in {place.f_globals['__name__']}.{place.f_code.co_name}" if place else ""
    lines = [
        f"`{name}` failed{where}{f', with {file}' if file else ''}:",
        f"  {_words(error)}",
    ]
    if isinstance(error, RecursionError):
        lines.append("An input that is nested very deeply (YAML, JSON) is a possible cause.")
    if fault:
        lines.append(
            f"The error arose in the plugin {fault.plugin} ({fault.file}:{fault.line}). Please report it to "
            f"{fault.plugin.distribution}'s author."
        )
    else:
        lines.append(
            f"This is a bug in stzoo, perhaps triggered by an unusual input. Please report it at {ISSUES}."
        )
    return "\n".join([*lines, _kept(error, words)])


def _words(error: BaseException) -> str:
    """An exception's type and text in one line, without secrets."""
    text = " ".join(_redacted(str(error)).split())
    text = f"{text[:LONGEST]} …" if len(text) > LONGEST else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _redacted(text: str) -> str:
    from stzoo.hub.redact import redact

    return redact(text)


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames of an exception and of its causes, the innermost first."""
    for one in _causes(error):
        yield from reversed([frame for frame, _ in traceback.walk_tb(one.__traceback__)])


def _is_ours(frame: FrameType, fault: Any) -> bool:
    top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return top == "stzoo" or (fault is not None and top in fault.plugin.modules)


def _file(error: BaseException) -> str:
    """The file that was being read or written, if known."""
    if isinstance(error, OSError) and error.filename:
        return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    for frame in _frames(error):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] != "stzoo":
            continue
        for name in PATHS:
            value = frame.f_locals.get(name)
            if isinstance(value, Path) or (isinstance(value, str) and "\0" not in value and _exists(value)):
                return str(value)
    return ""


def _exists(path: str) -> bool:
    return 0 < len(path) < 4096 and os.path.exists(path)  # noqa: PTH110 - Path.exists raises for long names


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _plugin(error: BaseException) -> Any:
    """The innermost line of a plugin's code that an exception passed through, or None."""
    from stzoo.plugins import manager

    return next(filter(None, map(manager.culprit, _causes(error))), None)


def _kept(error: BaseException, words: Sequence[str]) -> str:
    """Saves the traceback to a file and returns a sentence with its path; never raises."""
    try:
        return f"The full traceback is in {_write(_log(error, words))}."
    except Exception as problem:
        return (
            f"The traceback could not be saved ({type(problem).__name__}: {problem}). Set STZOO_DEBUG=1 and "
            "run the command again to see it."
        )


def _log(error: BaseException, words: Sequence[str]) -> str:
    from stzoo.plugins import manager
    from stzoo.training.records import versions

    found = [str(plugin) for plugin in manager.plugins()]
    lines = [
        "command: stzoo " + " ".join(map(repr, words)),
        f"versions: {', '.join(f'{name} {number}' for name, number in versions().items())}",
        f"plugins: {', '.join(found)}",
        f"system: {platform.platform()}",
        "",
        *traceback.format_exception(error),
    ]
    return _redacted("\n".join(lines))


def _write(text: str) -> Path:
    """Writes a log that only its owner can read to the cache folder, or else to the temporary folder."""
    from stzoo.utils.cache import cache_folder

    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    content = text.encode("utf-8", "backslashreplace") + b"\n"
    try:
        folder = cache_folder() / "errors"
        folder.mkdir(parents=True, exist_ok=True)
        return _create(folder, now, content)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return _create(Path(tempfile.gettempdir()), f"stzoo-{now}", content)


def _create(folder: Path, prefix: str, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(prefix=f"{prefix}-", suffix=".log", dir=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return Path(name)
