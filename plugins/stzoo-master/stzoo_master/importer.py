"""Imports MASTER's published weights: pre-trained models with five decoders, and fine-tuned pairs of towers.

Source: microsoft/SimXNS @0163380: MASTER/modeling.py (`save_pretrained` writes the masked LM in transformers'
format and the decoders to model.pt) and MASTER/finetune/MS/run_de_model.py (an archive of two towers' weights
and the optimizer's state; configuration and tokenizer are those of bert-base-uncased).
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from stzoo import ModelError
from stzoo.hub.importers import Imported, encoder, finished, routed, tower
from stzoo.hub.published import Published
from stzoo.hub.weights import encoder_of, plain, renamed
from stzoo.pretraining.pretrain import PARTS, PARTS_FILE
from stzoo.training.recipes import SCHEMA_VERSION
from stzoo.utils.outputs import RECORD

# names of the decoders here and in the published files
HEADS = {
    "passage": "c_head",
    "query": "query_head",
    "continuation": "gpt_head",
    "neighbour": "next_head",
    "complement": "overlap_head",
}
DECODERS = "model.pt"


def pretrained(published: Published) -> Imported:
    """Imports the encoder with its MLM head, and the decoders if there is a model.pt.

    The decoders are written to pretraining/, from where `stzoo pretrain --base` continues with them.

    Args:
        published: The checkpoint.

    Raises:
        ModelError: If there are decoders but no MLM head, or other decoders than MASTER's.
    """
    imported = encoder(published)
    if not (published.folder / DECODERS).is_file():
        return imported
    if imported.masked_lm is None:
        raise ModelError(f"{published.folder} has decoders ({DECODERS}) but no MLM head, which they need.")
    rules = [(rf"{theirs}\.(\d.*)", rf"heads.{ours}.layers.\1") for ours, theirs in HEADS.items()]
    source = str(published.folder / DECODERS)
    parts = renamed(published.tensors_in(DECODERS), rules, source)
    layers = {int(number) for name in parts for number in re.findall(r"\.layers\.(\d+)\.", name)}
    expected = {
        f"heads.{head}.layers.{layer}.{name}"
        for head in HEADS
        for layer in layers
        for name in imported.masked_lm.base_model.encoder.layer[0].state_dict()
    }
    if mismatched := sorted(expected ^ set(parts)):
        raise ModelError(
            f"{source} does not contain MASTER's decoders; missing or unexpected: "
            f"{', '.join(mismatched[:9])}."
        )
    record = {
        "schema_version": SCHEMA_VERSION,
        "recipe": {"objective": "master", "options": {"layers": len(layers)}},
    }

    def write(draft: Path) -> None:
        (draft / PARTS).mkdir()
        save_file({name: part.contiguous() for name, part in parts.items()}, draft / PARTS / PARTS_FILE)
        (draft / PARTS / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    imported.write = write
    return imported


def towers(published: Published) -> Imported:
    """Imports a tower for queries and one for passages from an archive of MASTER's fine-tuning code.

    Args:
        published: The checkpoint.

    Raises:
        ModelError: If the folder contains no such archive, or several.
    """
    folder, checkpoint = published.folder, published.checkpoint
    archives = sorted(
        path.name for path in folder.iterdir() if re.fullmatch(r"checkpoint-\d+|.+\.pkl", path.name)
    )
    if len(archives) != 1:
        raise ModelError(
            f"{folder} contains {', '.join(archives) or 'no archive'}; expected one file checkpoint-STEPS or "
            "*.pkl."
        )
    archive: Any = published.pickled(archives[0])
    source = str(folder / archives[0])
    if not isinstance(archive, dict) or "model_dict" not in archive:
        raise ModelError(
            f"{source} is not an archive of MASTER's fine-tuning code; expected a model_dict in it."
        )
    tensors = plain(archive["model_dict"], source)
    config, tokenizer = published.config(), published.tokenizer()
    sides = []
    for name, other, length in (
        ("question_model", "ctx_model", checkpoint.max_query_tokens),
        ("ctx_model", "question_model", checkpoint.max_tokens),
    ):
        rules = [(rf"{name}\.(.+\.)?position_ids", None), (rf"{name}\.(.+)", r"\1"), (rf"{other}\..+", None)]
        model = encoder_of(config, renamed(tensors, rules, source), f"{name} in {source}")
        sides.append(tower(model, tokenizer, checkpoint, length))
    return Imported(finished([routed(*sides)], checkpoint))
