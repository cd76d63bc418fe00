"""The house's own parts, through the same door as a plugin's. Code is named as strings: none loads yet."""

from collections.abc import Iterator

from .hookspecs import Component, hookimpl

RETROMAE = "https://arxiv.org/abs/2205.12035"


@hookimpl
def stzoo_poolings() -> Iterator[Component]:
    """Poolings of sentence-transformers, so an export of any of them is portable."""
    yield Component(name="cls", build="stzoo.poolings:cls", summary="the first token's hidden state")
    yield Component(name="mean", build="stzoo.poolings:mean", summary="the mean of all tokens' hidden states")
    yield Component(name="max", build="stzoo.poolings:max", summary="the largest value of each dimension")


@hookimpl
def stzoo_losses() -> Iterator[Component]:
    """Losses of sentence-transformers."""
    for name, build, summary, source in (
        ("contrastive", "Contrastive", "find the positive among all passages of the batch", "1807.03748"),
        ("kl", "KL", "a teacher's distribution over the query's candidates", "2010.11386"),
        ("margin-mse", "MarginMSE", "a teacher's margins between positive and negatives", "2010.02666"),
    ):
        yield Component(
            name=name,
            build=f"stzoo.losses:{build}",
            summary=summary,
            source=f"https://arxiv.org/abs/{source}",
        )


@hookimpl
def stzoo_balancers() -> Iterator[Component]:
    """The plain sum, and TorchJD's aggregators."""
    yield Component(name="sum", build="stzoo.balancers:Sum", summary="the mean of the tasks' gradients")
    for name, summary, source in (
        ("pcgrad", "each gradient without what conflicts with another", "https://arxiv.org/abs/2001.06782"),
        ("cagrad", "the mean, moved towards what helps the worst task", "https://arxiv.org/abs/2110.14048"),
        ("upgrad", "the mean of projections that harm no task", "https://arxiv.org/abs/2406.16232"),
        ("aligned-mtl", "gradients made orthogonal and equally long", "https://arxiv.org/abs/2305.19000"),
        ("mgda", "the shortest vector between the gradients", "https://arxiv.org/abs/1810.04650"),
        ("imtl-g", "what leans on each gradient alike", "https://openreview.net/forum?id=IMPnRXEWpvr"),
    ):
        build = f"stzoo.balancers:{name.replace('-', '_')}"
        yield Component(name=name, build=build, summary=f"{summary} (TorchJD)", source=source)


@hookimpl
def stzoo_decoders() -> Iterator[Component]:
    """The decoders of RetroMAE's paper: enhanced (section 3.3) and basic (section 3.2)."""
    yield Component(
        name="enhanced",
        build="stzoo.decoders:EnhancedDecoder",
        summary="each token from the bottleneck and a context of its own",
        source=RETROMAE,
    )
    yield Component(
        name="stacked",
        build="stzoo.decoders:StackedDecoder",
        summary="Transformer layers over the bottleneck and a corrupted passage",
        source=RETROMAE,
    )
