"""Tokens of texts: those of the tokenizer, with the word that each belongs to."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stzoo.errors import ModelError
from stzoo.pretraining.tokens import pad_tokens, tokenize
from stzoo.testing import FAMILIES, TEXTS, tiny_tokenizer

TOKENIZERS = {family: tiny_tokenizer(family) for family in FAMILIES}
ODD = [
    "the wing [SEP] the lift [CLS] of </s> a <s> wing",
    "Ünïcödé e\u0301 \u202eright to left\u202c 東京は夜 👩‍👩‍👧 \u200b \ufeff ﷺ \x00 \x07 nul",
    "\ud7ff\ue000 \U0010fffd İstanbul ß ﬁ",
    " ".join(["lift"] * 500),
    "x" * 3000,
    "a",
    "[MASK] [PAD] [UNK]",
    "- - -",
]


@given(
    family=st.sampled_from(FAMILIES),
    texts=st.lists(st.text(max_size=300) | st.sampled_from(ODD), min_size=1, max_size=6),
    limit=st.integers(4, 64),
)
@settings(max_examples=150)
def test_padded_tokens_are_those_of_the_tokenizer(family, texts, limit):
    tokenizer = TOKENIZERS[family]
    tokens = tokenize(tokenizer, texts, limit)
    padded = pad_tokens(tokenizer, tokens)
    expected = tokenizer(texts, truncation=True, max_length=limit, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask"):
        assert padded[name].equal(expected[name])
    whole = tokenizer(texts, verbose=False)["input_ids"]
    assert [one.truncated for one in tokens] == [len(ids) > limit for ids in whole]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_a_written_word_carry_one_number_and_specials_carry_none(family, side):
    tokenizer = tiny_tokenizer(family)
    tokenizer.padding_side = side
    texts = [*TEXTS, "", "Don't!  slipstream-like 20 kingdoms"]
    encodings = tokenizer(
        texts, padding=True, truncation=True, max_length=40, return_special_tokens_mask=True
    )
    words = pad_tokens(tokenizer, tokenize(tokenizer, texts, 40))["words"]
    assert words.dtype == torch.int64
    assert (words < 0).equal(torch.tensor(encodings["special_tokens_mask"]).bool())
    for i, text in enumerate(texts):
        numbers = words[i][words[i] >= 0]
        assert numbers.equal(numbers.sort().values)
        by_word = []
        for written in re.finditer(r"(?<!\S)[A-Za-z]+", text):
            tokens = {encodings.char_to_token(i, at) for at in range(*written.span())} - {None}
            by_word.append({int(words[i, token]) for token in tokens})
        by_word = [numbers for numbers in by_word if numbers]  # the others were cut off
        assert all(len(numbers) == 1 for numbers in by_word)
        assert len(set.union(set(), *by_word)) == len(by_word)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_special_tokens_that_a_text_spells_out_are_no_words(family):
    tokenizer = TOKENIZERS[family]
    (tokens,) = tokenize(tokenizer, [f"a title {tokenizer.sep_token} the text"], 40)
    special = np.isin(tokens.ids, [tokenizer.cls_token_id, tokenizer.sep_token_id])
    assert special.sum() == 3
    assert ((tokens.words < 0) == special).all()


def test_a_tokenizer_that_does_not_know_words_is_refused():
    from transformers import CanineTokenizer

    with pytest.raises(ModelError, match="CanineTokenizer was given; expected a fast tokenizer"):
        tokenize(CanineTokenizer(), TEXTS[:1], 40)  # has no fast form
