"""The exceptions that stzoo raises for a user's mistakes.

StzooError                      exit code 2, printed without a traceback
├── PluginError                 a plugin or component that cannot be used
│   ├── UnknownNameError        a name that does not exist; suggests the closest one
│   └── ConflictError           two components with the same name
├── RecipeError                 an invalid recipe or option
├── DataError                   an invalid corpus, qrels or result file
├── ModelError                  a folder or id that is not a usable model
│   ├── BackboneError           a masked LM that cannot be split into embeddings, encoder and head
│   └── ExportError             a model that cannot be exported in a portable form
├── ShapeError                  tensors whose shapes do not match
├── OutputError                 an output path that cannot or must not be written
├── TrainingError               a run whose values are not finite, or one of whose processes is gone
├── PublishError                a model that must not be published, or that the Hub rejects
├── ServerError                 a server of a language model that cannot be used
└── MissingExtraError           an optional dependency that is not installed
    └── MissingPackageError     one that no extra of stzoo installs

Any other exception is a bug in stzoo and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class StzooError(Exception):
    """A mistake that the user can fix; the message says what was given, what was expected and what to do."""

    exit_code = 2


class PluginError(StzooError):
    """A plugin or component that cannot be used."""


class UnknownNameError(PluginError):
    """A name that does not exist.

    Args:
        kind: Kind of the component, e.g. "objective".
        name: The unknown name.
        known: The existing names.
        hint: Additional sentence, e.g. why a plugin that might provide the name is missing.
        aliases: Further names to suggest, which are not listed.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], hint: str = "", aliases: Iterable[str] = ()
    ):
        known = sorted(known)
        guess = suggest(name, [*known, *aliases])
        text = f"there is no {kind} {name!r}{guess} Known: {', '.join(known) or 'none'}."
        super().__init__(f"{text} {hint}".rstrip())


class ConflictError(PluginError):
    """Two components with the same name."""


class RecipeError(StzooError):
    """An invalid recipe or option."""


class DataError(StzooError):
    """An invalid corpus, qrels or result file."""

    @classmethod
    def at(cls, path: object, line: int, found: str, expected: str) -> "DataError":
        """Makes an error that names the file and the line (counted from 1); a long `found` is abbreviated."""
        return cls(f"{path}:{line}: {abbreviated(found)}; expected {expected}.")


class ModelError(StzooError):
    """A folder or id that is not a usable model."""


class BackboneError(ModelError):
    """A masked LM that cannot be split into embeddings, encoder and head."""


class ExportError(ModelError):
    """A model that cannot be exported in a portable form."""


class ShapeError(StzooError):
    """Tensors whose shapes do not match."""


class OutputError(StzooError):
    """An output path that cannot or must not be written."""


class TrainingError(StzooError):
    """A run that cannot continue: a value is not finite, or one of its processes is gone."""


class PublishError(StzooError):
    """A model that must not be published, or that the Hub rejects."""


class ServerError(StzooError):
    """A server of a language model that does not answer, or refuses to."""


class MissingExtraError(StzooError):
    """An optional dependency that is not installed.

    Args:
        package: The missing package.
        extra: The extra of stzoo that installs it.
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed. Run: pip install 'stzoo[{extra}]'")


class MissingPackageError(MissingExtraError):
    """An optional dependency that no extra of stzoo installs.

    Args:
        package: The missing package.
        option: The option that needs it.
    """

    def __init__(self, package: str, option: str):
        StzooError.__init__(
            self, f"{package} is not installed, which {option} needs. Run: pip install {package}"
        )


def abbreviated(text: str, longest: int = 240) -> str:
    """Shortens a text for a message: cuts out the middle if it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} … {text[-longest // 4 :]} ({len(text)} characters)"


def quoted(value: object) -> str:
    """Formats a value for a message: its repr, abbreviated."""
    return abbreviated(repr(value), 80)


# names that other programs have for settings
_ELSEWHERE = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "wd": "weight_decay",
    "num_train_epochs": "epochs",
    "gradient_accumulation_steps": "accumulation",
    "logging_steps": "log_steps",
    "warmup": "warmup_ratio",
    "fp16": "precision",
    "bf16": "precision",
    "dataset": "data",
    "output_dir": "output",
}


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: "; did you mean 'x'?", or "." if none is close.

    A name that is a word of the unknown one, as k is of top_k, is close too, and so is the name of a setting
    for the one that other programs have. Dashes and underscores are alike, and flags begin with dashes.
    """
    by_plain = {_plain(one): one for one in known}
    words = (_plain(name) if name.startswith("--") else name.lower()).split("_")[1:]
    name = _plain(name)
    close = [one for one in [_ELSEWHERE.get(name)] if one in by_plain]
    close = close or get_close_matches(name, by_plain, n=1, cutoff=0.6)
    close = close or [word for word in words if word in by_plain]
    return f"; did you mean {by_plain[close[0]]!r}?" if close else "."


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")


def check_known(option: str, given: str, known: Iterable[str]) -> None:
    """Checks that the value of an option is among the known values.

    Raises:
        RecipeError: If it is not; the message suggests the closest one.
    """
    if given not in known:
        raise RecipeError(f"there is no {option} {given!r}{suggest(given, known)} Known: {', '.join(known)}.")


def is_failure(error: BaseException) -> bool:
    """True for exceptions, and for panics of Rust libraries (tokenizers), which are not an `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
