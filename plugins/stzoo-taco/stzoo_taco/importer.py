"""Imports TACO's model folders: T5 with the decoder's vector, one tower or two, with or without a head.

    tied:    model files, tokenizer, and (with a head) linear.pt and head_config.json
    untied:  query_model/ and passage_model/ (the folder itself replaces a missing one), and (with heads)
             query_head/ and passage_head/

Source: WenzhengZhang/TACO @b4ea13e, src/taco/modeling/dense_retrieval_model.py (`save`, `build`), and
scripts/scale_t5_weights.py. Unlike it: towers or adapters of single tasks are not supported.
"""

from typing import Any

import torch
from sentence_transformers.base.modules import Dense
from torch import nn
from transformers import T5Config, T5Model

from stzoo import ModelError
from stzoo.hub.importers import Imported, finished, routed, tower
from stzoo.hub.published import Published
from stzoo.hub.weights import fill, renamed

# the head for generation, and an unused table in the first decoder layer of T5 v1.0
RULES = [
    (r"lm_head\.weight", None),
    (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight", None),
    (r"(.+)", r"\1"),
]
FACTOR = 100  # divisor of the values in the residual stream when rescaling


def t5(published: Published, *, rescale_t5: bool = False) -> Imported:
    """Imports a folder in TACO's format, or a T5 that TACO may start from.

    Args:
        published: The checkpoint.
        rescale_t5: True to rescale the weights of a T5 v1.0, so that its activations no longer overflow
            float16; its output stays the same.

    Raises:
        ModelError: If the folder has another format, or the model cannot be rescaled.
    """
    folder, checkpoint = published.folder, published.checkpoint
    if single := sorted(path.name for path in folder.glob("query_*_*")):
        raise ModelError(
            f"{folder} contains {', '.join(single)}; query towers or adapters of single tasks are not "
            "supported."
        )

    def side(name: str, head: str, length: int | None) -> list[Any]:
        subfolder = name if (folder / name).is_dir() else ""
        source = str(folder / subfolder)
        config = published.config(subfolder)
        if not isinstance(config, T5Config):
            raise ModelError(f"{source} is a model of type {config.model_type}; expected t5, as in TACO.")
        model = fill(T5Model(config), renamed(published.tensors(subfolder), RULES, source), source)
        if rescale_t5:
            rescale(model)
        return tower(model, published.tokenizer(subfolder), checkpoint, length, head=_head(published, head))

    if not any((folder / name).is_dir() for name in ("query_model", "passage_model")):
        modules = side("", "", checkpoint.max_tokens)
    else:
        query = side("query_model", "query_head", checkpoint.max_query_tokens)
        modules = [routed(query, side("passage_model", "passage_head", checkpoint.max_tokens))]
    return Imported(finished(modules, checkpoint), portable=False)


def _head(published: Published, subfolder: str) -> Any:
    """The projection of the vector, if there is one."""
    path = published.folder / subfolder / "linear.pt"
    if not path.is_file():
        return None
    config = published.json(f"{subfolder}/head_config.json")
    sizes = [config.get(key) for key in ("input_dim", "output_dim")]
    tensors = published.tensors_in(f"{subfolder}/linear.pt")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"linear.weight": sizes[::-1]}:
        raise ModelError(
            f"{path} contains {shapes}; expected linear.weight {sizes[::-1]}, as in head_config.json."
        )
    head = Dense(*sizes, bias=False, activation_function=nn.Identity())
    head.linear.weight.data.copy_(tensors["linear.weight"])
    return head


def rescale(model: Any) -> None:
    """Divides the values in a T5's residual stream by 100, in place; the layer norms undo it.

    Embeddings and the outputs of attention are divided by 100, and both matrices of each feed-forward layer
    by 10, as the ReLU between them keeps factors.

    Args:
        model: A T5Model.

    Raises:
        ModelError: If the activation is not ReLU, as in T5 v1.1; other activations do not keep factors.

    Unlike scripts/scale_t5_weights.py: layer_norm_epsilon, which is added to a square, is divided too, so
        vectors differ by rounding only.
    """
    config = model.config
    if config.is_gated_act or config.dense_act_fn != "relu":
        raise ModelError(
            "rescale_t5 works with T5 v1.0 only, whose feed-forward layers have a ReLU; this model has "
            f"{config.feed_forward_proj}. Import it without rescale_t5."
        )
    with torch.no_grad():
        model.shared.weight /= FACTOR
        for name, weight in model.named_parameters():
            if name.endswith("Attention.o.weight"):
                weight /= FACTOR
            elif ".DenseReluDense." in name:
                weight /= FACTOR**0.5
    config.layer_norm_epsilon /= FACTOR**2
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = config.layer_norm_epsilon
