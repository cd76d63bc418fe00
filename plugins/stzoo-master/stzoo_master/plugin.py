"""The hooks of stzoo-master: the objective, the preparation of its data, checkpoints, and recipes.

The entry point names this module. It does not import torch, so `stzoo list` stays fast; heavy parts are named
as strings and imported when they are used.
"""

from collections.abc import Iterable

import stzoo
from stzoo import Checkpoint, Component, Recipe

PAPER = "https://arxiv.org/abs/2212.07841"
CODE = "https://github.com/microsoft/SimXNS/tree/main/MASTER"
CITE = """\
@misc{zhou-etal-2022-master,
  title = {{MASTER}: Multi-task Pre-trained Bottlenecked Masked Autoencoders are Better Dense Retrievers},
  author = {Zhou, Kun and Liu, Xiao and Gong, Yeyun and Zhao, Wayne Xin and Jiang, Daxin and Duan, Nan
            and Wen, Ji-Rong},
  year = {2022},
  eprint = {2212.07841},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2212.07841}
}"""


@stzoo.hookimpl
def stzoo_objectives() -> Iterable[Component]:
    """The objective MASTER."""
    yield Component(
        name="master",
        build="stzoo_master.master:MASTER",
        summary="five decoders predict keywords, queries, continuations and neighbours from the bottleneck",
        source=PAPER,
        citation=CITE,
    )


@stzoo.hookimpl
def stzoo_preparations() -> Iterable[Component]:
    """The preparation of the data that MASTER reads."""
    yield Component(
        name="master",
        build="stzoo_master.prepare:MASTERData",
        summary="queries, continuations, neighbours and word frequencies of a corpus",
        source=PAPER,
    )


@stzoo.hookimpl
def stzoo_checkpoints() -> Iterable[Checkpoint]:
    """The authors' checkpoints, with the lengths of their scripts."""
    for name, corpus in (("msmarco", "MS MARCO"), ("wiki", "Wikipedia")):
        yield Checkpoint(
            name=f"master-base.{name}",
            hub_id=f"lx865712528/master-base-pretrained-{name}",
            revision="main",
            license="",
            source=CODE,
            recipe=f"master-pretrain-{'msmarco' if name == 'msmarco' else 'wikipedia'}",
            summary=f"MASTER, pre-trained on {corpus} passages, with its decoders",
            importer="stzoo_master.importer:pretrained",
            files=("model.pt",),
            base="google-bert/bert-base-uncased",
            parameters=109_482_240,
            pooling="cls",
            similarity="dot",
            max_tokens=128,
            citation=CITE,
        )
    yield Checkpoint(
        name="master-base.msmarco-finetune",
        hub_id="",
        revision="",
        license="",
        source=CODE,
        recipe="master-finetune-msmarco-distill",
        summary="MASTER, fine-tuned on MS MARCO, as its code writes it; towers for queries and passages",
        importer="stzoo_master.importer:towers",
        base="google-bert/bert-base-uncased",
        parameters=109_482_240,
        pooling="cls",
        similarity="dot",
        prompts={"query": "", "document": "- [SEP] "},  # "-" is the title of a passage without one
        max_tokens=128,
        max_query_tokens=32,
        citation=CITE,
    )


@stzoo.hookimpl
def stzoo_recipes() -> Iterable[Recipe]:
    """The settings that the authors published."""
    for name, summary in (
        ("prepare-msmarco", "the data of MASTER from MS MARCO passages"),
        ("pretrain-msmarco", "MASTER on MS MARCO passages"),
        ("pretrain-wikipedia", "MASTER on Wikipedia passages"),
        ("finetune-msmarco-bm25", "MS MARCO, stage 1: BM25 negatives"),
        ("mine-msmarco", "negatives for stage 2"),
        ("finetune-msmarco-mined", "MS MARCO, stage 2: mined negatives"),
        ("finetune-msmarco-distill", "MS MARCO, stage 3: distillation"),
    ):
        yield Recipe(
            name=f"master-{name}",
            resource=f"stzoo_master.recipes:{name}.yaml",
            summary=summary,
            source=CODE,
        )
