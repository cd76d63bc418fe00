"""Backbone, decoders and the loss: the parts that every objective stands on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig, AlbertForMaskedLM, AutoModelForMaskedLM, BertConfig
from transformers.models.bert.modeling_bert import BertLayer

import stzoo
from stzoo.models.loading import load_model
from stzoo.plugins import manager
from stzoo.pretraining.decoders import CrossLayer, EnhancedDecoder, StackedDecoder, bert_config
from stzoo.pretraining.pretrain import load_base
from stzoo.testing import FAMILIES, check_objective, sentences, tiny_backbone, tiny_masked_lm
from stzoo.training.batches import split_views


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return tiny_masked_lm(request.param, tmp_path_factory.mktemp("family") / request.param)


def test_the_parts_of_a_backbone_make_the_whole_again(family):
    """Encoder and head apart give the logits of the masked LM, and embed() is what its first layer reads."""
    backbone = load_base(str(family)).backbone.eval()
    whole = AutoModelForMaskedLM.from_pretrained(family).eval()
    batch = backbone.tokenizer(
        sentences(3), padding=True, truncation=True, max_length=backbone.max_tokens, return_tensors="pt"
    )
    ids, attention = batch["input_ids"], batch["attention_mask"].bool()
    with torch.no_grad():
        hidden, bottleneck = backbone.encode(ids, attention)
        expected = whole(input_ids=ids, attention_mask=attention.long(), output_hidden_states=True)
        assert torch.allclose(backbone.logits(hidden)[attention], expected.logits[attention], atol=1e-5)
        assert torch.equal(bottleneck, hidden[:, 0])
        first = expected.hidden_states[0]
        if backbone.own_positions is not None:
            first = first + backbone.positions(ids.shape[1])
        assert torch.allclose(backbone.embed(ids), first, atol=1e-6)


def test_encode_returns_the_hidden_states_of_the_layers_asked_for(family):
    backbone = load_base(str(family)).backbone
    objective = manager.build("objective", "retromae", backbone).eval()
    whole = AutoModelForMaskedLM.from_pretrained(family).eval()
    ids = torch.arange(5, 13).view(2, 4)
    attention = torch.tensor([[True] * 4, [True, True, True, False]])
    expected = whole(ids, attention.long(), output_hidden_states=True).hidden_states
    hidden, bottleneck, first, embedded = objective.encode(ids, attention, layers=[1, 0])
    assert torch.allclose(first[attention], expected[1][attention], atol=1e-5)
    assert torch.allclose(embedded[attention], expected[0][attention], atol=1e-5)
    assert all(map(torch.equal, objective.encode(ids, attention), (hidden, bottleneck)))
    with pytest.raises(stzoo.BackboneError, match=r"layer 3; expected 0 \(the embeddings\) to 2"):
        objective.encode(ids, attention, layers=[1, 3])
    objective.frozen = True
    assert not any(states.requires_grad for states in objective.encode(ids, attention, layers=[1]))


def test_positions_are_those_that_the_embeddings_add(family):
    """A word at two places differs by their positions, before the norm."""
    backbone = load_base(str(family)).backbone.eval()
    table = backbone._position_table()
    if table is None:
        pytest.skip("this family has no absolute positions")
    embeddings = backbone.encoder.embeddings
    embeddings.LayerNorm = torch.nn.Identity()
    word = backbone.tokenizer("wing", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        row = backbone.embed(torch.full((1, 6), word))[0]
        positions = backbone.positions(6)
    assert torch.allclose(row - row[0], positions - positions[0], atol=1e-6)


def test_a_backbone_that_cannot_be_split_is_named_with_those_that_can(tmp_path):
    tiny_masked_lm("bert", tmp_path)
    AlbertForMaskedLM(
        AlbertConfig(
            vocab_size=300, hidden_size=64, embedding_size=32, num_attention_heads=4, intermediate_size=64
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(stzoo.BackboneError, match=r"'albert'.*BERT, RoBERTa.*ModernBERT"):
        load_base(str(tmp_path))


def test_narrow_electra_gets_a_position_table_of_its_own(tmp_path):
    from transformers import ElectraConfig, ElectraForMaskedLM

    tiny_masked_lm("electra", tmp_path)
    config = ElectraConfig.from_pretrained(tmp_path)
    config.embedding_size = 16
    ElectraForMaskedLM(config).save_pretrained(tmp_path)
    backbone = load_base(str(tmp_path)).backbone
    assert backbone.own_positions is not None
    assert backbone.embed(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 32)


# test_contract.py and the tests of the plugins have bert
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"bert"}))
@pytest.mark.parametrize("name", sorted(manager.all("objective")))
def test_every_objective_runs_on_every_family(name, family):
    check_objective(manager.find("objective", name), family, steps=0)


def test_a_bare_transformer_is_pooled_by_cls_and_a_finished_model_as_it_says(family, tmp_path):
    from sentence_transformers import SentenceTransformer

    assert load_model(str(family))[1].pooling_mode == "cls"
    assert load_model(str(family), pooling="max")[1].pooling_mode == "max"
    SentenceTransformer(str(family)).save_pretrained(str(tmp_path / "mean"))
    assert load_model(str(tmp_path / "mean"))[1].pooling_mode == "mean"


SIZES = BertConfig(
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def test_a_layer_with_equal_query_and_keys_is_berts_own():
    theirs = BertLayer(bert_config(SIZES)).eval()
    ours = CrossLayer(bert_config(SIZES)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 16)
    nothing = torch.zeros(2, 1, 1, 5)
    expected = theirs(x, nothing)
    expected = expected if isinstance(expected, torch.Tensor) else expected[0]
    assert torch.allclose(ours(x, x, nothing), expected, atol=1e-6)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    row=st.integers(0, 5),
    kind=st.sampled_from([EnhancedDecoder]),
)
def test_an_enhanced_decoder_of_any_depth_never_sees_the_tokens_hidden_from_a_row(seed, layers, row, kind):
    torch.manual_seed(seed)
    decoder = kind(SIZES, layers=layers).eval()
    query, keys = torch.randn(1, 6, 16), torch.randn(1, 6, 16)
    visible = torch.rand(1, 6, 6) < 0.5
    visible |= ~visible.any(2, keepdim=True)  # a row that would see nothing sees everything
    before = decoder(query, keys, visible)[0, row]
    keys[0, ~visible[0, row]] += 3.0
    assert torch.allclose(decoder(query, keys, visible)[0, row], before, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [EnhancedDecoder, StackedDecoder])
def test_a_row_of_padding_gives_no_nan_in_any_precision(kind, precision):
    decoder = kind(SIZES)
    query = torch.randn(1, 4, 16, requires_grad=True)
    visible = torch.ones(1, 4, 4, dtype=torch.bool)
    visible[0, 3] = visible[0, :, 3] = False
    with torch.autocast("cpu", precision):
        out = decoder(query, torch.randn(1, 4, 16), visible)
    out[:, :3].float().sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(query.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", [EnhancedDecoder, StackedDecoder])
@pytest.mark.parametrize("blind", [(0, 2), (0, 0), (0,)])
def test_a_row_that_sees_nothing_is_refused(kind, blind):
    decoder, tokens = kind(SIZES), torch.randn(2, 4, 16)
    visible = torch.ones(2, 4, 4, dtype=torch.bool)
    visible[blind] = False
    with pytest.raises(stzoo.ShapeError, match="sees nothing"):
        decoder(tokens, tokens, visible)
    with pytest.raises(stzoo.ShapeError, match="sees nothing"):
        decoder(tokens, tokens, torch.tensor([[True] * 4, [False] * 4]).unsqueeze(1))


def test_shapes_that_do_not_agree_are_named():
    with pytest.raises(stzoo.ShapeError, match=r"\[1, 4, 5\]"):
        EnhancedDecoder(SIZES)(
            torch.randn(1, 4, 16), torch.randn(1, 4, 16), torch.ones(1, 4, 5, dtype=torch.bool)
        )
    with pytest.raises(stzoo.RecipeError, match="at least 1"):
        StackedDecoder(SIZES, layers=0)


def test_masked_lm_losses_are_those_of_the_heads_logits_and_count_hits():
    torch.manual_seed(0)
    for family in FAMILIES:
        backbone = tiny_backbone(family).eval()
        objective = stzoo.Objective(backbone)
        objective.weights = {"one": 1.0, "other": 0.5, "none": 1.0}
        vocabulary = backbone.config.vocab_size
        read = {}
        for name, share in (("one", 0.5), ("other", 0.9), ("none", 0.0)):
            hidden = torch.randn(3, 7, backbone.width, requires_grad=True)
            labels = torch.randint(vocabulary, (3, 7)).masked_fill(torch.rand(3, 7) >= share, -100)
            best = backbone.logits(hidden).argmax(-1)
            read[name] = hidden, torch.where((labels >= 0) & (torch.rand(3, 7) < 0.5), best, labels)
        expected = {
            name: torch.nn.functional.cross_entropy(
                backbone.logits(hidden).flatten(0, 1), labels.flatten(), reduction="sum"
            )
            / (labels != -100).sum().clamp(min=1)
            for name, (hidden, labels) in read.items()
        }
        losses = objective.mlm_losses(read)
        torch.testing.assert_close(losses, expected)
        parameters = [*backbone.masked_lm.parameters(), *(hidden for hidden, _ in read.values())]
        totals = [sum(objective.weights[n] * loss for n, loss in one.items()) for one in (losses, expected)]
        got, reference = (torch.autograd.grad(total, parameters, allow_unused=True) for total in totals)
        for one, other in zip(got, reference, strict=True):
            torch.testing.assert_close(
                torch.zeros(()) if one is None else one, torch.zeros(()) if other is None else other
            )
        hits = {
            name: (backbone.logits(hidden).argmax(-1) == labels).sum() / max(int((labels != -100).sum()), 1)
            for name, (hidden, labels) in read.items()
        }
        assert objective.accuracies() == {f"{n}_accuracy": pytest.approx(float(h)) for n, h in hits.items()}


@pytest.mark.parametrize("name", ["retromae", "retromae-basic", "dupmae", "master"])
def test_losses_of_weight_0_are_not_computed(name):
    objective = manager.build("objective", name, tiny_backbone()).eval()
    batch = split_views(objective.collate([{"text": text, "queries": [text[:20]]} for text in sentences(4)]))
    names = list(objective(batch))
    for without in names:
        weights = dict.fromkeys(names, 1.0) | {without: 0.0}
        objective.set_weights(weights)
        assert set(objective(batch)) == set(names) - {without}


def test_dupmae_counts_the_words_of_the_passage():
    objective = manager.build("objective", "dupmae", tiny_backbone()).eval()
    batch = objective.collate([{"text": "the wing the wing the lift"}])
    bag = objective.make_views(split_views(batch))["bag"][0]
    ids = objective.backbone.tokenizer("the wing lift", add_special_tokens=False)["input_ids"]
    assert set(bag.nonzero().flatten().tolist()) == set(ids)
    assert torch.allclose(bag[bag > 0], torch.tensor(1 / 6))


def test_dupmae_by_the_papers_rule_leaves_hidden_and_special_tokens_out():
    torch.manual_seed(0)
    backbone = tiny_backbone().eval()
    released = manager.build("objective", "dupmae", backbone).eval()
    paper = manager.build("objective", "dupmae", backbone, visible_only=True).eval()
    paper.load_state_dict(released.state_dict())
    batch = released.collate([{"text": text} for text in sentences(4)])
    views = released.make_views(split_views(batch))
    with torch.no_grad():
        hidden, _ = released.encode(views["encoder_ids"], views["attention"])
        one, other = released.losses(**views), paper.losses(**views)
        assert torch.equal(one["encoder"], other["encoder"])
        assert not torch.equal(one["bag"], other["bag"])
        # by hand, for the first passage
        kept = (views["encoder_labels"][0] == -100) & (views["decoder_labels"][0] != -100)
        best = backbone.logits(hidden[0, kept]).max(0).values
        expected = -(views["bag"][0] * best.log_softmax(0)).sum()
        alone = {name: tensor[:1] for name, tensor in views.items()}
        assert torch.allclose(paper.losses(**alone)["bag"], expected, atol=1e-5)
