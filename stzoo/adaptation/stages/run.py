"""What the stages share: a run's settings, folder and model."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.adaptation.settings import AdaptSettings
from stzoo.evaluation.adapt_record import CORPUS, QUESTIONS, SETTINGS
from stzoo.models.cross_encoder import Teacher
from stzoo.models.loaded import LoadedModel
from stzoo.retrieval.search.retriever import Retriever
from stzoo.utils.parts import open_manifest

TEACHER = "teacher"  # folder of the run
FEWEST = 200  # questions below which nothing can be learnt


@dataclass(frozen=True)
class Run:
    """What the stages share.

    Attributes:
        config: The settings.
        folder: Folder of the run.
        base: The model to adapt.
        retriever: The same model with the store of its vectors.
        teacher: The cross-encoder that rates candidates, if there is one.
        progress: True for progress bars on stderr.
    """

    config: AdaptSettings
    folder: Path
    base: LoadedModel
    retriever: Retriever
    teacher: Teacher | None
    progress: bool

    @property
    def encoding(self) -> dict[str, Any]:
        """Arguments of `encode`."""
        return dict(batch_tokens=self.config.batch_tokens, progress=self.progress)

    def settings(self, without: Collection[str]) -> dict[str, Any]:
        """The settings, less some."""
        return {name: value for name, value in self.config.dump().items() if name not in without}

    def forget_settings(self) -> None:
        """Removes the settings if no query has been asked, so that wrong ones can be corrected."""
        if not any((self.folder / QUESTIONS).rglob("*")):
            (self.folder / SETTINGS).unlink(missing_ok=True)

    def manifest(self, without: Collection[str]) -> dict[str, Any]:
        """Opens the manifest of the folder, in which all settings but those in `without` must be the same.

        Raises:
            OutputError: If they are not, or the model is another one.
        """
        return open_manifest(
            self.folder / SETTINGS,
            {
                "model": self.base.given,
                "revision": self.base.revision,
                "settings": self.settings(without),
            },
            may_have=(CORPUS,),  # of a call with a mistake in its settings; the documents are compared
        )
