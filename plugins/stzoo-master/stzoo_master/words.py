"""Word frequencies of a corpus: MASTER prefers to mask rare words, which are likely to be keywords.

The algorithm (Zhou et al., 2022, https://arxiv.org/abs/2212.07841):

1. count the words of the corpus once (`count_words`) and store them in a table (`write_table`, `read_table`);
2. weight each word of a batch by 1 / its count (`WordWeights`), for
`stzoo.pretraining.masking.hide_keywords`.

A word is what the tokenizer's pre-tokenizer splits off. The table has its readable form: both "Ġslipstream"
of a byte-level tokenizer and "▁slipstream" of a Unigram one are "slipstream".

Source: https://github.com/microsoft/SimXNS at 0163380, MASTER/README.md (how words are counted) and
MASTER/pretrain/data.py (how they are weighed).

Unlike:
    - Words are not defined by "##", so any fast tokenizer has words (see stzoo.pretraining.masking).
    - Words are looked up on the device by a hash of their token ids. As in the source, the rest of a word
      that truncation cuts in two is looked up as if it were a word.
    - All words that the tokenizer maps to [UNK] are counted together, and may be masked.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stzoo.data.corpus import tokenizer_fingerprint
from stzoo.errors import DataError
from stzoo.pretraining.masking import word_starts
from stzoo.utils.files import atomic_file

_FINGERPRINT = b"stzoo.tokenizer"
_GAP = re.compile(r"(?<=\S)(?= \S)")
_MAX_CHUNKS = 500_000  # in memory, about 60 MB


def count_words(texts: Iterable[str], tokenizer: Any) -> Counter[str]:
    """Counts the words of a corpus.

    Args:
        texts: Passages of the corpus, read once.
        tokenizer: A fast tokenizer.

    Returns:
        The number of occurrences of each word. Special tokens that a text contains literally are not counted.

    Raises:
        ModelError: If the tokenizer is not a fast one.
    """
    splitter = _Splitter(tokenizer)
    texts = iter(texts)
    first = list(islice(texts, 200))
    # Nearly all tokenizers begin a word at a single space. Then the chunks between spaces, which occur again
    # and again, are split only once.
    splits_at_spaces = all(
        list(splitter.split(text)) == [word for chunk in _GAP.split(text) for word in splitter.split(chunk)]
        for text in (*first, *splitter.added)
    )
    pretokens: Counter[str] = Counter()
    chunks: Counter[str] = Counter()

    def split_chunks() -> None:
        for chunk, count in chunks.items():
            for pretoken in splitter.split(chunk):
                pretokens[pretoken] += count
        chunks.clear()

    for text in chain(first, texts):
        if splits_at_spaces:
            chunks.update(_GAP.split(text))
        else:
            pretokens.update(splitter.split(text))
        if len(chunks) > _MAX_CHUNKS:
            split_chunks()
    split_chunks()

    counts: Counter[str] = Counter()
    for pretoken, count in pretokens.items():
        counts[splitter.surface(pretoken)] += count
    return counts


def write_table(path: str | Path, counts: Mapping[str, int], tokenizer: Any) -> None:
    """Writes counts as Parquet with the columns "word" (string) and "count" (int64), most frequent first.

    Args:
        path: Path to the file, which is written whole or not at all.
        counts: Number of occurrences of each word in the corpus.
        tokenizer: The tokenizer that split the words; its fingerprint is stored in the file.

    Raises:
        OutputError: If the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    table = pa.table(
        {
            "word": pa.array([word for word, _ in rows], pa.string()),
            "count": pa.array([count for _, count in rows], pa.int64()),
        }
    ).replace_schema_metadata({_FINGERPRINT: tokenizer_fingerprint(tokenizer)})
    with atomic_file(path) as draft:
        pq.write_table(table, draft, compression="zstd")


def read_table(path: str | Path, tokenizer: Any) -> tuple[list[str], np.ndarray]:
    """Reads a table of word counts. A table without a tokenizer's fingerprint is accepted for any tokenizer.

    Args:
        path: Path to a file of `write_table`, or any Parquet file with the same two columns.
        tokenizer: The tokenizer that will split the words.

    Returns:
        The words, and int64 [words], the number of occurrences of each.

    Raises:
        DataError: If the file does not exist or is not such a table, or another tokenizer split its words.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = "Make it with `stzoo prepare master --tokenizer BASE`."
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected a table of word counts. {hint}") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}). {hint}") from error
    columns = [(field.name, str(field.type).removeprefix("large_")) for field in table.schema]
    if columns != [("word", "string"), ("count", "int64")]:
        found_columns = ", ".join(f"{name}: {kind}" for name, kind in columns) or "none"
        raise DataError(
            f"{path} has the columns {found_columns}; expected word: string, count: int64. {hint}"
        )
    fingerprint = (table.schema.metadata or {}).get(_FINGERPRINT, b"").decode()
    if fingerprint and fingerprint != tokenizer_fingerprint(tokenizer):
        raise DataError(
            f"the words in {path} were split by another tokenizer. Make the table again with "
            "`stzoo prepare master --tokenizer BASE`, where BASE is the model that you train."
        )
    counts = table["count"]
    if not len(counts) or table["word"].null_count or counts.null_count or counts.to_numpy().min() < 1:
        raise DataError(f"{path} has no rows, an empty cell or a count below 1. {hint}")
    return table["word"].to_pylist(), counts.to_numpy()


class WordWeights(torch.nn.Module):
    """Weights each word of a batch by 1 / its count in the corpus; words that are not in the table weigh 1.

    Its tables move with the module from device to device, but are not part of its state_dict.

    Args:
        words: Words as `count_words` spells them.
        counts: Number of occurrences of each word, 1 or more.
        tokenizer: A fast tokenizer.

    Raises:
        ModelError: If the tokenizer is not a fast one.
    """

    hashes: Tensor
    counts: Tensor

    def __init__(self, words: Sequence[str], counts: Sequence[int] | np.ndarray, tokenizer: Any):
        super().__init__()
        splitter = _Splitter(tokenizer)
        ids: list[int] = []
        lengths, form_counts = [], []
        for word, count in zip(words, counts, strict=True):
            for form in splitter.forms(word):
                ids += form
                lengths.append(len(form))
                form_counts.append(int(count))
        numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
        numbers = numbers.unsqueeze(0)
        by_token = _hash(torch.tensor([ids], dtype=torch.int64), numbers)
        hashes, groups = by_token[word_starts(numbers)].unique(return_inverse=True)  # sorted
        # all words that the tokenizer maps to [UNK] are one word to the model
        totals = torch.zeros_like(hashes).scatter_add_(
            0, groups, torch.tensor(form_counts, dtype=torch.int64)
        )
        frequent = totals > 1  # the others weigh 1 anyway
        # the last entry matches no word; with it, every lookup has an entry to compare with
        self.register_buffer(
            "hashes", torch.cat([hashes[frequent], torch.tensor([2**63 - 1])]), persistent=False
        )
        self.register_buffer("counts", torch.cat([totals[frequent], torch.tensor([1])]), persistent=False)

    def forward(self, ids: Tensor, words: Tensor) -> Tensor:
        """Looks up the words of a batch.

        Args:
            ids: int64 [B, T], the token ids.
            words: int64 [B, T], the word that each token belongs to; negative for special tokens and padding.
                Neighbouring tokens with the same number form a word.

        Returns:
            float32 [B, T], 1 / count of each token's word; an arbitrary positive value where words is
            negative.
        """
        hashes = _hash(ids, words)
        nearest = torch.searchsorted(self.hashes, hashes)
        counts = torch.where(self.hashes[nearest] == hashes, self.counts[nearest], 1)
        return counts.float().reciprocal()


class _Splitter:
    """Splits texts into words as the tokenizer does, and maps the readable form of a word to token ids."""

    def __init__(self, tokenizer: Any):
        tokenizer_fingerprint(tokenizer)  # refuses a tokenizer that is not fast
        backend = tokenizer.backend_tokenizer
        self.normalise = backend.normalizer.normalize_str if backend.normalizer else str
        self.pre_tokenize = backend.pre_tokenizer.pre_tokenize_str if backend.pre_tokenizer else _unsplit
        self.decode = backend.decoder.decode if backend.decoder else "".join
        self.tokenize = backend.model.tokenize
        added = tokenizer.added_tokens_decoder.items()
        # the tokenizer splits these off first; the special ones are not words, each of the others is one
        special = [token for _, token in added if token.special]
        self.added = {
            self.normalise(token.content) if token.normalized else token.content: number
            for number, token in added
            if not token.special
        }
        self.special = _any_of(
            r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip for token in special
        )
        self.known = re.compile(f"({_any_of(map(re.escape, self.added)).pattern})")

    def split(self, text: str) -> Iterator[str]:
        """The words of a text in the tokenizer's internal form, such as "Ġslipstream"."""
        for part in self.special.split(text):
            for number, text in enumerate(self.known.split(self.normalise(part))):
                if number % 2:  # an added token
                    yield text
                elif text:
                    yield from map(itemgetter(0), self.pre_tokenize(text))

    def surface(self, pretoken: str) -> str:
        """The readable form of a word, without the space before it."""
        if pretoken in self.added:
            return pretoken
        text: str = self.decode([pretoken])
        if not text or text.isspace():
            return text or pretoken
        return text.removeprefix(" ")

    def forms(self, word: str) -> set[tuple[int, ...]]:
        """The token ids that a word may have in a text; they may depend on a space before it."""
        forms: set[tuple[int, ...]] = {(self.added[word],)} if word in self.added else set()
        # a word may also follow a bracket, without the space that the tokenizer otherwise adds
        candidates = {
            pretoken[start:]
            for text in (word, f" {word}")
            for pretoken, *_ in self.pre_tokenize(text)
            for start in (0, 1)
        }
        for pretoken in candidates - {""}:
            if self.surface(pretoken) == word:
                forms.add(tuple(piece.id for piece in self.tokenize(pretoken)))
        return forms


def _unsplit(text: str) -> list[tuple[str]]:
    return [(text,)]


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of these, the longest first; without patterns it matches nothing."""
    return re.compile("|".join(sorted(patterns, key=len, reverse=True)) or "(?!)")


def _hash(ids: Tensor, words: Tensor) -> Tensor:
    """A hash of the ids of each token's word, in their order: int64 [B, T]."""
    starts = word_starts(words)
    position = torch.arange(ids.shape[1], device=ids.device)
    slot = (starts.cumsum(1) - 1).clamp(min=0)
    first = torch.zeros_like(ids).scatter_add_(1, slot, position * starts).gather(1, slot)
    mixed = (ids << 20) + position - first  # each id with its position in the word
    for factor in (-0x61C8864680B583EB, 0x369DEA0F31A53F85, -0x4B47D0C5B3A1E6A3):  # odd; int64 wraps around
        mixed = mixed * factor
        mixed = mixed ^ (mixed >> 32)
    return torch.zeros_like(ids).scatter_add_(1, slot, mixed * (words >= 0)).gather(1, slot)
