"""The hooks of stzoo-retromae: three objectives, a pooling, the authors' checkpoints, and recipes.

The entry point names this module. It does not import torch, so `stzoo list` stays fast; objectives and
pooling are named as strings and imported when they are used.
"""

from collections.abc import Iterable

import stzoo
from stzoo import Checkpoint, Component, Recipe

RETROMAE = "https://arxiv.org/abs/2205.12035"
DUPMAE = "https://arxiv.org/abs/2305.02564"
CODE = "https://github.com/staoxiao/RetroMAE"
CITE_RETROMAE = """\
@inproceedings{xiao-etal-2022-retromae,
  title = {{R}etro{MAE}: Pre-Training Retrieval-oriented Language Models Via Masked Auto-Encoder},
  author = {Xiao, Shitao and Liu, Zheng and Shao, Yingxia and Cao, Zhao},
  booktitle = {Proceedings of the 2022 Conference on Empirical Methods in Natural Language Processing},
  year = {2022},
  pages = {538--548},
  doi = {10.18653/v1/2022.emnlp-main.35},
  url = {https://arxiv.org/abs/2205.12035}
}"""
CITE_DUPMAE = """\
@inproceedings{liu-etal-2023-retromae,
  title = {{R}etro{MAE}-2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-Oriented Language Models},
  author = {Liu, Zheng and Xiao, Shitao and Shao, Yingxia and Cao, Zhao},
  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics},
  year = {2023},
  pages = {2635--2648},
  doi = {10.18653/v1/2023.acl-long.148},
  url = {https://arxiv.org/abs/2305.02564}
}"""


@stzoo.hookimpl
def stzoo_objectives() -> Iterable[Component]:
    """RetroMAE with enhanced and with basic decoding, and DupMAE."""
    retromae = dict(source=RETROMAE, citation=CITE_RETROMAE)
    yield Component(
        name="retromae",
        build="stzoo_retromae.retromae:RetroMAE",
        summary="predict every token from the bottleneck and a context of its own",
        **retromae,
    )
    yield Component(
        name="retromae-basic",
        build="stzoo_retromae.retromae:RetroMAEBasic",
        summary="predict masked tokens from the bottleneck and the remaining tokens",
        **retromae,
    )
    yield Component(
        name="dupmae",
        build="stzoo_retromae.dupmae:DupMAE",
        summary="RetroMAE, and predict the passage's words from its tokens' vocabulary scores",
        source=DUPMAE,
        citation=CITE_DUPMAE,
    )


@stzoo.hookimpl
def stzoo_poolings() -> Iterable[Component]:
    """DupMAE's retrieval vector."""
    yield Component(
        name="dupmae",
        build="stzoo_retromae.dupmae_pooling:dupmae",
        summary="the projected [CLS] followed by the vocabulary scores of the tokens",
        source=DUPMAE,
        citation=CITE_DUPMAE,
    )


@stzoo.hookimpl
def stzoo_checkpoints() -> Iterable[Checkpoint]:
    """The authors' checkpoints; they state no licence for the weights.

    Lengths are taken from examples/ in their repository, scores from its README. All but the checkpoint for
    BEIR read passages of MS MARCO as TITLE[SEP]TEXT.
    """
    readme = f"{CODE}/blob/master/README.md"
    for name, hub_id, recipe, lengths, summary, expected in (
        ("wikibook", "", "pretrain", (512, None), "pre-trained on Wikipedia and BookCorpus", ()),
        (
            "msmarco",
            "_MSMARCO",
            "pretrain-msmarco",
            (150, None),
            "pre-trained further on MS MARCO passages",
            (),
        ),
        (
            "msmarco-finetune",
            "_MSMARCO_finetune",
            "finetune-msmarco-mined",
            (140, 32),
            "fine-tuned on MS MARCO",
            (("msmarco", "MRR@10", 0.393, readme), ("msmarco", "Recall@1000", 0.985, readme)),
        ),
        (
            "msmarco-distill",
            "_MSMARCO_distill",
            "finetune-msmarco-distill",
            (140, 32),
            "fine-tuned on MS MARCO by distillation",
            (("msmarco", "MRR@10", 0.416, readme), ("msmarco", "Recall@1000", 0.988, readme)),
        ),
        (
            "beir",
            "_BEIR",
            "finetune-beir",
            (144, 32),
            "fine-tuned for BEIR, zero-shot",
            (("beir-18", "nDCG@10", 0.452, readme),),
        ),
    ):
        yield Checkpoint(
            name=f"retromae-base.{name}",
            hub_id=f"Shitao/RetroMAE{hub_id}",
            revision="main",
            license="",
            source=CODE,
            recipe=f"retromae-{recipe}",
            summary=f"RetroMAE, {summary}",
            base="google-bert/bert-base-uncased",
            parameters=109_482_240,
            pooling="cls",
            similarity="dot",
            max_tokens=lengths[0],
            max_query_tokens=lengths[1],
            expected=expected,
            citation=CITE_RETROMAE,
        )


@stzoo.hookimpl
def stzoo_recipes() -> Iterable[Recipe]:
    """The settings that the authors published."""
    for name, summary in (
        ("pretrain", "RetroMAE on Wikipedia and BookCorpus"),
        ("pretrain-msmarco", "RetroMAE on MS MARCO passages, from the general checkpoint"),
        ("finetune-msmarco", "fine-tuning on MS MARCO, stage 1: BM25 negatives"),
        ("mine-msmarco", "negatives for stage 2"),
        ("finetune-msmarco-mined", "stage 2: negatives mined with the model of stage 1"),
        ("finetune-msmarco-distill", "stage 3: distilled from a reranker"),
        ("mine-beir", "MS MARCO negatives for zero-shot BEIR"),
        ("finetune-beir", "fine-tuning on MS MARCO for zero-shot BEIR"),
    ):
        yield Recipe(
            name=f"retromae-{name}",
            resource=f"stzoo_retromae.recipes:{name}.yaml",
            summary=summary,
            source=f"{CODE}/tree/master/examples",
        )
