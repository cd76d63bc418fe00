"""What pretrain, finetune, merge and import_checkpoint return: a folder that knows its model and record."""

from functools import cached_property
from typing import Any

from stzoo.training.history import is_shown
from stzoo.utils.inputs import read_json
from stzoo.utils.outputs import IMPORTED, RECORD
from stzoo.utils.recorded import Recorded
from stzoo.utils.tables import Tabular


class Log(list[dict[str, Any]], Tabular):
    """The log of a training, an entry for each step that was logged; printed, a table."""

    __repr__ = Tabular.__repr__

    def rows(self) -> list[dict[str, Any]]:
        """The entries, all with the same columns: None where an entry lacks one."""
        names = dict.fromkeys(name for entry in self for name in entry)
        return [{name: entry.get(name) for name in names} for entry in self]


class TrainedModel(Recorded):
    """The folder of a model. It is a Path, so it can be given wherever a path can; printed, its path.

    Example:
        >>> tuned = stzoo.finetune("runs/pre", data=rows, output="runs/tuned")   # doctest: +SKIP
        >>> tuned.scores                                                         # doctest: +SKIP
        {'dev_ndcg_at_10': 0.71, 'best_step': 150}
        >>> tuned.model.encode_query("Who grants leave?")                        # doctest: +SKIP
    """

    @cached_property
    def model(self) -> Any:
        """The SentenceTransformer, which is loaded at the first access."""
        from stzoo.models.loading import load_plain

        return load_plain(str(self))

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of run.json; empty for a model that was merged or imported."""
        return dict(read_json(self.path / RECORD))

    @property
    def scores(self) -> dict[str, float]:
        """Scores by name: on the dev queries, or the last of the probe; of an imported model, the published.

        Empty if nothing was scored.
        """
        published = read_json(self.path / IMPORTED).get("imported", {}).get("expected", [])
        scores = {f"{one['dataset']} {one['measure']}": one["value"] for one in published}
        for entry in self.record.get("log", []):
            scores |= {name: value for name, value in entry.items() if name.startswith("probe_")}
        for name, value in self.record.items():
            if name == "best_step" or "dev_" in name:
                scores |= {name: value} if isinstance(value, int | float) else {}
        return scores

    @property
    def history(self) -> Log:
        """For each logged step the losses, scores and learning rate, episode after episode."""
        episodes = [episode.get("log", []) for episode in self.record.get("episodes", [])]
        rows: list[dict[str, Any]] = []
        for log in [*episodes, self.record.get("log", [])]:
            by_step: dict[int, dict[str, Any]] = {}
            for entry in log:
                shown = {
                    name: value for name, value in entry.items() if is_shown(name) or name == "learning_rate"
                }
                by_step.setdefault(entry["step"], {"step": entry["step"]}).update(shown)
            rows += by_step.values()
        return Log(rows)

    def _repr_html_(self) -> str:
        return Log([{"path": str(self), "steps": self.record.get("steps")} | self.scores])._repr_html_()
