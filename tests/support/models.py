"""Tiny models of sentence-transformers."""

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling


def sentence_transformer(base, pooling="mean", *, unit=True, **options):
    transformer = Transformer(str(base))
    parts = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    return SentenceTransformer(modules=[*parts, *([Normalize()] if unit else [])], device="cpu", **options)
