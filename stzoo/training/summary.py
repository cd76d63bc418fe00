"""What a finished training prints: how it went, where the model is, and what to do next."""

import shlex
from pathlib import Path
from typing import Any

from stzoo.training.history import as_history
from stzoo.utils.messages import counted, duration, notify


def print_summary(folder: Path, metadata: dict[str, Any], scores: list[str], advice: list[list[str]]) -> None:
    """Prints the summary of a finished training.

    Args:
        folder: Folder of the run, as the user gave it.
        metadata: Content of run.json.
        scores: Lines about scores.
        advice: Commands to run next, each as a list of words.
    """
    history = as_history(metadata, folder)
    line = f"finished {counted(history.steps, 'step')} in {duration(history.seconds)}"
    if history.losses:
        values = [value for _, value in history.losses[0].points]
        few = max(1, len(values) // 5)  # of which the mean is shown, as single ones vary
        first, last = (sum(part) / few for part in (values[:few], values[-few:]))
        line += f"; {history.losses[0].name} {first:.4g} → {last:.4g}" if len(values) > 1 else ""
    notify(f"{line}.")
    for one in scores:
        notify(one)
    commands = "".join(f"\n  {shlex.join(words)}" for words in advice)
    notify(f"the model is in {folder}: SentenceTransformer({str(folder)!r}). Next:{commands}")
