"""Run in two processes for test_length_sampler: how two processes train on batches of a number of tokens."""

import json
import sys
from pathlib import Path

from torch import distributed as dist

from stzoo.errors import RecipeError
from stzoo.pretraining.pretrain import make_trainer, set_up
from stzoo.training.pretrain_settings import PretrainSettings

base, output = Path(sys.argv[1]), Path(sys.argv[2])
found = {}
for corpus in sorted(output.glob("*.jsonl")):
    given = {"base": str(base), "corpus": [str(corpus)], "batch_tokens": 56, "epochs": 2, "device": "cpu"}
    config = PretrainSettings.read(None, given | {"precision": "fp32", "min_words": 1})
    setup = set_up(config)
    trainer = make_trainer(config, setup, output / corpus.stem, lambda _: None)
    shapes, collate = [], trainer.data_collator.function

    def noted(rows, shapes=shapes, collate=collate):
        batch = collate(rows)
        shapes.append(list(batch["passage_input_ids"].shape))
        return batch

    trainer.data_collator.function = noted
    try:
        trainer.train_or_resume(None)
        error = ""
    except RecipeError as refused:
        error = str(refused)
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, {"steps": trainer.state.global_step, "shapes": shapes, "error": error})
    found[corpus.stem] = every
if dist.get_rank() == 0:
    (output / "found.json").write_text(json.dumps(found))
dist.destroy_process_group()
