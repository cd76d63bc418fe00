"""Tests for plugin authors: a check for each kind of component, and tiny models made at run time.

The models have random weights and two layers. They show that a component works, not that it makes good
models.
"""

from stzoo.testing.checks import (
    check_balancer,
    check_checkpoint,
    check_command,
    check_decoder,
    check_loss,
    check_objective,
    check_pooling,
    check_preparation,
    check_recipe,
)
from stzoo.testing.tiny_models import (
    FAMILIES,
    TEXTS,
    sentences,
    tiny_backbone,
    tiny_cross_encoder,
    tiny_masked_lm,
    tiny_t5,
    tiny_tokenizer,
)

__all__ = [
    "FAMILIES",
    "TEXTS",
    "check_balancer",
    "check_checkpoint",
    "check_command",
    "check_decoder",
    "check_loss",
    "check_objective",
    "check_pooling",
    "check_preparation",
    "check_recipe",
    "sentences",
    "tiny_backbone",
    "tiny_cross_encoder",
    "tiny_masked_lm",
    "tiny_t5",
    "tiny_tokenizer",
]
