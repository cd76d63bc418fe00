"""The losses of fine-tuning, against sentence-transformers' own and against sums written out."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    DistillKLDivLoss,
    GISTEmbedLoss,
    MarginMSELoss,
    MatryoshkaLoss,
)
from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score

import stzoo
from stzoo.data.training_sets.builder import TrainingSetWriter
from stzoo.data.training_sets.sets import Candidate
from stzoo.finetuning.candidates import Candidates, Similarity, known_positives
from stzoo.finetuning.collator import QueryPassageCollator
from stzoo.finetuning.losses import Contrastive
from stzoo.finetuning.ranking_loss import make_loss, means
from stzoo.models.loading import load_model
from stzoo.plugins import builtin, manager
from stzoo.training.finetune_settings import FinetuneSettings

WORDS = ["wing", "lift", "drag", "mach", "shock", "layer", "heat", "flow", "jet", "plate", "cone", "wave"]


def rows(n, negatives=2, shared=False, scores=True):
    """A set of n queries with one positive each; with `shared`, all have the same one, and a second."""
    draw = np.random.default_rng(0)
    writer = TrainingSetWriter()

    def text(label, number):
        return f"{label} {number} " + " ".join(draw.choice(WORDS, int(draw.integers(1, 12))))

    for number in range(n):
        score = iter(draw.normal(size=9).tolist()) if scores else iter([None] * 9)
        own = [Candidate(text("positive", number), None, next(score))]
        if shared:
            own = [Candidate(f"shared {k}", None, next(score)) for k in range(2)]
        others = [Candidate(text(f"negative{k}", number), None, next(score)) for k in range(negatives)]
        writer.add(text("query", number), own, others)
    return writer.finish("rows", Path(stzoo.__file__))


@pytest.fixture(scope="module")
def model(base):
    loaded = load_model(str(base), pooling="mean")
    return loaded.eval()  # without dropout, so that two ways can be compared


def batch_of(data, model, negatives=2):
    examples = QueryPassageCollator(
        data, model, negatives=negatives, max_query_tokens=64, max_passage_tokens=64, seed=3
    )
    return examples, examples([{"example": place} for place in range(len(examples.pairs))])


def features_of(batch, name):
    return {key.removeprefix(f"{name}_"): value for key, value in batch.items() if key.startswith(f"{name}_")}


def ours(model, batch, weights, **given):
    options = given.pop("options", {})
    loss = make_loss(model, weights, options, **{"temperature": 0.05, "mini_batch_size": 64, **given})
    model.zero_grad()
    value = loss([features_of(batch, "query"), features_of(batch, "passage")], batch["label"])
    value.backward()
    return float(value.detach()), gradient(model), loss


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def theirs(model, data, batch, make):
    """A loss of sentence-transformers on the same rows, one column for each candidate."""
    ids = batch["label"]["ids"]
    order = [int(np.flatnonzero(data.positives.places == first)[0]) for first in ids[:, 0].tolist()]
    columns = [[data.queries[query] for query in order]]
    columns += [[data.passages[place] for place in column] for column in ids.T.tolist()]
    features = [model.preprocess(texts) for texts in columns]
    loss = make(model)
    model.zero_grad()
    value = loss(features, batch["label"].get("scores"))
    value.backward()
    return float(value.detach()), gradient(model)


CASES = {
    "contrastive": (
        {"contrastive": 1.0},
        lambda model: CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=4),
    ),
    "kl": (
        {"kl": 1.0},
        lambda model: DistillKLDivLoss(model, lambda q, p: pairwise_cos_sim(q, p) / 0.05, temperature=1.0),
    ),
    "margin-mse": (
        {"margin-mse": 1.0},
        lambda model: MarginMSELoss(model, lambda q, p: pairwise_cos_sim(q, p) / 0.05),
    ),
}


@pytest.mark.parametrize("mini_batch_size", [3, 64])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_sentence_transformers(name, mini_batch_size, model):
    weights, make = CASES[name]
    data = rows(7)
    _, batch = batch_of(data, model)
    value, slope, _ = ours(model, batch, weights, mini_batch_size=mini_batch_size)
    expected, reference = theirs(model, data, batch, make)
    assert value == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(slope, reference, atol=1e-5 * reference.abs().max())


@pytest.mark.parametrize("mini_batch_size", [3, 64])
def test_matryoshka_is_that_of_sentence_transformers_on_top_of_any_loss(mini_batch_size, model):
    data = rows(6)
    _, batch = batch_of(data, model)
    width = model.get_embedding_dimension()
    for name, (weights, make) in CASES.items():
        if name != "contrastive":
            continue
        found = ours(model, batch, weights, mini_batch_size=mini_batch_size, matryoshka=[width // 2])
        expected = theirs(
            model, data, batch, lambda m, make=make: MatryoshkaLoss(m, make(m), [width, width // 2])
        )
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert torch.allclose(found[1], expected[1], atol=1e-5 * expected[1].abs().max())
    both = ours(model, batch, {"kl": 1.0, "contrastive": 0.5}, matryoshka=[width // 2])
    assert math.isfinite(both[0])


def test_several_losses_are_summed_by_weight_and_logged_apart(model):
    data = rows(5)
    _, batch = batch_of(data, model)
    kl, contrastive = (ours(model, batch, {name: 1.0})[0] for name in ("kl", "contrastive"))
    both, _, loss = ours(model, batch, {"kl": 2.0, "contrastive": 0.1})
    assert both == pytest.approx(2 * kl + 0.1 * contrastive, rel=1e-5)
    assert means(loss) == pytest.approx({"kl": kl, "contrastive": contrastive}, rel=1e-5)
    assert means(ours(model, batch, {"kl": 1.0})[2]) == {}


def test_a_known_positive_is_never_a_negative(model):
    data = rows(4, negatives=1, shared=True)  # every row's positives are the same two passages
    _, batch = batch_of(data, model, negatives=1)
    value, _, _ = ours(model, batch, {"contrastive": 1.0})
    with torch.no_grad():
        label = batch["label"]
        queries = model(features_of(batch, "query"))["sentence_embedding"]
        passages = model(features_of(batch, "passage"))["sentence_embedding"]
        total = 0.0
        for row, ids in enumerate(label["ids"].tolist()):
            scores = cos_sim(queries[row], passages[label["places"]].flatten(0, 1))[0] / 0.05
            flat = label["ids"].flatten().tolist()
            kept = [s for s, one in zip(scores, flat, strict=True) if one not in label["positives"][row]]
            own = scores[row * len(ids)]
            total -= float(own - torch.logsumexp(torch.stack([own, *kept]), 0))
    assert value == pytest.approx(total / len(label["ids"]), rel=1e-5)
    assert len(kept) == len(label["ids"])  # the four negatives, none of the positives


def test_a_passage_of_the_same_tokens_as_the_positive_is_no_negative(model):
    """The model, which folds case, cannot tell them apart; nor what it cuts off."""
    writer = TrainingSetWriter()
    writer.add("lift", [Candidate("Wing and flow")], [Candidate("jet cone")])
    writer.add("drag", [Candidate("shock wave")], [Candidate("wing AND flow")])
    writer.add("heat", [Candidate("shock wave " * 40 + "x")], [Candidate("shock wave " * 40 + "y")])
    examples, batch = batch_of(writer.finish("x", Path(stzoo.__file__)), model, negatives=1)
    label = batch["label"]
    masked = known_positives(label["ids"], label["positives"], 0, label["tokens"])
    texts = [examples.data.passages[place] for place in label["ids"].T.flatten().tolist()]
    found = {texts[row]: {texts[place] for place in masked[row].nonzero()[:, 0].tolist()} for row in range(3)}
    long = "shock wave " * 40
    assert found == {
        "Wing and flow": {"wing AND flow"},
        "shock wave": set(),
        f"{long}x": {f"{long}y"},
    }
    value, _, _ = ours(model, batch, {"contrastive": 1.0})
    with torch.no_grad():
        queries = model(features_of(batch, "query"))["sentence_embedding"]
        passages = model(features_of(batch, "passage"))["sentence_embedding"][label["places"].T.flatten()]
        scores = (cos_sim(queries, passages) / 0.05).masked_fill(masked, -math.inf)
    assert value == pytest.approx(float(torch.nn.functional.cross_entropy(scores, torch.arange(3))), rel=1e-5)


@settings(max_examples=40)
@given(
    ids=st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=5),
    more=st.lists(st.integers(0, 9), max_size=3),
    data=st.data(),
)
def test_what_is_masked_is_what_is_known_and_not_the_rows_own(ids, more, data):
    own = data.draw(st.integers(0, len(ids) - 1))
    here = ids[own:]
    positives = [[row[0], *more] for row in here]
    found = known_positives(torch.tensor(ids), torch.tensor(positives), own)
    for row, known in enumerate(positives):
        for place in range(found.shape[1]):
            candidate, at = divmod(place, len(ids))
            is_own = candidate == 0 and at == own + row
            assert bool(found[row, place]) == (ids[at][candidate] in known and not is_own)


def test_dot_products_are_compared_as_such():
    queries, passages = torch.randn(3, 4), torch.randn(5, 4)
    comparison = Similarity("dot", 2.0)
    assert torch.equal(comparison.every(queries, passages), dot_score(queries, passages) / 2)
    assert torch.equal(
        comparison.pairwise(queries, passages[:3]), pairwise_dot_score(queries, passages[:3]) / 2
    )


def test_a_contrastive_loss_reads_in_nats():
    vectors = [torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4)]
    candidates = Candidates(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0], [2]]))
    assert float(Contrastive(Similarity("dot"))(vectors, candidates)) == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(weights={"kl": 0.0}), "losses.kl is 0.0"),
        (dict(weights={"contrastiv": 1.0}), "contrastive"),
        (
            dict(weights={"kl": 1.0}, options={"contrastive": {}}),
            "'contrastive', which is not among the losses: kl",
        ),
        (dict(weights={"kl": 1.0}, options={"kl": 3}), "expected a mapping of option names"),
        (dict(weights={"kl": 1.0}, options={"kl": {"teacher_temperature": -1}}), "teacher_temperature"),
        (dict(weights={"kl": 1.0}, options={"kl": {"teacher_temp": 1}}), "teacher_temperature"),
        (dict(weights={"contrastive": 1.0}, matryoshka=[10**6]), "matryoshka"),
        (dict(weights={"contrastive": 1.0}, matryoshka=[0]), "matryoshka"),
    ],
)
def test_settings_of_losses_that_do_not_hold_are_explained(given, told, model):
    with pytest.raises(stzoo.StzooError, match=told):
        make_loss(
            model,
            given["weights"],
            given.get("options", {}),
            temperature=1,
            mini_batch_size=2,
            matryoshka=given.get("matryoshka", ()),
        )


def test_each_epoch_draws_other_negatives_and_the_same_epoch_the_same(model):
    data = rows(3, negatives=6)
    examples, first = batch_of(data, model)
    assert torch.equal(
        first["label"]["ids"], examples([{"example": place} for place in range(3)])["label"]["ids"]
    )
    examples.set_epoch(1)
    second = examples([{"example": place} for place in range(3)])
    assert not torch.equal(first["label"]["ids"], second["label"]["ids"])
    assert torch.equal(first["label"]["ids"][:, 0].sort().values, second["label"]["ids"][:, 0].sort().values)


@settings(max_examples=20)
@given(n=st.integers(1, 6), mined=st.integers(0, 4), negatives=st.integers(0, 5))
def test_a_batch_holds_each_querys_own_texts_and_scores(n, mined, negatives, model):
    data = rows(n, negatives=mined)
    if not mined and negatives:
        examples = QueryPassageCollator(
            data, model, negatives=negatives, max_query_tokens=9, max_passage_tokens=9, seed=0
        )
        assert (len(examples.pairs), examples.left_out) == (0, n)
        return
    _, batch = batch_of(data, model, negatives)
    label = batch["label"]
    assert label["ids"].shape == (n, 1 + negatives)
    assert sorted(label["places"].flatten().tolist()) == list(range(n * (1 + negatives)))
    decoded = model.tokenizer.batch_decode(batch["passage_input_ids"], skip_special_tokens=True)
    for row in range(n):
        for column in range(1 + negatives):
            place = int(label["ids"][row, column])
            text = decoded[int(label["places"][row, column])]
            assert model.tokenizer.decode(
                model.tokenizer(data.passages[place])["input_ids"], skip_special_tokens=True
            ).startswith(text)
            query = int(np.flatnonzero(data.positives.places == int(label["ids"][row, 0]))[0])
            lists = data.positives if column == 0 else data.negatives
            assert place in lists[query]
            known = dict(zip(lists[query].tolist(), lists.scored(query).tolist(), strict=True))
            assert float(label["scores"][row, column]) == known[place]
    ordered = label["ids"].flatten()[label["places"].flatten().argsort()].tolist()
    lengths = [len(data.passages[place]) for place in ordered]
    assert lengths == sorted(lengths)


def test_the_houses_losses_come_through_the_hook_as_any_plugins_do():

    brought = {component.name for component in builtin.stzoo_losses()}
    assert brought == set(manager.all("loss")) == {*CASES, "gist", "cosent"}  # tested below


@pytest.mark.parametrize("margin", [("absolute", 0.1), ("relative", 0.2), ("absolute", 0.0)])
def test_gist_is_that_of_sentence_transformers_without_other_contrasts(margin, model, base, monkeypatch):
    guide = load_model(str(base), pooling="cls").eval()
    monkeypatch.setattr("stzoo.finetuning.gist.open_guide", lambda _: guide)
    data = rows(5, negatives=1)  # of which no two passages have the same tokens
    examples = QueryPassageCollator(
        data, model, negatives=1, max_query_tokens=64, max_passage_tokens=64, seed=3, guide=guide
    )
    batch = examples([{"example": place} for place in range(5)])
    strategy, size = margin
    options = {"gist": {"guide": "guide", "margin": size, "margin_strategy": strategy}}
    loss = make_loss(model, {"gist": 1.0}, options, temperature=0.05, mini_batch_size=3)
    parts = ("query", "passage", "guide_query", "guide_passage")
    value = loss([features_of(batch, name) for name in parts], batch["label"])
    given = dict(margin_strategy=strategy, margin=size, contrast_anchors=False, contrast_positives=False)
    expected, _ = theirs(model, data, batch, lambda m: GISTEmbedLoss(m, guide, temperature=0.05, **given))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    assert not any("guide" in name for name, _ in loss.named_parameters())  # neither trained nor saved
    contrastive, _, _ = ours(model, batch, {"contrastive": 1.0})
    assert expected < contrastive  # some negatives are left out


@pytest.mark.parametrize("negatives", [0, 2])
def test_cosent_is_that_of_sentence_transformers_on_all_pairs(negatives, model):
    data = rows(5, negatives=negatives)
    _, batch = batch_of(data, model, negatives)
    value, _, _ = ours(model, batch, {"cosent": 1.0}, mini_batch_size=3)
    ids, scores = batch["label"]["ids"], batch["label"]["scores"]
    order = [int(np.flatnonzero(data.positives.places == first)[0]) for first in ids[:, 0].tolist()]
    queries = [data.queries[query] for query in order for _ in range(1 + negatives)]
    passages = [data.passages[place] for place in ids.ravel().tolist()]
    with torch.no_grad():
        features = [model.preprocess(texts) for texts in (queries, passages)]
        expected = CoSENTLoss(model, scale=20.0)(features, scores.ravel())
    assert value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.usefixtures("unverified")
def test_graded_pairs_are_trained_on_without_negatives(base, tmp_path):
    texts = [" ".join(np.roll(WORDS, n)) for n in range(12)]
    lines = [{"anchor": f"{t} {n}", "positive": t, "score": n / 12} for n, t in enumerate(texts)]
    (tmp_path / "graded.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = stzoo.finetune(
        str(base), data=str(tmp_path / "graded.jsonl"), columns="score=score", losses={"CoSENTLoss": 1.0},
        dev_queries=0, batch_size=6, max_steps=2, log_steps=1, output=tmp_path / "out",
    )  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["recipe"]["losses"] == {"cosent": 1.0}
    assert all(math.isfinite(line["loss"]) for line in record["log"])


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *((alias, "contrastive") for alias in ("mnrl", "infonce", "MultipleNegativesRankingLoss")),
        *((alias, "gist") for alias in ("cached-gist", "GISTEmbedLoss", "CachedGISTEmbedLoss")),
        *(("DistillKLDivLoss", "kl"), ("MarginMSELoss", "margin-mse"), ("CoSENTLoss", "cosent")),
        *(("contrastive", "contrastive"), ("builtin:kl", "builtin:kl"), ("none-such", "none-such")),
    ],
)
def test_losses_are_found_by_the_names_people_know(alias, name):
    assert manager.canonical("loss", alias) == name


def test_a_misspelt_alias_is_corrected_and_one_loss_by_two_names_refused():
    with pytest.raises(stzoo.UnknownNameError, match="no loss 'mnlr'; did you mean 'mnrl'"):
        manager.find("loss", "mnlr")
    with pytest.raises(stzoo.RecipeError, match="losses has mnrl, infonce, of which two are the same loss"):
        FinetuneSettings.read(None, {"model": "x", "data": "y", "losses": {"mnrl": 1, "infonce": 1}})
