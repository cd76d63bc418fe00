"""How often each word stands in a corpus: MASTER hides rare words, the likely keywords, before common ones.

The algorithm (Zhou et al., 2022, https://arxiv.org/abs/2212.07841):

1. count the words of the corpus once (`count_words`) and keep them as a table (`write_table`, `read_table`);
2. weigh each word of a batch by 1 / its count (`WordWeights`), for `stzoo.pretraining.masking.hide_keywords`.

A word is what the tokenizer splits off before it cuts the pieces. In the table it stands as one reads it: the
"Ġslipstream" of a byte-level tokenizer and the "▁slipstream" of a Unigram one are both "slipstream".

Source: https://github.com/microsoft/SimXNS at 0163380, MASTER/README.md (how words are counted) and
MASTER/pretrain/data.py (how they are weighed).

Unlike:
    - A word is not what "##" joins, so any fast tokenizer has words (see stzoo.pretraining.masking).
    - Words are known by a hash of their pieces' ids, so that they are looked up on the device. As in the
      source, what is left of a word that the end of a passage cuts in two is looked up as it is.
    - What the tokenizer does not know and maps to one [UNK] is counted together, and may be hidden.
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
from stzoo.utils.files import atomic_file

_FINGERPRINT = b"stzoo.tokenizer"
_GAP = re.compile(r"(?<=\S)(?= \S)")
_HELD = 500_000  # chunks in memory, about 60 MB


def count_words(texts: Iterable[str], tokenizer: Any) -> Counter[str]:
    """Counts the words of a corpus, one text after the other.

    Args:
        texts: the passages.
        tokenizer: a fast tokenizer.

    Returns:
        How often each word stands in the texts. Special tokens that a text spells out are not counted.

    Raises:
        ModelError: if it is no fast tokenizer.
    """
    splitter = _Splitter(tokenizer)
    texts = iter(texts)
    first = list(islice(texts, 200))
    # Nearly all tokenizers begin a word at a space that stands alone. Then what is between two of them, which
    # comes again and again, is split only once.
    apart = all(
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
        if apart:
            chunks.update(_GAP.split(text))
        else:
            pretokens.update(splitter.split(text))
        if len(chunks) > _HELD:
            split_chunks()
    split_chunks()

    counts: Counter[str] = Counter()
    for pretoken, count in pretokens.items():
        counts[splitter.surface(pretoken)] += count
    return counts


def write_table(path: str | Path, counts: Mapping[str, int], tokenizer: Any) -> None:
    """Writes counts as Parquet, columns "word" (string) and "count" (int64), the most frequent first.

    Args:
        path: the file, written whole or not at all.
        counts: how often each word stands in the corpus.
        tokenizer: what split the words; the file remembers its fingerprint.

    Raises:
        OutputError: if the file cannot be written.
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
    """Reads a table of words; one of the user's own, which remembers no tokenizer, is taken as it is.

    Args:
        path: a file of `write_table`, or any Parquet file of the same two columns.
        tokenizer: what is to split the words.

    Returns:
        The words, and int64 [words], how often each stands in the corpus.

    Raises:
        DataError: if there is no such file, it is no such table, or another tokenizer split its words.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = "Make it with `stzoo prepare master --tokenizer BASE`."
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected a table of word counts. {again}") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} could not be read as Parquet ({error}). {again}") from error
    columns = [(field.name, str(field.type).removeprefix("large_")) for field in table.schema]
    if columns != [("word", "string"), ("count", "int64")]:
        found = ", ".join(f"{name}: {kind}" for name, kind in columns) or "none"
        raise DataError(f"{path} has the columns {found}; expected word: string, count: int64. {again}")
    made_by = (table.schema.metadata or {}).get(_FINGERPRINT, b"").decode()
    if made_by and made_by != tokenizer_fingerprint(tokenizer):
        raise DataError(
            f"The words of {path} were split by another tokenizer. Make the table anew with "
            "`stzoo prepare master --tokenizer BASE`, where BASE is what you train."
        )
    counts = table["count"]
    if not len(counts) or table["word"].null_count or counts.null_count or counts.to_numpy().min() < 1:
        raise DataError(f"{path} has no rows, an empty cell or a count below 1. {again}")
    return table["word"].to_pylist(), counts.to_numpy()


class WordWeights(torch.nn.Module):
    """Weighs each word of a batch by 1 / its count in the corpus; words that are not in the table weigh 1.

    Its tables follow the module from device to device and stay out of its state_dict.

    Args:
        words: the words, as `count_words` spells them.
        counts: how often each stands in the corpus, 1 or more.
        tokenizer: a fast tokenizer.

    Raises:
        ModelError: if it is no fast tokenizer.
    """

    hashes: Tensor
    counts: Tensor

    def __init__(self, words: Sequence[str], counts: Sequence[int] | np.ndarray, tokenizer: Any):
        super().__init__()
        splitter = _Splitter(tokenizer)
        ids: list[int] = []
        lengths, times = [], []
        for word, count in zip(words, counts, strict=True):
            for form in splitter.forms(word):
                ids += form
                lengths.append(len(form))
                times.append(int(count))
        numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
        each = _hash(torch.tensor([ids], dtype=torch.int64), numbers.unsqueeze(0))[0]
        hashes, which = each[_starts(numbers.unsqueeze(0))[0]].unique(return_inverse=True)  # sorted
        # what the tokenizer does not know has one id, and is one word to the model
        totals = torch.zeros_like(hashes).scatter_add_(0, which, torch.tensor(times, dtype=torch.int64))
        often = totals > 1  # the others weigh 1 as it is
        # the last entry, never to be found, so that there is always one to look at
        self.register_buffer(
            "hashes", torch.cat([hashes[often], torch.tensor([2**63 - 1])]), persistent=False
        )
        self.register_buffer("counts", torch.cat([totals[often], torch.tensor([1])]), persistent=False)

    def forward(self, ids: Tensor, words: Tensor) -> Tensor:
        """Looks up the words of a batch.

        Args:
            ids: int64 [B, T].
            words: int64 [B, T], the word each token belongs to; negative for special tokens and padding. A
                run of one number is a word.

        Returns:
            float32 [B, T], 1 / count of each token's word; anything above 0 where words is negative.
        """
        hashes = _hash(ids, words)
        at = torch.searchsorted(self.hashes, hashes)
        counts = torch.where(self.hashes[at] == hashes, self.counts[at], 1)
        return counts.float().reciprocal()


class _Splitter:
    """Cuts texts into words as the tokenizer does, and gives a word's ids in text from how one reads it."""

    def __init__(self, tokenizer: Any):
        tokenizer_fingerprint(tokenizer)  # which only fast ones have
        backend = tokenizer.backend_tokenizer
        self.normalise = backend.normalizer.normalize_str if backend.normalizer else str
        self.pre_tokenize = backend.pre_tokenizer.pre_tokenize_str if backend.pre_tokenizer else _whole
        self.decode = backend.decoder.decode if backend.decoder else "".join
        self.tokenize = backend.model.tokenize
        added = tokenizer.added_tokens_decoder.items()
        # the tokenizer looks for these before it splits: special ones are no words, the others one each
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
        """The words of a text as the tokenizer spells them inside, such as "Ġslipstream"."""
        for part in self.special.split(text):
            for at, inner in enumerate(self.known.split(self.normalise(part))):
                if at % 2:
                    yield inner
                elif inner:
                    yield from map(itemgetter(0), self.pre_tokenize(inner))

    def surface(self, pretoken: str) -> str:
        """The word as one reads it, without the space that stood before it."""
        if pretoken in self.added:
            return pretoken
        text: str = self.decode([pretoken])
        if not text or text.isspace():
            return text or pretoken
        return text.removeprefix(" ")

    def forms(self, word: str) -> set[tuple[int, ...]]:
        """The ids that a word has in text, which may differ where a space stands before it."""
        found: set[tuple[int, ...]] = {(self.added[word],)} if word in self.added else set()
        # where a space is always put in front, words stand without it too, as after a bracket
        candidates = {
            pretoken[start:]
            for text in (word, f" {word}")
            for pretoken, *_ in self.pre_tokenize(text)
            for start in (0, 1)
        }
        for pretoken in candidates - {""}:
            if self.surface(pretoken) == word:
                found.add(tuple(piece.id for piece in self.tokenize(pretoken)))
        return found


def _whole(text: str) -> list[tuple[str]]:
    return [(text,)]


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these, the longest where several begin; nothing where there are none."""
    return re.compile("|".join(sorted(patterns, key=len, reverse=True)) or "(?!)")


def _starts(words: Tensor) -> Tensor:
    """Tells where words begin: bool [B, T], True at the first token of each."""
    starts = words >= 0
    starts[:, 1:] &= words[:, 1:] != words[:, :-1]
    return starts


def _hash(ids: Tensor, words: Tensor) -> Tensor:
    """A number for the pieces of each token's word, in their order: int64 [B, T]."""
    starts = _starts(words)
    place = torch.arange(ids.shape[1], device=ids.device)
    slot = (starts.cumsum(1) - 1).clamp(min=0)
    first = torch.zeros_like(ids).scatter_add_(1, slot, place * starts).gather(1, slot)
    mixed = (ids << 20) + place - first  # each piece with its place in the word
    for factor in (-0x61C8864680B583EB, 0x369DEA0F31A53F85, -0x4B47D0C5B3A1E6A3):  # odd; int64 wraps around
        mixed = mixed * factor
        mixed = mixed ^ (mixed >> 32)
    return torch.zeros_like(ids).scatter_add_(1, slot, mixed * (words >= 0)).gather(1, slot)
