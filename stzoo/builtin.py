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
