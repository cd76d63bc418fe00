"""DupMAE's retrieval vector: the projected [CLS] followed by vocabulary scores of the ordinary tokens.

The vector (Xiao et al., ACL 2023, https://arxiv.org/abs/2305.02564, section 3.4) of a text is [h ; mu]:

1. h is the hidden state of [CLS], projected to 384 dimensions;
2. mu[v] is the largest MLM logit of word v of the vocabulary over the text's ordinary tokens;
3. in a document's mu, the 384 largest values are kept, and the others are set to 0.

A query q and a document d score h_q . h_d + sum over the document's words i of mu_q[i] mu_d[i]: the dot
product of their vectors. The authors did not release this part; `Unlike` lists the choices that their paper
leaves open.

The vector has some 31,000 dimensions; dupmae_search.py stores and searches documents without having many such
vectors in memory. This file is copied into model folders that are not portable, so it imports nothing of
stzoo.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentence_transformers.base.modules import Dense, Module
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.modeling_outputs import BaseModelOutput

LOGITS = 2**24  # logits computed at once: 64 MiB of float32, and no slower than with more
HUB_OPTIONS = ("token", "cache_folder", "revision", "local_files_only")  # of all that `load` is called with
SPECIAL = ("cls", "sep", "bos", "eos", "pad", "mask")  # [UNK] replaces a word, so it is an ordinary token


def dupmae(dim: int, *, projection: int = 384, top_k: int = 384, saturate: bool = False) -> "DupMAEPooling":
    """Builds the pooling, still without an MLM head; for the options see DupMAEPooling."""
    return DupMAEPooling(dim, projection=projection, top_k=top_k, saturate=saturate)


class _PrecomputedStates(nn.Module):
    """Replaces the encoder of a masked LM and returns the hidden states that it is called with."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class DupMAEPooling(Module):
    """Computes "sentence_embedding", float [B, projection + V]: the projected [CLS] and a score per word.

    The task, which encode_query, encode_document and stzoo's fine-tuning set, decides which scores are kept:
    all of a "query", and the `top_k` best of a "document". A text without a task is treated as a document.

    Args:
        dim: Width of the hidden states.
        projection: Number of dimensions that [CLS] is projected to.
        top_k: Number of words of a document that keep their score.
        saturate: True to use log(1 + max(mu, 0)) instead of mu, as in SPLADE, whose code the authors refer to
            for their lexical part (https://github.com/staoxiao/RetroMAE/issues/29); False for the paper's
            equation.
        special_ids: Ids of special tokens; set by `init_from_base`.
        masked_lm: Configuration of the masked LM that the head belongs to; set by `init_from_base`.

    Raises:
        ValueError: If projection or top_k is below 1.

    Unlike: the paper does not say
        - whether the projection has a bias: here it has none;
        - how a negative mu counts: here it is kept, in queries and, if fewer than `top_k` are positive, in
            documents;
        - which texts' mu is truncated in training: here only that of documents, as in search;
        - what the mu of a text without ordinary tokens is: here all 0.
    """

    config_keys = ["dim", "projection", "top_k", "saturate", "special_ids", "masked_lm"]
    forward_kwargs = {"task"}
    lossy = (
        "The built-in form of DupMAE's vector is the projected [CLS] alone; it lacks the word scores that "
        "the model was trained with."
    )

    def __init__(
        self,
        dim: int,
        *,
        projection: int = 384,
        top_k: int = 384,
        saturate: bool = False,
        special_ids: list[int] | None = None,
        masked_lm: dict[str, Any] | None = None,
    ):
        super().__init__()
        for name, value in (("projection", projection), ("top_k", top_k)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.dim, self.projection, self.top_k, self.saturate = dim, projection, top_k, saturate
        self.special_ids, self.masked_lm = special_ids or [], masked_lm
        self.project = nn.Linear(dim, projection, bias=False)
        self.head: Any = None
        if masked_lm is not None:  # while loading: without weights, which `load` fills in
            with torch.device("meta"):
                self._keep_head(AutoModelForMaskedLM.from_config(AutoConfig.for_model(**masked_lm)))

    def init_from_base(self, base: str, transformer: Any) -> None:
        """Takes the MLM head of a base. A head tied to the word embeddings is tied to those of the model.

        Args:
            base: Folder or Hub id of a masked LM.
            transformer: The Transformer before this pooling, loaded from the same base.

        Raises:
            ValueError: If the base has no trained MLM head.
        """
        try:
            masked_lm, report = AutoModelForMaskedLM.from_pretrained(
                base, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"it has no MLM head, which computes the word scores ({reason})") from error
        encoder_prefix = f"{masked_lm.base_model_prefix}."
        if missing := sorted(name for name in report["missing_keys"] if not name.startswith(encoder_prefix)):
            raise ValueError(
                "it has no trained MLM head, which computes the word scores (missing: "
                f"{', '.join(missing)}); pre-train one first with stzoo pretrain --objective dupmae"
            )
        names = {id(part): name for name, part in masked_lm.base_model.named_parameters()}
        self.masked_lm = json.loads(masked_lm.config.to_json_string(use_diff=False))
        self.masked_lm.pop("_name_or_path", None)  # a local path
        tokens = (getattr(transformer.tokenizer, f"{name}_token_id") for name in SPECIAL)
        self.special_ids = sorted({token for token in tokens if token is not None})
        self._keep_head(masked_lm)
        for module in masked_lm.modules():
            for name, part in list(module.named_parameters(recurse=False)):
                if id(part) in names:
                    setattr(module, name, transformer.model.get_parameter(names[id(part)]))

    def _keep_head(self, masked_lm: Any) -> None:
        setattr(masked_lm, masked_lm.base_model_prefix, _PrecomputedStates())
        self.head = masked_lm

    def forward(self, features: dict[str, Any], task: str | None = None, **_: Any) -> dict[str, Any]:
        """Adds "sentence_embedding" to the features.

        Args:
            features: "token_embeddings" float [B, T, H], "input_ids" and "attention_mask" int64 [B, T], and
                optionally "task".
            task: "query" or "document"; None for the task in the features.

        Raises:
            ValueError: If the pooling has no MLM head yet.
        """
        if self.head is None:
            raise ValueError("this pooling has no MLM head yet; call init_from_base first")
        hidden, ids, attention = self._padded(features)
        cls_states = Pooling(self.dim, "cls")({"token_embeddings": hidden, "attention_mask": attention})
        ordinary = attention.bool() & ~torch.isin(ids, torch.tensor(self.special_ids, device=ids.device))
        words = self.words(hidden, ordinary)
        if (task or features.get("task")) != "query":
            words = self.truncate(words)
        h = self.project(cls_states["sentence_embedding"])
        features["sentence_embedding"] = torch.cat([h, words.to(h.dtype)], dim=1)
        return features

    @staticmethod
    def _padded(features: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states float [B, T, H], ids and attention int64 [B, T]; packed sequences are padded."""
        hidden, ids = features["token_embeddings"], features["input_ids"]
        if "cu_seq_lens_q" not in features:
            return hidden, ids, features["attention_mask"]
        lengths = features["cu_seq_lens_q"].diff().tolist()
        rows = (hidden[0].split(lengths), ids[0].split(lengths), torch.ones_like(ids[0]).split(lengths))
        hidden, ids, attention = (pad_sequence(list(row), batch_first=True) for row in rows)
        return hidden, ids, attention

    def words(self, hidden: Tensor, ordinary: Tensor) -> Tensor:
        """Computes mu, the largest logit of each word.

        The head runs over a few positions at a time, and only the largest logits are kept, so float [B, T, V]
        is never in memory, not even for the gradient.

        Args:
            hidden: float [B, T, H], the hidden states.
            ordinary: bool [B, T], True where there is an ordinary token.

        Returns:
            float [B, V].
        """
        step = max(1, LOGITS // (len(hidden) * self.head.config.vocab_size))
        best: Tensor | None = None
        for start in range(0, hidden.shape[1], step):
            positions = slice(start, start + step)
            logits = self.head(inputs_embeds=hidden[:, positions]).logits
            logits.masked_fill_(~ordinary[:, positions, None], torch.finfo(logits.dtype).min)
            maximum = logits.max(1).values
            best = maximum if best is None else torch.maximum(best, maximum)
        assert best is not None
        best = best.masked_fill(~ordinary.any(1, keepdim=True), 0)
        return best.relu().log1p() if self.saturate else best

    def truncate(self, words: Tensor) -> Tensor:
        """Keeps the `top_k` largest values of each row and sets the others to 0: float [B, V]."""
        top = words.topk(min(self.top_k, words.shape[1]), dim=1, sorted=False)
        return torch.zeros_like(words).scatter(1, top.indices, top.values)

    def to_builtin_modules(self) -> list[Module]:
        """The dense variant, the projected [CLS]; `lossy` describes what it leaves out."""
        dense = Dense(
            self.dim,
            self.projection,
            bias=False,
            activation_function=nn.Identity(),
            init_weight=self.project.weight.detach().clone(),
        )
        return [Pooling(self.dim, "cls"), dense]

    def get_embedding_dimension(self) -> int:
        """The dimension of the vector: projection plus vocabulary size (0 until there is a head)."""
        words: int = 0 if self.head is None else self.head.config.vocab_size
        return self.projection + words

    def __repr__(self) -> str:
        return f"DupMAEPooling(dim={self.dim}, projection={self.projection}, top_k={self.top_k})"

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Writes configuration and weights, and copies this file into the model's folder for loading.

        A tied head is stored as a copy, and is no longer tied when it is loaded.
        """
        self.save_config(output_path)
        tensors = {name: part.detach().clone().contiguous() for name, part in self.state_dict().items()}
        save_file(tensors, Path(output_path) / "model.safetensors")
        shutil.copyfile(__file__, Path(output_path).parent / Path(__file__).name)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> "DupMAEPooling":
        """Loads a pooling that `save` wrote, from a folder or the Hub."""
        hub: dict[str, Any] = {name: options[name] for name in HUB_OPTIONS if name in options}
        hub["subfolder"] = subfolder
        pooling = cls(**cls.load_config(model_name_or_path, **hub))
        pooling.load_state_dict(cls.load_torch_weights(model_name_or_path, **hub), assign=True)
        return pooling
