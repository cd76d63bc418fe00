"""Settings of rerank."""

from typing import ClassVar

from stzoo.training.finetune_settings import COLUMNS_HELP, Columns, FinetuneSettings
from stzoo.training.settings import DATA, EVALUATION, NEGATIVES, OPTIMISER, Name, Training, setting


class RerankSettings(Training):
    """Settings of `stzoo rerank`."""

    command: ClassVar[str] = "rerank"
    positional: ClassVar[tuple[str, ...]] = ("data",)

    data: Name = setting(..., "Training data with negatives: a file, such as a mined one.")
    base: Name = setting(
        ..., "Encoder or cross-encoder to start from: folder, Hub id or name from `stzoo zoo`.", names="model"
    )
    split: str = setting("train", "Split of a BEIR folder to train on.", DATA)
    corpus: Name | None = setting(None, "Passages that the data refers to by id.", DATA)
    columns: Columns = setting(None, COLUMNS_HELP, DATA)
    max_queries: int | None = setting(
        None, "Train on at most this many queries, drawn at random.", DATA, ge=1
    )
    max_tokens: int = setting(
        256, "Truncate each query and passage together to this many tokens.", DATA, ge=4
    )
    negatives: int = setting(4, "Hard negatives per positive.", NEGATIVES, ge=1)
    dev_data: Name | None = setting(None, "BEIR folder for early stopping; --data by default.", EVALUATION)
    dev_split: str | None = setting(
        None, "Split for early stopping; part of the training queries by default.", EVALUATION
    )
    dev_queries: int = setting(
        200,
        "Training queries to hold out if there is no --dev-split; 0 turns early stopping off.",
        EVALUATION,
        ge=0,
    )
    dev_depth: int = setting(100, "Passages per dev query to rank again.", EVALUATION, ge=1, le=10**5)
    retriever: Name = setting(
        "bm25s", "What ranks the dev passages first: a model, or bm25s.", EVALUATION, names="model"
    )
    batch_size: int = setting(
        32, "Pairs of a query and a passage per step on each device.", OPTIMISER, ge=1, le=2**20
    )
    learning_rate: float = setting(2e-5, "Peak learning rate of AdamW.", OPTIMISER, gt=0)
    eval_steps: int = setting(100, "Steps between evaluations on the dev queries.", EVALUATION, ge=1)
    patience: int = setting(
        3, "Stop training after this many evaluations without improvement.", EVALUATION, ge=1
    )

    def for_data(self) -> FinetuneSettings:
        """The settings by which fine-tuning reads the same data."""
        names = ("data", "split", "corpus", "columns", "max_queries", "dev_data", "dev_split", "dev_queries")
        given = {name: getattr(self, name) for name in names}
        return FinetuneSettings(model=self.base, seed=self.seed, dev_passages=0, **given)
