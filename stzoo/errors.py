"""The exceptions that stzoo raises for a user's mistakes.

StzooError                      exit code 2, printed without a traceback
├── PluginError                 a plugin or component that cannot be used
│   ├── UnknownNameError        no component of that name; offers the nearest
│   └── ConflictError           two providers of one name
├── RecipeError                 a recipe or option that does not hold
├── DataError                   a corpus, qrels or result file that does not hold
├── ModelError                  a folder or id that is no usable model
│   ├── BackboneError           a masked LM that cannot be taken apart
│   └── ExportError             a model that has no portable form
├── ShapeError                  tensors whose shapes do not agree
├── OutputError                 an output folder that must not be written
├── TrainingError               a training run that cannot continue, as its loss is not finite
├── PublishError                a model that must not go to the Hub, or that the Hub does not take
└── MissingExtraError           an optional dependency that is not installed

Anything else that escapes is a bug of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class StzooError(Exception):
    """A mistake that the user can mend; its text says what was given, what was expected and what to do."""

    exit_code = 2


class PluginError(StzooError):
    """A plugin or component that cannot be used."""


class UnknownNameError(PluginError):
    """A name that nothing carries.

    Args:
        kind: what was looked for, e.g. "objective".
        name: the name given.
        known: the names there are.
        hint: one more sentence, e.g. why a plugin that might have it is missing.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = ""):
        known = sorted(known)
        text = f"there is no {kind} {name!r}{suggest(name, known)} Known: {', '.join(known) or 'none'}."
        super().__init__(f"{text} {hint}".rstrip())


class ConflictError(PluginError):
    """Two providers of one name."""


class RecipeError(StzooError):
    """A recipe or option that does not hold."""


class DataError(StzooError):
    """A corpus, qrels or result file that does not hold."""

    @classmethod
    def at(cls, path: object, line: int, found: str, expected: str) -> "DataError":
        """An error that names the file and the line (counted from 1); a long `found` is abbreviated."""
        return cls(f"{path}:{line}: {abbreviated(found)}; expected {expected}.")


class ModelError(StzooError):
    """A folder or id that is no usable model."""


class BackboneError(ModelError):
    """A masked LM that cannot be taken apart."""


class ExportError(ModelError):
    """A model that has no portable form."""


class ShapeError(StzooError):
    """Tensors whose shapes do not agree."""


class OutputError(StzooError):
    """An output folder that must not be written."""


class TrainingError(StzooError):
    """A training run that cannot continue, as its loss, gradient or weights are not finite."""


class PublishError(StzooError):
    """A model that must not go to the Hub, or that the Hub does not take."""


class MissingExtraError(StzooError):
    """An optional dependency that is not installed.

    Args:
        package: what could not be imported.
        extra: the extra of stzoo that brings it.
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed. Run: pip install 'stzoo[{extra}]'")


def abbreviated(text: str, longest: int = 240) -> str:
    """A text as a message shows it: without its middle if it is longer than that many characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} … {text[-longest // 4 :]} ({len(text)} characters)"


def quoted(value: object) -> str:
    """A value as a message shows it: its repr, abbreviated."""
    return abbreviated(repr(value), 80)


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: "; did you mean 'x'?", or "." if none is close."""
    by_lower = {one.lower(): one for one in known}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else "."


def check_known(option: str, given: str, known: Iterable[str]) -> None:
    """Sees that what an option is given is among the known values.

    Raises:
        RecipeError: if it is not; it offers the nearest.
    """
    if given not in known:
        raise RecipeError(f"there is no {option} {given!r}{suggest(given, known)} Known: {', '.join(known)}.")


def is_failure(error: BaseException) -> bool:
    """True for exceptions, and for panics of libraries in Rust (tokenizers), which are not an `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """The first line of what a library says of its error; the error's type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
