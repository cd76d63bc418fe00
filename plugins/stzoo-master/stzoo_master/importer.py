"""MASTER's published weights: the pre-trained ones with their five decoders, and fine-tuned pairs of towers.

Source: microsoft/SimXNS @0163380: MASTER/modeling.py (`save_pretrained`: the masked LM as transformers has
it, the decoders in model.pt) and MASTER/finetune/MS/run_de_model.py (an archive of two towers' weights with
the optimiser's state, without configuration and tokenizer, which are those of bert-base-uncased).
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
from stzoo.training.settings import SCHEMA_VERSION
from stzoo.utils.outputs import RECORD

# our decoders, and what theirs are called
HEADS = {
    "passage": "c_head",
    "query": "query_head",
    "continuation": "gpt_head",
    "neighbour": "next_head",
    "complement": "overlap_head",
}
DECODERS = "model.pt"


def pretrained(published: Published) -> Imported:
    """Imports the encoder with its MLM head, and the decoders where model.pt has them.

    The decoders lie in pretraining/, so that `stzoo pretrain --base` goes on with them.
    """
    imported = encoder(published)
    if not (published.folder / DECODERS).is_file():
        return imported
    if imported.masked_lm is None:
        raise ModelError(f"{published.folder} has decoders ({DECODERS}), but no MLM head, which they need.")
    rules = [(rf"{theirs}\.(\d.*)", rf"heads.{ours}.layers.\1") for ours, theirs in HEADS.items()]
    where = str(published.folder / DECODERS)
    parts = renamed(published.tensors_in(DECODERS), rules, where)
    layers = {int(number) for name in parts for number in re.findall(r"\.layers\.(\d+)\.", name)}
    expected = {
        f"heads.{head}.layers.{layer}.{name}"
        for head in HEADS
        for layer in layers
        for name in imported.masked_lm.base_model.encoder.layer[0].state_dict()
    }
    if lacking := sorted(expected ^ set(parts)):
        raise ModelError(
            f"{where} has other decoders than MASTER's: missing or unexpected {', '.join(lacking[:9])}."
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
    """Imports a tower for queries and one for passages from the archive that fine-tuning leaves.

    Raises:
        ModelError: if the folder holds no such archive, or several.
    """
    folder, row = published.folder, published.checkpoint
    found = sorted(
        path.name for path in folder.iterdir() if re.fullmatch(r"checkpoint-\d+|.+\.pkl", path.name)
    )
    if len(found) != 1:
        raise ModelError(
            f"{folder} holds {', '.join(found) or 'no archive'}; expected one file checkpoint-STEPS or *.pkl."
        )
    archive: Any = published.pickled(found[0])
    where = str(folder / found[0])
    if not isinstance(archive, dict) or "model_dict" not in archive:
        raise ModelError(f"{where} is no archive of MASTER's fine-tuning; expected a model_dict in it.")
    tensors = plain(archive["model_dict"], where)
    config, tokenizer = published.config(), published.tokenizer()
    sides = []
    for name, other, length in (
        ("question_model", "ctx_model", row.max_query_tokens),
        ("ctx_model", "question_model", row.max_tokens),
    ):
        rules = [(rf"{name}\.(.+\.)?position_ids", None), (rf"{name}\.(.+)", r"\1"), (rf"{other}\..+", None)]
        model = encoder_of(config, renamed(tensors, rules, where), f"{name} in {where}")
        sides.append(tower(model, tokenizer, row, length))
    return Imported(finished([routed(*sides)], row))
