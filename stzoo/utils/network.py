"""Time limits and retries for what is asked of a hub or a web server."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

from stzoo.errors import RecipeError
from stzoo.utils.messages import notify

T = TypeVar("T")
TRIES = 3
READS = ("GET", "HEAD")
WRITES = 3  # requests that change something may take so many times as long
PAUSE = 60.0  # seconds in which a server that failed TRIES times in a row is not asked again


def seconds() -> float:
    """How long to wait for an answer, or for more of one: $STZOO_TIMEOUT, or 30 seconds.

    Raises:
        RecipeError: if the variable is not a positive number.
    """
    given = os.environ.get("STZOO_TIMEOUT", "30")
    try:
        found = float(given)
    except ValueError:
        found = 0.0
    if not 0 < found < threading.TIMEOUT_MAX:
        raise RecipeError(f"STZOO_TIMEOUT is {given!r}; expected a number of seconds greater than 0.")
    return found


def limit_waits() -> None:
    """Gives huggingface_hub's requests, most of which wait for ever, a time limit and retries.

    A client that somebody else configured by `huggingface_hub.set_client_factory` is left as it is.
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
        """A server that does not answer; as in offline mode, the libraries do not ask again."""

    class Client(httpx2.Client):
        """huggingface_hub's own client, with a time limit for every request."""

        failures: ClassVar[dict[str, tuple[int, float]]] = {}  # by address: how many in a row, and when

        def send(self, request: Any, **options: Any) -> Any:
            reads = request.method in READS
            limit = seconds() * (1 if reads else WRITES)
            given = request.extensions.get("timeout") or {}
            names = ("connect", "read", "write", "pool")
            limits = {name: limit if given.get(name) is None else given[name] for name in names}
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
                number = number % TRIES + 1
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


def retry(call: Callable[[], T], what: str, errors: tuple[type[Exception], ...], tries: int = TRIES) -> T:
    """Calls a function several times until it raises none of the errors, and says so on the screen.

    Args:
        call: the function.
        what: it asks for, for the message.
        errors: that may go away by themselves.
        tries: how often it is called at most.
    """
    for number in range(1, tries):
        try:
            return call()
        except errors as error:
            reason = str(error) or type(error).__name__
            notify(f"{what} failed ({reason}). Retrying ({number + 1} of {tries}) …")
            time.sleep(min(number, seconds()))
    return call()


def interruptible(call: Callable[[], T]) -> T:
    """Runs a function that waits for threads of its own, so that Ctrl-C does not wait for them."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result()
