"""TACO's vector: the hidden state of T5's decoder at its first token.

1. T5's encoder reads the text.
2. Its decoder reads the pad token, with which generation begins, and attends to the encoder's hidden states.
3. The vector is the decoder's hidden state at that token, without projection or normalisation.

Source: WenzhengZhang/TACO @b4ea13e, src/taco/modeling/dense_retrieval_model.py, which compares vectors by dot
product and has one model for queries and passages.
Unlike it: the decoder has a copy of that one word embedding, which is trained separately.

sentence-transformers has no such module, so there is no portable form. This file is copied into the model's
folder and imports nothing of stzoo.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentence_transformers.base.modules import Module
from torch import Tensor, nn
from transformers import AutoConfig, T5Config, T5Model
from transformers.models.t5.modeling_t5 import T5Stack

HUB_OPTIONS = ("token", "cache_folder", "revision", "local_files_only")  # of all that `load` is called with


def t5_decoder(dim: int) -> "T5Decoder":
    """Builds the pooling, still without a decoder."""
    return T5Decoder(dim)


class T5Decoder(Module):
    """Computes "sentence_embedding", float [B, D]: the decoder's hidden state at its first token.

    Args:
        dim: D, the width of the hidden states.
        t5: Configuration of the T5 that the decoder belongs to; set by `init_from_base`.
    """

    config_keys = ["dim", "t5"]

    def __init__(self, dim: int, *, t5: dict[str, Any] | None = None):
        super().__init__()
        self.dim, self.t5 = dim, t5
        self.decoder: Any = None
        if t5 is not None:
            self._build(T5Config(**t5))

    def _build(self, config: Any) -> None:
        config.is_decoder, config.use_cache = True, False
        config.num_layers = config.num_decoder_layers
        self.decoder = T5Stack(config)
        self.decoder.embed_tokens = nn.Embedding(1, config.d_model)  # of its first token only

    def init_from_base(self, base: str, transformer: Any) -> None:  # noqa: ARG002 - the encoder stays as it is
        """Takes the decoder of a T5.

        Args:
            base: Folder or Hub id of a T5.
            transformer: The Transformer before this pooling, with the encoder of the base.

        Raises:
            ValueError: If the base is not a T5, or has no decoder.
        """
        try:
            config = AutoConfig.from_pretrained(base)
            if not isinstance(config, T5Config):
                raise ValueError(
                    f"its type is {config.model_type}; expected t5, whose decoder computes the vector"
                )
            model, report = T5Model.from_pretrained(base, dtype=torch.float32, output_loading_info=True)
        except (OSError, KeyError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"it cannot be loaded as a T5 ({reason})") from error
        if missing := sorted(name for name in report["missing_keys"] if name.startswith("decoder.")):
            raise ValueError(
                f"it has no decoder, which computes the vector (missing: {', '.join(missing[:3])}, …)"
            )
        embedding = model.shared.weight[model.config.decoder_start_token_id].detach()[None].clone()
        self.t5 = json.loads(model.config.to_json_string(use_diff=False))
        self.t5.pop("_name_or_path", None)  # a local path
        self._build(T5Config(**self.t5))
        self.decoder.load_state_dict(model.decoder.state_dict() | {"embed_tokens.weight": embedding})

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds "sentence_embedding" to the features.

        Args:
            features: "token_embeddings" float [B, T, D] and "attention_mask" int64 [B, T].

        Raises:
            ValueError: If the pooling has no decoder yet.
        """
        if self.decoder is None:
            raise ValueError("this pooling has no decoder yet; call init_from_base first")
        hidden: Tensor = features["token_embeddings"]
        output = self.decoder(
            input_ids=torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device),
            encoder_hidden_states=hidden,
            encoder_attention_mask=features["attention_mask"],
        )
        features["sentence_embedding"] = output.last_hidden_state[:, 0]
        return features

    def to_builtin_modules(self) -> None:
        """Returns None, as sentence-transformers has no such module."""
        return

    def get_embedding_dimension(self) -> int:
        """The dimension D of the vector."""
        return self.dim

    def __repr__(self) -> str:
        return f"T5Decoder(dim={self.dim})"

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Writes configuration and weights, and copies this file into the model's folder for loading."""
        self.save_config(output_path)
        tensors = {name: part.detach().clone().contiguous() for name, part in self.state_dict().items()}
        save_file(tensors, Path(output_path) / "model.safetensors")
        shutil.copyfile(__file__, Path(output_path).parent / Path(__file__).name)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> "T5Decoder":
        """Loads a pooling that `save` wrote, from a folder or the Hub."""
        hub: dict[str, Any] = {name: options[name] for name in HUB_OPTIONS if name in options}
        hub["subfolder"] = subfolder
        pooling = cls(**cls.load_config(model_name_or_path, **hub))
        pooling.load_state_dict(cls.load_torch_weights(model_name_or_path, **hub))
        return pooling
