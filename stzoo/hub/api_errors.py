"""Readable errors in place of those that the Hub's client raises."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from stzoo.errors import PublishError, StzooError, first_line
from stzoo.utils.messages import counted
from stzoo.utils.network import limit_waits


@contextlib.contextmanager
def hub_errors(action: str, left: str = "", kind: type[StzooError] = PublishError) -> Iterator[None]:
    """Turns the errors of the Hub, its client and the network in the block into a StzooError.

    Args:
        action: What the block does, as a participle: "listing the files of org/name".
        left: The state that a failure leaves behind, as a sentence without its full stop; "" for none.
        kind: Class of the error to raise.
    """
    limit_waits()
    try:
        yield
    except StzooError:
        raise
    except Exception as error:  # the client passes on the errors of all layers below it
        message = _message(error, action)
        if token := get_token():  # a response may repeat it
            message = message.replace(token, "…")
        raise kind(f"{message}{left and f' {left}.'}") from error


def status(error: BaseException | None) -> int | None:
    """The HTTP status of the response that led to an error; None if there was no response."""
    answer = _answer(error)
    return None if answer is None else int(answer.response.status_code)


def _answer(error: Any) -> Any:
    """The error that has the Hub's response: this one, or one of its causes."""
    while error is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    return error


def _message(error: Exception, action: str) -> str:
    if constants.is_offline_mode() and any(
        isinstance(one, OfflineModeIsEnabled) for one in (error, error.__cause__)
    ):
        return f"HF_HUB_OFFLINE is set, which prevents {action}; unset it to use the network."
    answer = _answer(error)
    if answer is None:
        if not _is_connection_error(error):
            reason = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
            return (
                f"{constants.ENDPOINT} did not answer as the Hub does while {action} ({reason}). Check "
                "HF_ENDPOINT, and whether a proxy or login page answers instead."
            )
        reason = first_line(error.__cause__ or error).rstrip(".")
        return f"{constants.ENDPOINT} cannot be reached, or the connection broke, while {action}: {reason}."
    response = answer.response
    wait = response.headers.get("Retry-After", "")  # seconds, or a date
    when = f"in {counted(int(wait), 'second')}" if wait.isdigit() else "in a few minutes"
    advice = {
        401: "There is no token, or it is invalid; run `hf auth login`, or set HF_TOKEN",
        403: "Your token has no permission for this",
        404: "Not found, or your token cannot read it",
        409: "The name is taken",
        412: "The repository has changed in the meantime; look at the changes, and publish again",
        429: f"Too many requests; try again {when}",
    }
    code = response.status_code
    if isinstance(answer, RepositoryNotFoundError) and not isinstance(answer, GatedRepoError):
        advice[401] = advice[404]  # without a valid token the Hub does not say which
    default = "The Hub has an internal error; try again later" if code >= 500 else "The Hub refused"
    reason = str(getattr(answer, "server_message", None) or response.reason_phrase).strip().rstrip(".")
    return f"{advice.get(code, default)} (HTTP {code} while {action}: {reason})."


def _is_connection_error(error: BaseException | None) -> bool:
    """True if an error, or one of its causes, is one of the network or the disk, not of the response."""
    while error is not None:
        if isinstance(error, OSError | httpx2.RequestError):
            return True
        error = error.__cause__
    return False
