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
