"""TACO's model folders: T5 with the decoder's vector, one tower or two, with or without a linear head.

    tied:    the model's files, tokenizer, and with a head linear.pt and head_config.json
    untied:  query_model/ and passage_model/ (where one is missing, the folder itself stands for it), and with
             heads query_head/ and passage_head/

Source: WenzhengZhang/TACO @b4ea13e, src/taco/modeling/dense_retrieval_model.py (`save`, `build`), and
scripts/scale_t5_weights.py. Unlike it: towers or adapters of single tasks are not read.
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

# the generator's head, and a table of T5 v1.0's first decoder layer that no code has ever read
RULES = [
    (r"lm_head\.weight", None),
    (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight", None),
    (r"(.+)", r"\1"),
]
SMALLER = 100  # by which rescaling divides what the residual stream holds


def t5(published: Published, *, rescale_t5: bool = False) -> Imported:
    """Imports a folder of TACO's form, or a T5 that it may start from.

    Args:
        published: the checkpoint.
        rescale_t5: True scales the weights of a T5 v1.0, whose activations overflow float16, so that they do
            not, and it computes the same.

    Raises:
        ModelError: if the folder has another form, or it cannot be rescaled.
    """
    folder, row = published.folder, published.checkpoint
    if alone := sorted(path.name for path in folder.glob("query_*_*")):
        raise ModelError(
            f"{folder} has {', '.join(alone)}: query towers or adapters of single tasks are not read."
        )

    def side(model: str, head: str, length: int | None) -> list[Any]:
        inside = model if (folder / model).is_dir() else ""
        where = str(folder / inside)
        config = published.config(inside)
        if not isinstance(config, T5Config):
            raise ModelError(f"{where} is a {config.model_type}; expected a t5, as TACO's are.")
        whole = fill(T5Model(config), renamed(published.tensors(inside), RULES, where), where)
        if rescale_t5:
            rescale(whole)
        return tower(whole, published.tokenizer(inside), row, length, head=_head(published, head))

    if not any((folder / name).is_dir() for name in ("query_model", "passage_model")):
        modules = side("", "", row.max_tokens)
    else:
        query = side("query_model", "query_head", row.max_query_tokens)
        modules = [routed(query, side("passage_model", "passage_head", row.max_tokens))]
    return Imported(finished(modules, row), portable=False)


def _head(published: Published, inside: str) -> Any:
    """The projection behind the vector, if there is one."""
    path = published.folder / inside / "linear.pt"
    if not path.is_file():
        return None
    config = published.json(f"{inside}/head_config.json")
    sizes = [config.get(key) for key in ("input_dim", "output_dim")]
    tensors = published.tensors_in(f"{inside}/linear.pt")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"linear.weight": sizes[::-1]}:
        raise ModelError(f"{path} holds {shapes}; expected linear.weight {sizes[::-1]} (head_config.json).")
    head = Dense(*sizes, bias=False, activation_function=nn.Identity())
    head.linear.weight.data.copy_(tensors["linear.weight"])
    return head


def rescale(model: Any) -> None:
    """Divides all that a T5's residual stream holds by 100, in place; its layer norms undo it.

    Embeddings and what attention adds become a hundredth; of each feed-forward layer both matrices become a
    tenth, which a ReLU between them lets through.

    Args:
        model: a T5Model.

    Raises:
        ModelError: if it has another activation than ReLU, as T5 v1.1 has, which lets no factor through.

    Unlike scripts/scale_t5_weights.py: layer_norm_epsilon, which is added to a square, shrinks as well, so
        that vectors differ by rounding only.
    """
    config = model.config
    if config.is_gated_act or config.dense_act_fn != "relu":
        raise ModelError(
            f"rescale_t5 is for T5 v1.0, whose feed-forward layers have a ReLU; this one has "
            f"{config.feed_forward_proj}."
        )
    with torch.no_grad():
        model.shared.weight /= SMALLER
        for name, weight in model.named_parameters():
            if name.endswith("Attention.o.weight"):
                weight /= SMALLER
            elif ".DenseReluDense." in name:
                weight /= SMALLER**0.5
    config.layer_norm_epsilon /= SMALLER**2
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = config.layer_norm_epsilon
