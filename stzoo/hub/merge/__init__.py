"""merge(): a model soup, the average of several models' weights, which costs no more to serve than one.

Averaged are finished models of one architecture (runs with other seeds or settings), or checkpoints of a
run. Weights are read from safetensors one tensor at a time, so that beside the result no second model is in
memory, however many there are.

sources.py   what a source is: a model folder, or a checkpoint of a run
kinds.py     loading a source's model, and what must be the same in all
stored.py    reading its weights

Source: Wortsman et al. 2022, arXiv 2203.05482, section 2 (the uniform soup). Unlike it:
- other weights than uniform ones can be given; nothing chooses (greedily) what goes into the soup
- checkpoints of one run count as models, as in Izmailov et al. 2018, arXiv 1803.05407, section 3
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from stzoo.errors import ModelError, RecipeError
from stzoo.hub.export import check_model_output, export
from stzoo.hub.merge.compatibility import check_same, kind_of, load, tensors
from stzoo.hub.merge.sources import Source, find
from stzoo.hub.merge.weights import Stored
from stzoo.training.runs import versions
from stzoo.training.settings import SCHEMA_VERSION
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import write_json
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.outputs import MERGED


def merge(
    sources: Sequence[str | Path],
    *,
    output: str | Path,
    weights: Sequence[float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Averages the weights of models of one architecture, and exports the result.

    The MLM head of pre-trained models is averaged, too; their decoders are left out. Beside the model lies
    merge.json, which says what was merged.

    Args:
        sources: model folders, checkpoints of finished runs (RUN/checkpoints/checkpoint-N), or one run alone,
            of which all kept checkpoints are taken. Among several sources a run is its finished model.
        output: the folder to write.
        weights: one for each model, above 0; they are divided by their sum. All the same if None.
        overwrite: True replaces a model folder at `output`.

    Returns:
        `output`, which plain `SentenceTransformer(...)` loads.

    Raises:
        ExportError: if the model has no portable form.
        ModelError: if a source is no model, is not whole, is pickled, or is of another kind than the first.
        OutputError: if `output` is there, or it and a source lie in each other.
        RecipeError: if there is no source, or the weights do not go with the sources.
    """
    require_one_process("merge")
    found = find(sources)
    shares = normalised(weights, found)
    output = check_model_output(output, overwrite, [*sources, *(source.folder for source in found)])
    with silence_hf_logging():
        model, masked_lm = average(found, shares)
    merged = [
        {"source": source.name, "weight": share, "revision": source.revision}
        for source, share in zip(found, shares, strict=True)
    ]
    facts = {"schema_version": SCHEMA_VERSION, "merged": merged, "versions": versions()}
    return export(
        model,
        output,
        masked_lm=masked_lm,
        extra=lambda draft: write_json(draft / MERGED, facts),
        overwrite=overwrite,
    )


def normalised(weights: Sequence[float] | None, sources: Sequence[Source]) -> list[float]:
    """The weights divided by their sum; equal ones for None.

    Raises:
        RecipeError: if they are not one for each source, or not above 0.
    """
    weights = [1.0] * len(sources) if weights is None else weights
    if len(weights) != len(sources):
        names = ", ".join(source.name for source in sources)
        raise RecipeError(
            f"the number of weights is {len(weights)}; expected {len(sources)}, one for each of {names}."
        )
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise RecipeError(f"the weight {weight:g} is not above 0; leave out what shall not be merged.")
    largest = max(weights)  # by which they are divided first, as their sum may be too large for a float
    shares = [weight / largest for weight in weights]
    if 0.0 in shares:
        raise RecipeError(
            f"the weight {weights[shares.index(0.0)]:g} is nothing next to {largest:g}; leave that model out."
        )
    total = math.fsum(shares)
    return [share / total for share in shares]


def average(sources: Sequence[Source], shares: Sequence[float]) -> tuple[Any, Any]:
    """The model whose every weight is the mean over the sources, summed in float64.

    Args:
        sources: the model of each is loaded once, to be compared with the first, and dropped.
        shares: of each, summing to 1.

    Returns:
        a SentenceTransformer, and its masked LM, or None if the sources have no MLM head.

    Raises:
        ModelError: if a source is of another kind than the first, or its weights are not those of its model.
    """
    first = sources[0]
    others = {source.folder: source for source in sources if source.folder != first.folder}
    kinds = [(source.name, kind_of(*load(source.folder))) for source in others.values()]
    model, masked_lm = load(first.folder)  # the last one, so that never two are in memory
    expected = kind_of(model, masked_lm)
    for name, kind in kinds:
        check_same(first.name, expected, name, kind)
    targets = tensors(model, masked_lm)
    with contextlib.ExitStack() as stack, torch.no_grad():
        inner = "" if masked_lm is None else f"{masked_lm.base_model_prefix}."
        stored = [Stored(source, targets, inner, stack) for source in sources]
        for name, target in tqdm(targets.items(), desc="merge", delay=2, leave=False, disable=None):
            target.copy_(_mean(name, stored, shares))
    return model.eval(), masked_lm


def _mean(name: str, stored: Sequence[Stored], shares: Sequence[float]) -> Tensor:
    first, *others = stored
    tensor = first.read(name)
    if not tensor.is_floating_point():
        for other in others:
            if not torch.equal(tensor, other.read(name)):
                raise ModelError(
                    f"{other.name} and {first.name} cannot be merged: {name} holds whole numbers, which have "
                    "no mean, and they differ."
                )
        return tensor
    mean = tensor.double() * shares[0]
    for other, share in zip(others, shares[1:], strict=True):
        mean += other.read(name).double() * share
    if not mean.isfinite().all():
        raise ModelError(f"{name} holds NaN or infinity in a source, as after a training that diverged.")
    return mean
