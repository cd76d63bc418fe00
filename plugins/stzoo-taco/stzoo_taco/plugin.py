"""The hooks of stzoo-taco: TACO's balancer and its baselines, a pooling, a command, checkpoints and recipes.

The entry point names this module. It does not import torch; balancers are named as strings and imported when
they are used.
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
        summary="each parameter follows the tasks that it matters to",
        source=TACO,
        citation=CITE,
    )
    yield Component(
        name="gradnorm",
        build="stzoo_taco.peers:GradNorm",
        summary="learnt weights with which all tasks train at the same rate",
        source="https://arxiv.org/abs/1711.02257",
    )
    yield Component(
        name="cgd",
        build="stzoo_taco.peers:CGD",
        summary="higher weights for tasks whose gradients help other tasks",
        source="https://openreview.net/forum?id=irARV_2VFs4",
    )


@stzoo.hookimpl
def stzoo_poolings() -> Iterable[Component]:
    """TACO's vector, from the decoder of T5."""
    yield Component(
        name="t5-decoder",
        build="stzoo_taco.t5:t5_decoder",
        summary="the hidden state of T5's decoder at its first token; not portable",
        source=CODE,
        citation=CITE,
    )


@stzoo.hookimpl
def stzoo_commands() -> Iterable[Component]:
    """A command that analyses the sensitivities of a model."""
    yield Component(
        name="taco",
        build="stzoo_taco.cli:app",
        summary="Show which parameters of multi-task models serve which task.",
        source=TACO,
    )


@stzoo.hookimpl
def stzoo_checkpoints() -> Iterable[Checkpoint]:
    """The format that TACO's code writes, of which nothing is published, and the T5 that it starts from.

    Prompts and lengths are those of scripts/kilt/shells; prompts are named like the tasks in the recipe.
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
        summary="TACO on KILT's tasks, as its code writes it; passages are Title: TITLE Text: TEXT",
        importer="stzoo_taco.importer:t5",
        base="google-t5/t5-base",
        parameters=222_903_552,
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
        summary="T5 v1.0, which TACO starts from; not yet a retriever",
        parameters=222_903_552,
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
