"""What stzoo-master brings: the objective, the preparation of its data, and recipes.

The entry point names this file. It imports no torch, so that `stzoo list` is quick; heavy parts are named as
text and imported when one is used.
"""

from collections.abc import Iterable

import stzoo
from stzoo import Component, Recipe

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
    """MASTER."""
    yield Component(
        name="master",
        build="stzoo_master:MASTER",
        summary="five decoders find keywords, queries, continuations and neighbours from the bottleneck",
        source=PAPER,
        citation=CITE,
    )


@stzoo.hookimpl
def stzoo_preparations() -> Iterable[Component]:
    """The data set that MASTER reads."""
    yield Component(
        name="master",
        build="stzoo_master_prepare:MASTERData",
        summary="queries, continuations, neighbours and word frequencies of a corpus",
        source=PAPER,
    )


@stzoo.hookimpl
def stzoo_recipes() -> Iterable[Recipe]:
    """The settings that the authors published."""
    for name, summary in (
        ("prepare-msmarco", "the data of MASTER from MS MARCO passages"),
        ("pretrain-msmarco", "MASTER on MS MARCO passages"),
        ("pretrain-wikipedia", "MASTER on Wikipedia passages"),
        ("finetune-msmarco-bm25", "MS MARCO, stage 1: negatives of BM25"),
        ("mine-msmarco", "negatives for stage 2"),
        ("finetune-msmarco-mined", "MS MARCO, stage 2: mined negatives"),
        ("finetune-msmarco-distill", "MS MARCO, stage 3: distillation"),
    ):
        yield Recipe(
            name=f"master-{name}",
            resource=f"stzoo_master_recipes:{name}.yaml",
            summary=summary,
            source=CODE,
        )
