"""The built-in components, provided by the same hooks as a plugin's; code is named as strings."""

from collections.abc import Iterator

from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe, hookimpl

RETROMAE = "https://arxiv.org/abs/2205.12035"
BGE = "https://github.com/FlagOpen/FlagEmbedding/blob/master/README.md"
CONDENSER = "https://github.com/luyug/Condenser"
SIMLM = "https://github.com/microsoft/unilm/tree/master/simlm"
COTMAE = "https://github.com/caskcsg/ir/tree/main/cotmae"
MNRL = (
    *("mnrl", "cached-mnrl", "infonce", "in-batch"),
    *("multiple-negatives-ranking", "cached-multiple-negatives-ranking"),
)
BERT = "google-bert/bert-base-uncased"
BERT_PARAMETERS = 109_482_240


def _cite(key: str, title: str, authors: str, year: int, arxiv: str) -> str:
    return f"""\
@misc{{{key},
  title = {{{title}}},
  author = {{{authors}}},
  year = {{{year}}},
  eprint = {{{arxiv}}},
  archivePrefix = {{arXiv}},
  url = {{https://arxiv.org/abs/{arxiv}}}
}}"""


CITE_BGE = _cite(
    "xiao-etal-2023-c-pack",
    "{C}-{P}ack: Packaged Resources To Advance General {C}hinese Embedding",
    "Xiao, Shitao and Liu, Zheng and Zhang, Peitian and Muennighoff, Niklas",
    2023,
    "2309.07597",
)
CITE_CONDENSER = _cite(
    "gao-callan-2021-condenser",
    "{C}ondenser: a Pre-training Architecture for Dense Retrieval",
    "Gao, Luyu and Callan, Jamie",
    2021,
    "2104.08253",
)
CITE_COCONDENSER = _cite(
    "gao-callan-2022-unsupervised",
    "Unsupervised Corpus Aware Language Model Pre-training for Dense Passage Retrieval",
    "Gao, Luyu and Callan, Jamie",
    2021,
    "2108.05540",
)
CITE_SIMLM = _cite(
    "wang-etal-2022-simlm",
    "{S}im{LM}: Pre-training with Representation Bottleneck for Dense Passage Retrieval",
    "Wang, Liang and Yang, Nan and Huang, Xiaolong and Jiao, Binxing and Yang, Linjun and Jiang, Daxin and "
    "Majumder, Rangan and Wei, Furu",
    2022,
    "2207.02578",
)
CITE_COTMAE = _cite(
    "wu-etal-2022-contextual",
    "{C}on{T}extual Masked Auto-Encoder for Dense Passage Retrieval",
    "Wu, Xing and Ma, Guangyuan and Lin, Meng and Lin, Zijia and Wang, Zhongyuan and Hu, Songlin",
    2022,
    "2208.07670",
)


@hookimpl
def stzoo_poolings() -> Iterator[Component]:
    """The poolings of sentence-transformers; exports with them are portable."""
    for name, summary in (
        ("cls", "the hidden state of the first token"),
        ("mean", "the mean of the hidden states of all tokens"),
        ("max", "the maximum of each dimension over all tokens"),
    ):
        yield Component(name=name, build=f"stzoo.models.poolings:{name}", summary=summary)


@hookimpl
def stzoo_losses() -> Iterator[Component]:
    """Contrastive learning, distillation and graded pairs; the aliases are sentence-transformers' names."""
    for name, build, summary, source, aliases in (
        (
            "contrastive",
            "losses:Contrastive",
            "identify the positive among all passages of the batch (InfoNCE, MNRL)",
            "https://arxiv.org/abs/1807.03748",
            MNRL,
        ),
        (
            "gist",
            "gist:GIST",
            "contrastive, without the negatives that a guide model ranks above the positive",
            "https://arxiv.org/abs/2402.16829",
            ("gist-embed", "cached-gist", "cached-gist-embed"),
        ),
        (
            "kl",
            "losses:KL",
            "match a teacher's distribution over the candidates of a query",
            "https://arxiv.org/abs/2010.11386",
            ("kl-div", "kl-divergence", "distill-kl", "distill-kl-div"),
        ),
        (
            "margin-mse",
            "losses:MarginMSE",
            "match a teacher's margins between positive and negatives",
            "https://arxiv.org/abs/2010.02666",
            (),
        ),
        (
            "cosent",
            "losses:CoSENT",
            "rank all pairs of the batch by their scores, as in data with graded pairs",
            "https://doi.org/10.1109/TASLP.2024.3402087",
            (),
        ),
    ):
        build = f"stzoo.finetuning.{build}"
        yield Component(name=name, build=build, summary=summary, source=source, aliases=aliases)


@hookimpl
def stzoo_balancers() -> Iterator[Component]:
    """The plain mean, and TorchJD's aggregators."""
    yield Component(
        name="sum", build="stzoo.finetuning.balancers:Sum", summary="the mean of the tasks' gradients"
    )
    for name, summary, source in (
        (
            "pcgrad",
            "each gradient without the components that conflict with others",
            "https://arxiv.org/abs/2001.06782",
        ),
        ("cagrad", "the mean, shifted towards the task that gains least", "https://arxiv.org/abs/2110.14048"),
        (
            "upgrad",
            "the mean of gradients projected so that no task is harmed",
            "https://arxiv.org/abs/2406.16232",
        ),
        ("aligned-mtl", "gradients made orthogonal and equal in length", "https://arxiv.org/abs/2305.19000"),
        ("mgda", "the shortest convex combination of the gradients", "https://arxiv.org/abs/1810.04650"),
        (
            "imtl-g",
            "the combination with equal projections onto all gradients",
            "https://openreview.net/forum?id=IMPnRXEWpvr",
        ),
    ):
        build = f"stzoo.finetuning.balancers:{name.replace('-', '_')}"
        yield Component(name=name, build=build, summary=f"{summary} (TorchJD)", source=source)


@hookimpl
def stzoo_decoders() -> Iterator[Component]:
    """The decoders of RetroMAE's paper: enhanced (section 3.3) and basic (section 3.2)."""
    yield Component(
        name="enhanced",
        build="stzoo.pretraining.decoders:EnhancedDecoder",
        summary="predicts each token from the bottleneck and a context of its own",
        source=RETROMAE,
    )
    yield Component(
        name="stacked",
        build="stzoo.pretraining.decoders:StackedDecoder",
        summary="Transformer layers over the bottleneck and a masked passage",
        source=RETROMAE,
    )


@hookimpl
def stzoo_recipes() -> Iterator[Recipe]:
    """The settings of the README's table on SciFact."""
    for name, summary in (
        ("scifact", "all-MiniLM-L6-v2 on SciFact, with negatives that the base mines"),
        ("scifact-in-batch", "all-MiniLM-L6-v2 on SciFact, with in-batch negatives"),
    ):
        yield Recipe(name=name, resource=f"stzoo.recipes:{name}.yaml", summary=summary)


@hookimpl
def stzoo_checkpoints() -> Iterator[Checkpoint]:
    """Checkpoints of other methods, for which there is no plugin here."""
    yield from _bge()
    yield from _condenser()
    yield from _simlm()
    yield from _cotmae()


def _bge() -> Iterator[Checkpoint]:
    """Pre-trained with RetroMAE and trained on pairs; the prompt is for retrieval queries only.

    Revisions and licence are taken from mteb 2.26 (bge_models.py).
    """
    for size, revision, parameters, value in (
        ("small", "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a", 33_360_000, 0.5168),
        ("base", "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a", BERT_PARAMETERS, 0.5325),
        ("large", "d4aa6901d3a41ba39fb536a557fa166f842b0e09", 335_141_888, 0.5429),
    ):
        yield Checkpoint(
            name=f"bge-{size}.en-v1-5",
            hub_id=f"BAAI/bge-{size}-en-v1.5",
            revision=revision,
            license="mit",
            source=BGE,
            recipe="",
            summary="BGE for English, v1.5",
            normalize=True,
            similarity="cosine",
            prompts={"query": "Represent this sentence for searching relevant passages: ", "document": ""},
            max_tokens=512,
            parameters=parameters,
            expected=(("MTEB's 15 English retrieval sets", "nDCG@10", value, BGE),),
            citation=CITE_BGE,
        )


def _condenser() -> Iterator[Checkpoint]:
    """Lengths of the fine-tuned model are the defaults of texttron/tevatron, whose example trained it."""
    for name, hub_id, summary in (
        ("condenser-base.wikibook", "Luyu/condenser", "Condenser, pre-trained on BookCorpus and Wikipedia"),
        ("co-condenser-base.wiki", "Luyu/co-condenser-wiki", "coCondenser, pre-trained on Wikipedia"),
        ("co-condenser-base.msmarco", "Luyu/co-condenser-marco", "coCondenser, pre-trained on MS MARCO"),
        (
            "co-condenser-base.msmarco-finetune",
            "Luyu/co-condenser-marco-retriever",
            "coCondenser, fine-tuned on MS MARCO; passages are TITLE[SEP]TEXT",
        ),
    ):
        tuned = name.endswith("finetune")
        yield Checkpoint(
            name=name,
            hub_id=hub_id,
            revision="main",
            license="",
            source=CONDENSER,
            recipe="",
            summary=summary,
            base=BERT,
            parameters=BERT_PARAMETERS,
            max_tokens=128 if tuned else None,
            max_query_tokens=32 if tuned else None,
            citation=CITE_CONDENSER if name.startswith("condenser") else CITE_COCONDENSER,
        )


def _simlm() -> Iterator[Checkpoint]:
    """Vectors are normalised (src/config.py, l2_normalize); passages follow their titles."""
    card = "https://huggingface.co/intfloat/simlm-base-msmarco-finetuned"
    for name, hub_id, licence, summary in (
        ("msmarco", "intfloat/simlm-base-msmarco", "mit", "SimLM, pre-trained on MS MARCO passages"),
        ("wiki", "intfloat/simlm-base-wiki100w", "", "SimLM, pre-trained on Wikipedia passages"),
    ):
        yield Checkpoint(
            name=f"simlm-base.{name}",
            hub_id=hub_id,
            revision="main",
            license=licence,
            source=SIMLM,
            recipe="",
            summary=summary,
            base=BERT,
            parameters=BERT_PARAMETERS,
            normalize=True,
            similarity="cosine",
            max_tokens=144,
            citation=CITE_SIMLM,
        )
    yield Checkpoint(
        name="simlm-base.msmarco-finetune",
        hub_id="intfloat/simlm-base-msmarco-finetuned",
        revision="329aac830098d9a5a027e53e932e0eec6a736cb2",
        license="mit",
        source=SIMLM,
        recipe="",
        summary="SimLM, fine-tuned by distillation on MS MARCO; separate towers for queries and passages",
        importer="stzoo.hub.importers:behind_title",
        base=BERT,
        parameters=BERT_PARAMETERS,
        normalize=True,
        similarity="cosine",
        max_tokens=144,
        max_query_tokens=32,
        expected=(
            ("msmarco", "MRR@10", 0.411, card),
            ("msmarco", "Recall@1000", 0.987, card),
            ("TREC DL 2019", "nDCG@10", 0.714, card),
            ("TREC DL 2020", "nDCG@10", 0.697, card),
        ),
        citation=CITE_SIMLM,
    )


def _cotmae() -> Iterator[Checkpoint]:
    """Pre-trained with 128 tokens; fine-tuned with tevatron's defaults."""
    card = "https://huggingface.co/caskcsg/cotmae_base_msmarco_retriever"
    for name, hub_id, queries, summary, expected in (
        ("msmarco", "cotmae_base_uncased", None, "CoT-MAE, pre-trained on MS MARCO documents", ()),
        (
            "msmarco-finetune",
            "cotmae_base_msmarco_retriever",
            32,
            "CoT-MAE, fine-tuned on MS MARCO; passages are TITLE[SEP]TEXT",
            (("msmarco", "MRR@10", 0.394431, card), ("msmarco", "Recall@1000", 0.986676, card)),
        ),
    ):
        yield Checkpoint(
            name=f"cot-mae-base.{name}",
            hub_id=f"caskcsg/{hub_id}",
            revision="main",
            license="",
            source=COTMAE,
            recipe="",
            summary=summary,
            base=BERT,
            parameters=BERT_PARAMETERS,
            max_tokens=128,
            max_query_tokens=queries,
            expected=expected,
            citation=CITE_COTMAE,
        )
