"""What stzoo-taco brings: TACO's balancer, those that its paper compares it with, checkpoints, and recipes.

The entry point names this file. It imports no torch; balancers are named as text.
"""

from collections.abc import Iterable

import stzoo
from stzoo import Checkpoint, Component, Recipe

TACO = "https://arxiv.org/abs/2307.00342"
CODE = "https://github.com/WenzhengZhang/TACO"
CITE = """\
@article{zhang-etal-2023-improving,
  title = {Improving Multitask Retrieval by Promoting Task Specialization},
  author = {Zhang, Wenzheng and Xiong, Chenyan and Stratos, Karl and Overwijk, Arnold},
  journal = {Transactions of the Association for Computational Linguistics},
  volume = {11},
  year = {2023},
  pages = {1201--1212},
  doi = {10.1162/tacl_a_00597},
  url = {https://arxiv.org/abs/2307.00342}
}"""


@stzoo.hookimpl
def stzoo_balancers() -> Iterable[Component]:
    """TACO, and the two of its baselines that TorchJD lacks."""
    yield Component(
        name="taco",
        build="stzoo_taco.taco:TACO",
        summary="each parameter leans to the tasks that it matters to",
        source=TACO,
        citation=CITE,
    )
    yield Component(
        name="gradnorm",
        build="stzoo_taco.peers:GradNorm",
        summary="learnt weights under which all tasks learn at one pace",
        source="https://arxiv.org/abs/1711.02257",
    )
    yield Component(
        name="cgd",
        build="stzoo_taco.peers:CGD",
        summary="weights of tasks whose gradients help the others grow",
        source="https://openreview.net/forum?id=irARV_2VFs4",
    )


@stzoo.hookimpl
def stzoo_poolings() -> Iterable[Component]:
    """TACO's own vector."""
    yield Component(
        name="t5-decoder",
        build="stzoo_taco.t5:t5_decoder",
        summary="what T5's decoder says after one token; not portable",
        source=CODE,
        citation=CITE,
    )


@stzoo.hookimpl
def stzoo_commands() -> Iterable[Component]:
    """What the sensitivities of a model say."""
    yield Component(
        name="taco",
        build="stzoo_taco.cli:app",
        summary="see which parameters serve which of several tasks",
        source=TACO,
    )


@stzoo.hookimpl
def stzoo_checkpoints() -> Iterable[Checkpoint]:
    """The form in which TACO's code leaves a model, which no repository has, and what it starts from.

    Prompts and lengths are those of scripts/kilt/shells; the prompts have our recipe's names of the tasks.
    """
    tasks = dict(nq="NQ", triviaqa="TQA", hotpot="HOPO", wow="WOW", trex="TREX", fever="FEVER")
    tasks |= dict(zsre="ZSRE", aida="AIDA")
    yield Checkpoint(
        name="taco-base.kilt",
        hub_id="",
        revision="",
        license="",
        source=CODE,
        recipe="taco-kilt",
        summary="TACO on KILT's tasks, as its code leaves it; passages are Title: TITLE Text: TEXT",
        importer="stzoo_taco.importer:t5",
        base="google-t5/t5-base",
        pooling="t5-decoder",
        similarity="dot",
        prompts={
            "query": "",
            "document": "",
            **{name: f"{task} <extra_id_1> " for name, task in tasks.items()},
        },
        max_tokens=160,
        max_query_tokens=260,  # 36 in most tasks; fever 68, AIDA 132
        citation=CITE,
    )
    yield Checkpoint(
        name="t5-base.c4",
        hub_id="google-t5/t5-base",
        revision="main",
        license="apache-2.0",
        source="https://arxiv.org/abs/1910.10683",
        recipe="",
        summary="T5 v1.0, which TACO starts from; no retriever yet",
        importer="stzoo_taco.importer:t5",
        pooling="t5-decoder",
        similarity="dot",
        max_tokens=512,
    )


@stzoo.hookimpl
def stzoo_recipes() -> Iterable[Recipe]:
    """The settings that the authors published."""
    for name, summary in (
        ("warmup-kilt", "KILT's tasks together, before TACO"),
        ("kilt", "TACO on KILT's tasks, with refreshed negatives"),
    ):
        yield Recipe(
            name=f"taco-{name}",
            resource=f"stzoo_taco.recipes:{name}.yaml",
            summary=summary,
            source=f"{CODE}/tree/main/scripts/kilt",
        )
