"""Settings of rerank."""

from typing import ClassVar

from stzoo.training.settings import DATA, EVALUATION, NEGATIVES, OPTIMISER, Name, setting
from stzoo.training.supervised_settings import SupervisedTraining


class RerankSettings(SupervisedTraining):
    """Settings of `stzoo rerank`."""

    command: ClassVar[str] = "rerank"
    positional: ClassVar[tuple[str, ...]] = ("data",)

    data: Name = setting(
        ..., "Training data with negatives: a file, such as a mined one.", names="data", takes="training"
    )
    base: Name = setting(
        ...,
        "Encoder or cross-encoder to start from: folder, Hub id or name from `stzoo zoo`.",
        names="model",
        takes="base",
    )
    max_tokens: int = setting(
        256, "Truncate each query and passage together to this many tokens.", DATA, ge=4
    )
    negatives: int = setting(4, "Hard negatives per positive.", NEGATIVES, ge=1)
    dev_depth: int = setting(100, "Passages per dev query to rank again.", EVALUATION, ge=1, le=10**5)
    retriever: Name = setting(
        "bm25s",
        "What ranks the dev passages first: a model, or bm25s.",
        EVALUATION,
        names="model",
        takes="model",
    )
    batch_size: int = setting(
        32, "Pairs of a query and a passage per step on each device.", OPTIMISER, ge=1, le=2**20
    )
    eval_steps: int = setting(100, "Steps between evaluations on the dev queries.", EVALUATION, ge=1)
