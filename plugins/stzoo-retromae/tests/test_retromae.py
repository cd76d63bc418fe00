"""The plugin as an author tests it: its parts by name, and what is special about each objective."""

import pytest
import torch

from stzoo.plugins import manager
from stzoo.testing import check_objective, sentences, tiny_backbone
from stzoo.training.batches import split_views

NAMES = ("retromae", "retromae-basic", "dupmae")


@pytest.mark.parametrize("name", NAMES)
def test_the_objective_can_be_trained(name):
    check_objective(manager.find("objective", name))


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_hangs_on_the_bottleneck(name):
    """Another bottleneck gives another decoding: the encoder learns from the decoder's loss."""
    torch.manual_seed(0)
    objective = manager.build("objective", name, tiny_backbone()).eval()
    batch = objective.collate([{"text": text} for text in sentences(3)])
    views = objective.make_views(split_views(batch))
    h = torch.randn(3, 32, requires_grad=True)
    out = objective.rebuild(h, views["decoder_ids"], views["visible"])
    labelled = views["decoder_labels"] != -100
    out[labelled].square().sum().backward()
    assert (h.grad.abs().sum(1) > 0).all()


def test_no_row_of_the_enhanced_decoder_sees_its_own_token():
    torch.manual_seed(0)
    objective = manager.build("objective", "retromae", tiny_backbone()).eval()
    batch = objective.collate([{"text": text} for text in sentences(3)])
    views = objective.make_views(split_views(batch))
    h = torch.randn(3, 32)
    ids, visible = views["decoder_ids"], views["visible"]
    with torch.no_grad():
        before = objective.rebuild(h, ids, visible)
        for place in range(1, ids.shape[1]):
            changed = ids.clone()
            changed[:, place] = 7
            after = objective.rebuild(h, changed, visible)
            there = views["attention"][:, place]  # padding's rows see nothing, and so all alike
            assert torch.allclose(after[there, place], before[there, place], atol=1e-5)
    assert views["decoder_labels"][:, 0].eq(-100).all()


def test_the_published_checkpoints_are_listed_with_recipes_that_are_there():
    rows = {name: row for name, row in manager.all("checkpoint").items() if name.startswith("retromae-base.")}
    assert {row.hub_id for row in rows.values()} == {
        "Shitao/RetroMAE",
        "Shitao/RetroMAE_MSMARCO",
        "Shitao/RetroMAE_MSMARCO_finetune",
        "Shitao/RetroMAE_MSMARCO_distill",
        "Shitao/RetroMAE_BEIR",
    }
    assert {row.recipe for row in rows.values() if row.recipe} <= manager.all("recipe").keys()
