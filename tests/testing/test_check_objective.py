"""`check_objective` names the fault of a faulty objective, and accepts sound ones that are not installed."""

import pytest
import torch
from support import objectives

from stzoo import Component, PluginError
from stzoo.testing import check_checkpoint, check_objective, check_pooling


def component(kind):
    return Component(name="mine", build=kind, summary="an objective that no plugin provides")


@pytest.mark.parametrize("kind", objectives.SOUND, ids=lambda kind: kind.__name__)
def test_sound_objectives_are_accepted(kind):
    trained = kind in (objectives.Autoencoder, objectives.Both)  # other tests train those of the plugins
    check_objective(component(kind), steps=150 if trained else 0)


@pytest.mark.parametrize("kind", objectives.FAULTY, ids=lambda kind: kind.__name__)
def test_a_fault_is_named(kind):
    with pytest.raises(AssertionError, match=kind.fault):
        check_objective(component(kind))


def test_a_class_may_stand_in_for_its_component_and_what_else_was_given_is_explained():
    check_objective(objectives.Contriever, steps=0)
    with pytest.raises(PluginError, match=r"expected a name, or a class or function that has a name"):
        check_objective("contriever")
    with pytest.raises(PluginError, match=r"got the class Contriever; expected what a hook .* yields"):
        check_pooling(objectives.Contriever)
    with pytest.raises(PluginError, match="got a str; expected"):
        check_checkpoint("retromae-base.beir")


def test_parts_of_the_backbone_may_be_unused():
    """Nothing reads the table of positions that a ModernBERT is given for decoders, nor its MLM head."""
    check_objective(component(objectives.Contriever), "modernbert", steps=0)


def test_options_are_passed_on_and_the_generator_is_left_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with pytest.raises(AssertionError, match="no loss has a gradient"):
        check_objective(component(Backwards), options={"sign": -1}, steps=0)
    assert torch.equal(torch.rand(1), expected)


class Backwards(objectives.Contriever):
    """Climbs where it should descend, if it is asked to."""

    def __init__(self, backbone, sign: int = 1):
        super().__init__(backbone)
        self.sign = sign

    def losses(self, ids, crops):
        (loss,) = super().losses(ids, crops).values()
        return {"contrastive": loss.detach() if self.sign < 0 else loss}
