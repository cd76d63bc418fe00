"""What a hub, and the way to it, answers to its client: errors for people in place of the client's own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from stzoo.errors import PublishError, StzooError, first_line
from stzoo.utils.network import limit_waits


@contextlib.contextmanager
def asking(what: str, left: str = "", kind: type[StzooError] = PublishError) -> Iterator[None]:
    """Turns whatever the Hub, or the way to it, says in the block into an error of ours.

    Args:
        what: the Hub is asked, as the end of a sentence.
        left: what is there now, if something was begun: a sentence without its full stop.
        kind: of the error.
    """
    limit_waits()
    try:
        yield
    except StzooError:
        raise
    except Exception as error:  # the client lets through what every layer below it raises
        told = _told(error)
        if token := get_token():  # an answer may repeat it
            told = told.replace(token, "…")
        raise kind(f"{told} The Hub was asked {what}.{left and f' {left}.'}") from error


def status(error: BaseException | None) -> int | None:
    """Of the Hub's answer that led to an error; None if there was no answer."""
    answer = _answer(error)
    return None if answer is None else int(answer.response.status_code)


def _answer(error: Any) -> Any:
    """The error that carries the Hub's answer: this one, or one that it comes from."""
    while error is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    return error


def _told(error: Exception) -> str:
    if constants.is_offline_mode() and any(
        isinstance(one, OfflineModeIsEnabled) for one in (error, error.__cause__)
    ):
        return "HF_HUB_OFFLINE forbids the network."
    answer = _answer(error)
    if answer is None:
        if not _is_of_the_way(error):
            said = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
            return (
                f"{constants.ENDPOINT} did not answer as the Hub does ({said}). See whether HF_ENDPOINT is "
                "right, and whether a proxy or login page answers in its place."
            )
        said = first_line(error.__cause__ or error).rstrip(".")
        return f"{constants.ENDPOINT} cannot be reached or broke off: {said}."
    response = answer.response
    wait = response.headers.get("Retry-After", "")  # seconds, or a date
    advice = {
        401: "There is no token, or it is not valid; run `hf auth login`, or set HF_TOKEN to another",
        403: "The token has no right to do this",
        404: "There is no such thing, or the token has no right to see it",
        409: "The name is taken",
        412: "Somebody has changed it meanwhile; see what is new, and publish again",
        429: f"Too many requests; try again in {f'{wait} seconds' if wait.isdigit() else 'some minutes'}",
    }
    code = response.status_code
    if isinstance(answer, RepositoryNotFoundError) and not isinstance(answer, GatedRepoError):
        advice[401] = advice[404]  # which strangers are not told apart
    usual = "The Hub is out of order; try again later" if code >= 500 else "The Hub refuses"
    said = str(getattr(answer, "server_message", None) or response.reason_phrase).strip().rstrip(".")
    return f"{advice.get(code, usual)} ({code}: {said})."


def _is_of_the_way(error: BaseException | None) -> bool:
    """True if an error, or one that it comes from, is of the network or the disk, not of the answer."""
    while error is not None:
        if isinstance(error, OSError | httpx2.RequestError):
            return True
        error = error.__cause__
    return False
