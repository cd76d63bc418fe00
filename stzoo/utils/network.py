"""Time limits and retries for requests to the Hub and web servers."""

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from stzoo.errors import RecipeError
from stzoo.utils.messages import notify

T = TypeVar("T")
TRIES = 3
READS = ("GET", "HEAD")
WRITES = 3  # requests that change something may take this many times as long
PAUSE = 60.0  # seconds without requests to a server that failed TRIES times in a row


def seconds() -> float:
    """The time limit in seconds for a response, or for the next part of it: $STZOO_TIMEOUT, or 30.

    Raises:
        RecipeError: If the variable is not a positive number.
    """
    value = os.environ.get("STZOO_TIMEOUT", "30")
    try:
        limit = float(value)
    except ValueError:
        limit = 0.0
    if not 0 < limit < threading.TIMEOUT_MAX:
        raise RecipeError(f"STZOO_TIMEOUT is {value!r}; expected a number of seconds greater than 0.")
    return limit


def limit_waits() -> None:
    """Adds time limits and retries to huggingface_hub's requests, most of which would wait forever.

    A client configured by `huggingface_hub.set_client_factory` is left unchanged.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    limit = seconds()
    if _http._GLOBAL_CLIENT_FACTORY is _http.default_client_factory:
        set_client_factory(_client)
    constants = _http.constants
    constants.HF_HUB_ETAG_TIMEOUT = min(constants.HF_HUB_ETAG_TIMEOUT, limit)  # type: ignore[assignment]
    constants.HF_HUB_DOWNLOAD_TIMEOUT = min(constants.HF_HUB_DOWNLOAD_TIMEOUT, limit)  # type: ignore[assignment]


def _client() -> Any:
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import _http

    class Unreachable(OfflineModeIsEnabled):
        """A server that does not answer. As in offline mode, the libraries do not retry."""

    class Client(httpx2.Client):
        """huggingface_hub's own client, with a time limit for every request."""

        failures: ClassVar[
            dict[str, tuple[int, float]]
        ] = {}  # by address: number in a row, and time of the last

        def send(self, request: Any, **options: Any) -> Any:
            reads = request.method in READS
            limit = seconds() * (1 if reads else WRITES)
            timeouts = request.extensions.get("timeout") or {}
            names = ("connect", "read", "write", "pool")
            limits = {name: limit if timeouts.get(name) is None else timeouts[name] for name in names}
            request.extensions = {**request.extensions, "timeout": limits}
            what = f"{request.method} {str(request.url).partition('?')[0]}"
            return retry(lambda: self.once(request, options), what, FAILURES, TRIES if reads else 1)

        def once(self, request: Any, options: dict[str, Any]) -> Any:
            host = request.url.netloc.decode("ascii")
            number, last = self.failures.get(host, (0, 0.0))
            if number >= TRIES and time.monotonic() - last < PAUSE:
                raise Unreachable(f"{host} did not answer {number} times in a row")
            try:
                answer = super().send(request, **options)
            except FAILURES as error:
                number = TRIES if is_name_unknown(error) else number % TRIES + 1
                self.failures[host] = number, time.monotonic()
                if number < TRIES:
                    raise
                reason = str(error) or type(error).__name__
                raise Unreachable(f"{host} did not answer {number} times in a row: {reason}") from error
            self.failures.pop(host, None)
            return answer

    FAILURES = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
    return Client(
        event_hooks={"request": [_http.hf_request_event_hook]}, follow_redirects=True, timeout=seconds()
    )


def is_name_unknown(error: BaseException | None) -> bool:
    """True if a server's name does not exist, as without a network; trying again is of no use."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
        error = error.__cause__ or error.__context__
    return False


def is_cut_off(url: str) -> bool:
    """True if a server cannot be reached, as its name is unknown here. It sends nothing to the server."""
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    if host is None or getproxies().get(scheme):  # a proxy looks names up
        return False
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True
    return False


def retry(call: Callable[[], T], what: str, errors: tuple[type[Exception], ...], tries: int = TRIES) -> T:
    """Calls a function again while it raises one of the errors, with a note to the user.

    Args:
        call: The function.
        what: What it requests, for the note.
        errors: Types of errors that may be temporary.
        tries: Maximum number of calls.
    """
    for number in range(1, tries):
        try:
            return call()
        except errors as error:
            reason = str(error) or type(error).__name__
            notify(f"{what} failed ({reason}). Retrying ({number + 1} of {tries}) …", is_passing=True)
            time.sleep(min(number, seconds()))
    return call()


def interruptible(call: Callable[[], T]) -> T:
    """Runs a function that waits for its own threads, so that Ctrl-C does not wait for them."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    while not wait([future], timeout=1).done:  # a signal just before a wait does not end it
        pass
    return future.result()
