"""Loggers of other packages (`--report-to`): which there are, and where they write."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from stzoo.errors import MissingPackageError, check_known

# package that each needs, and the environment variable with the folder that it writes to
LOGGERS = {
    "mlflow": ("mlflow", "MLFLOW_TRACKING_URI"),
    "tensorboard": ("tensorboard", "TENSORBOARD_LOGGING_DIR"),
    "trackio": ("trackio", "TRACKIO_DIR"),
    "wandb": ("wandb", "WANDB_DIR"),
}


def check_loggers(names: Sequence[str]) -> None:
    """Checks that loggers exist and that the packages of LOGGERS are installed, without importing these.

    Transformers checks the packages of its other loggers when training begins.

    Raises:
        MissingPackageError: If a package is not installed.
        RecipeError: If there is no logger of a name; the message lists those that exist.
    """
    for name in names:
        if name in LOGGERS:
            package = LOGGERS[name][0]
            if find_spec(package) is None:
                raise MissingPackageError(package, f"--report-to {name}")
        else:
            from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK  # takes seconds

            check_known("logger (report_to)", name, INTEGRATION_TO_CALLBACK)


@contextlib.contextmanager
def logs_in(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Has loggers write to FOLDER/logs while the block runs, unless the environment names another place."""
    logs = (folder / "logs").resolve()
    places = {name: str(logs / name) for name in LOGGERS} | {"wandb": str(logs)}  # wandb adds its own name
    places["mlflow"] = f"sqlite:///{logs / 'mlflow' / 'mlflow.db'}"
    changed = [name for name in names if name in LOGGERS and LOGGERS[name][1] not in os.environ]
    for name in changed:
        (logs / name).mkdir(parents=True, exist_ok=True)
        os.environ[LOGGERS[name][1]] = places[name]
    try:
        yield
    finally:
        for name in changed:
            os.environ.pop(LOGGERS[name][1], None)
            for empty in (logs / name, logs):
                with contextlib.suppress(OSError):  # it has logs
                    empty.rmdir()
