"""merge(): a model soup, the average of several models' weights, which costs no more to serve than one model.

It averages finished models of one architecture (runs with different seeds or settings), or the checkpoints of
a run. Weights are read from safetensors one tensor at a time, so that only the result is in memory, no matter
how many models are merged.

sources.py        finds the models and checkpoints to merge
compatibility.py  loads their models and checks that they can be merged
weights.py        reads their weights

Source: Wortsman et al. 2022, arXiv 2203.05482, section 2 (the uniform soup). Unlike it:
- weights other than uniform ones can be given; there is no (greedy) selection of models
- checkpoints of one run can be merged, as in Izmailov et al. 2018, arXiv 1803.05407, section 3
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stzoo.errors import ModelError, RecipeError
from stzoo.hub.export import export
from stzoo.hub.merge.compatibility import check_same, kind_of, load, tensors
from stzoo.hub.merge.sources import Source, find
from stzoo.hub.merge.weights import Stored
from stzoo.hub.settings import MergeSettings
from stzoo.training.recipes import SCHEMA_VERSION
from stzoo.training.records import versions
from stzoo.training.trained import TrainedModel
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import write_json
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import show_progress
from stzoo.utils.outputs import MERGED, check_model_output
from stzoo.utils.progress import progress_bar
from stzoo.utils.public import public


@public()
def merge(
    sources: Any,
    *,
    output: str | Path,
    weights: Sequence[float] | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> TrainedModel:
    """Averages the weights of models of one architecture, and exports the result.

    The MLM heads of pre-trained models are averaged too; their decoders are left out. The folder also gets
    merge.json, a record of the merged models.

    Args:
        sources: Model folders, checkpoints of finished runs (RUN/checkpoints/checkpoint-N), or a single run,
            whose saved checkpoints are all merged. Among several sources, a run stands for its final model.
            Or SentenceTransformer objects.
        output: Folder to write.
        weights: One weight above 0 for each model; they are divided by their sum. None weighs all the same.
        overwrite: True replaces a model folder at `output`.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        The folder, a Path with `.model`, which plain `SentenceTransformer(...)` loads.

    Raises:
        ExportError: If the model has no portable form.
        ModelError: If a source is not a model, is incomplete or pickled, or cannot be merged with the first.
        OutputError: If `output` exists already, or it contains a source or is inside one.
        RecipeError: If there are no sources, or the weights do not match the sources.
    """
    require_one_process("merge")
    settings = MergeSettings.check(locals())
    models = find(settings.sources)
    shares = normalised(settings.weights, models)
    output = check_model_output(output, overwrite, [*settings.sources, *(source.folder for source in models)])
    with silence_hf_logging():
        model, masked_lm = average(models, shares, progress)
    merged = [
        {"source": source.name, "weight": share, "revision": source.revision}
        for source, share in zip(models, shares, strict=True)
    ]
    record = {"schema_version": SCHEMA_VERSION, "merged": merged, "versions": versions()}
    export(
        model,
        output,
        masked_lm=masked_lm,
        extra=lambda draft: write_json(draft / MERGED, record),
        overwrite=overwrite,
    )
    return TrainedModel(output)


def normalised(weights: Sequence[float] | None, sources: Sequence[Source]) -> list[float]:
    """The weights divided by their sum; equal ones for None.

    Raises:
        RecipeError: If there is not one weight for each source, or one is too small.
    """
    weights = [1.0] * len(sources) if weights is None else weights
    if len(weights) != len(sources):
        names = ", ".join(source.name for source in sources)
        raise RecipeError(
            f"the number of weights is {len(weights)}; expected {len(sources)}, one for each of {names}."
        )
    largest = max(weights)  # divides them first, as their sum may overflow
    shares = [weight / largest for weight in weights]
    if 0.0 in shares:
        raise RecipeError(
            f"the weight {weights[shares.index(0.0)]:g} is too small next to {largest:g}; leave that model "
            "out."
        )
    total = math.fsum(shares)
    return [share / total for share in shares]


def average(
    sources: Sequence[Source], shares: Sequence[float], progress: bool | None = None
) -> tuple[Any, Any]:
    """The model whose every weight is the mean over the sources, summed in float64.

    Args:
        sources: Models to average. Each is loaded once to compare it with the first, and then dropped.
        shares: Weight of each model; they sum to 1.
        progress: True for a progress bar on stderr; None shows it on a terminal only.

    Returns:
        A SentenceTransformer, and its masked LM, or None if the sources have no MLM head.

    Raises:
        ModelError: If a source cannot be merged with the first, or its weights do not fit its model.
    """
    first = sources[0]
    others = {source.folder: source for source in sources if source.folder != first.folder}
    kinds = [(source.name, kind_of(*load(source.folder))) for source in others.values()]
    model, masked_lm = load(first.folder)  # loaded last, so that two models are never in memory
    expected = kind_of(model, masked_lm)
    for name, kind in kinds:
        check_same(first.name, expected, name, kind)
    targets = tensors(model, masked_lm)
    with contextlib.ExitStack() as stack, torch.no_grad():
        inner = "" if masked_lm is None else f"{masked_lm.base_model_prefix}."
        stored = [Stored(source, targets, inner, stack) for source in sources]
        hidden = not show_progress(progress)
        for name, target in progress_bar(targets.items(), desc="merge", delay=2, leave=False, disable=hidden):
            target.copy_(_mean(name, stored, shares))
    return model.eval(), masked_lm


def _mean(name: str, stored: Sequence[Stored], shares: Sequence[float]) -> Tensor:
    first, *others = stored
    tensor = first.read(name)
    if not tensor.is_floating_point():
        for other in others:
            if not torch.equal(tensor, other.read(name)):
                raise ModelError(
                    f"{other.name} and {first.name} cannot be merged: {name} has different whole numbers, "
                    "which cannot be averaged."
                )
        return tensor
    mean = tensor.double() * shares[0]
    for other, share in zip(others, shares[1:], strict=True):
        mean += other.read(name).double() * share
    if not mean.isfinite().all():
        raise ModelError(
            f"{name} has NaN or infinity in a source, as after diverged training; leave that source out."
        )
    return mean
