"""What the settings of finetune and rerank share: data to train on, and dev queries for early stopping."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator

from stzoo.data.column_roles import COLUMN_ROLES, IGNORE, parse_columns
from stzoo.training.settings import DATA, EVALUATION, OPTIMISER, Name, Training, setting

Columns = Annotated[dict[str, list[str]] | None, BeforeValidator(lambda given: parse_columns(given) or None)]
COLUMNS_HELP = (
    "Roles of a training file's columns whose names do not show them, as in query=question,positive=passage. "
    f"Roles: {', '.join(COLUMN_ROLES)}, {IGNORE}."
)


class SupervisedTraining(Training):
    """Training on queries with known answers."""

    data: Name = setting(
        ..., "Training data: a data set (its name or BEIR folder) or a file.", names="data", takes="training"
    )
    split: str = setting("train", "Split of a data set to train on.", DATA)
    corpus: Name | None = setting(
        None, "Passages that the data refers to by id.", DATA, names="data", takes="corpus"
    )
    columns: Columns = setting(None, COLUMNS_HELP, DATA)
    max_queries: int | None = setting(
        None, "Train on at most this many queries, drawn at random.", DATA, ge=1
    )
    dev_data: Name | None = setting(
        None,
        "Data set (its name or BEIR folder) for early stopping; --data by default.",
        EVALUATION,
        names="data",
        takes="judged",
        split="dev",
    )
    dev_split: str | None = setting(
        None, "Split for early stopping; part of the training queries by default.", EVALUATION
    )
    dev_queries: int = setting(
        200,
        "Training queries to hold out if there is no --dev-split; 0 turns early stopping off.",
        EVALUATION,
        ge=0,
    )
    eval_steps: int = setting(50, "Steps between evaluations on the dev queries.", EVALUATION, ge=1)
    patience: int = setting(
        3, "Stop training after this many evaluations without improvement.", EVALUATION, ge=1
    )
    learning_rate: float = setting(2e-5, "Peak learning rate of AdamW.", OPTIMISER, gt=0)

    def each(self) -> Mapping[str, Self]:
        """The settings of each task by its name; of a single one under ''."""
        return {"": self}
