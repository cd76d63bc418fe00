"""Cached tokens: the same as those of the texts, made once by any number of processes, cheap to read."""

import json
import pickle
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from support import processes

from stzoo.data.corpus import load_corpus
from stzoo.errors import PluginError
from stzoo.pretraining import token_cache
from stzoo.pretraining.objective import Objective
from stzoo.pretraining.pretrain import load_base
from stzoo.pretraining.token_cache import is_cacheable, load_tokens
from stzoo.testing import FAMILIES, sentences, tiny_backbone


class TwoTexts(Objective):
    """Reads a passage, a short view of it, and a list of its further texts."""

    weights = {"encoder": 1.0}
    columns = {"others": list[str]}

    def texts(self, row):
        return {"passage": row["text"], "start": row["text"][:20], "others": row.get("others") or []}

    def token_limit(self, view):
        return 8 if view == "start" else super().token_limit(view)


@pytest.fixture(scope="module")
def backbones():
    return {family: tiny_backbone(family) for family in FAMILIES}


def corpus_of(tmp_path, texts, **columns):
    lines = [
        {"_id": str(n), "text": text} | {name: values[n] for name, values in columns.items()}
        for n, text in enumerate(texts)
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = dict.fromkeys(columns, list[str])
    return load_corpus(path, min_words=1, cache=tmp_path / "cache", columns=kinds)


def rows_of(corpus, places):
    return [corpus.rows[place] for place in places]


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_cached_rows_are_collated_as_text_is(backbones, family, side, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "PART_ROWS", 7)
    monkeypatch.setattr(token_cache, "AT_ONCE", 3)
    monkeypatch.setattr(token_cache, "OPEN_FILES", 2)
    odd = [
        "a wing [SEP] of </s> a <s>",
        "東京は夜 e\u0301 \x00",
        "lift " * 500,
        "x" * 3000,
        "a",
        "[MASK]",
        "- -",
        "ß",
    ]
    texts = [*odd, *sentences(22)]
    others = [sentences(n % 4 if n < 20 else 0, seed=n) for n in range(len(texts))]  # none in the last parts
    corpus = corpus_of(tmp_path, texts, others=others)
    objective = TwoTexts(backbones[family])
    monkeypatch.setattr(objective.backbone.tokenizer, "padding_side", side)
    tokens = load_tokens(objective, corpus, cache=tmp_path)
    assert len(tokens) == len(corpus.rows)
    rng = np.random.default_rng(0)
    for _ in range(10):
        places = rng.integers(0, len(tokens), 5).tolist()
        assert same(objective.pad(tokens.__getitems__(places)), objective.collate(rows_of(corpus, places)))
    lengths = [int(objective.collate([row])["passage_attention_mask"].sum()) for row in corpus.rows]
    assert tokens.lengths.tolist() == lengths
    ids = objective.collate(rows_of(corpus, [3]))["start_input_ids"][0].tolist()
    assert tokens[3]["start_input_ids"] == ids  # a Dataset as any other
    again = pickle.loads(pickle.dumps(tokens))
    assert same(objective.pad(again.__getitems__([1, 9])), objective.pad(tokens.__getitems__([1, 9])))


def test_counts_are_of_the_whole_corpus(backbones, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "PART_ROWS", 4)
    objective = Objective(backbones["bert"])
    corpus = corpus_of(tmp_path, [*sentences(9), "lift " * 200, "東京 wing"])
    tokens = load_tokens(objective, corpus, cache=tmp_path)
    batch = objective.collate(list(corpus.rows))
    unknown = int((batch["passage_input_ids"] == objective.backbone.tokenizer.unk_token_id).sum())
    assert tokens.counts == {
        "passage": {
            "texts": 11,
            "tokens": int(batch["passage_attention_mask"].sum()),
            "truncated": 1,
            "unknown": unknown,
        }
    }
    assert unknown > 0
    assert "1 (9.1%) are truncated to 64 tokens" in tokens.describe("[UNK]")


def test_the_cache_is_used_again_until_something_that_decides_the_tokens_changes(
    backbones, tmp_path, monkeypatch
):
    objective = Objective(backbones["bert"])
    corpus = corpus_of(tmp_path, sentences(20))
    folder = load_tokens(objective, corpus, cache=tmp_path).parts.folder
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    def key(objective=objective, corpus=corpus):
        return load_tokens(objective, corpus, cache=tmp_path).parts.folder

    assert key() == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written

    class Upper(Objective):
        def texts(self, row):
            return {"passage": row["text"].upper()}

    class Named(Objective):
        def texts(self, row):
            return {"text": row["text"]}

    class Shorter(Objective):
        def token_limit(self, view):
            return super().token_limit(view) // 2

    kinds = [Upper, Named, Shorter]
    others = [key(kind(backbones["bert"])) for kind in kinds] + [key(Objective(backbones["roberta"]))]
    others.append(key(corpus=corpus_of(tmp_path, sentences(20, seed=1))))
    monkeypatch.setattr(objective.backbone.tokenizer, "truncation_side", "left")
    others.append(key())
    assert len({folder, *others}) == 1 + len(others)


def test_a_note_says_what_all_caches_take_once_that_is_much(backbones, tmp_path, monkeypatch, capsys):
    objective = Objective(backbones["bert"])
    load_tokens(objective, corpus_of(tmp_path, sentences(20)), cache=tmp_path)
    assert "delete" not in capsys.readouterr().err
    monkeypatch.setattr(token_cache, "NOTED_BYTES", 1)
    corpus = corpus_of(tmp_path, sentences(20, seed=1))
    folder = load_tokens(objective, corpus, cache=tmp_path).parts.folder
    noted = capsys.readouterr().err
    assert (
        f"the tokens are cached in {folder} (0.0 GB). {folder.parent} has 2 caches of tokens, 0.0 GB" in noted
    )
    load_tokens(objective, corpus, cache=tmp_path)
    assert "delete" not in capsys.readouterr().err


def test_a_damaged_part_is_made_again(backbones, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "PART_ROWS", 8)
    objective = Objective(backbones["bert"])
    corpus = corpus_of(tmp_path, sentences(20))
    tokens = load_tokens(objective, corpus, cache=tmp_path)
    expected = objective.pad(tokens.__getitems__(list(range(20))))
    names = [part.path for part in tokens.parts]
    del tokens
    names[0].write_bytes(names[0].read_bytes()[:-20])
    shutil.copy(names[2], names[1])
    names[2].write_bytes(b"")
    again = load_tokens(objective, corpus, cache=tmp_path)
    assert same(objective.pad(again.__getitems__(list(range(20)))), expected)


KILLED = """
import sys, time
from pathlib import Path
from stzoo.data.corpus import load_corpus
from stzoo.pretraining import token_cache
from stzoo.pretraining.objective import Objective
from stzoo.pretraining.pretrain import load_base
token_cache.PART_ROWS = 50
tokenise, slow = token_cache._Tokeniser.__call__, float(sys.argv[3])
def slowly(*args):
    time.sleep(slow)
    return tokenise(*args)
token_cache._Tokeniser.__call__ = slowly
folder = Path(sys.argv[1])
corpus = load_corpus(folder / "corpus.jsonl", min_words=1, cache=folder / "cache")
token_cache.load_tokens(Objective(load_base(sys.argv[2]).backbone), corpus, cache=folder)
"""


def parts_under(folder):
    return sorted((folder / "tokens").glob("*/part-*.arrow"))


def test_a_killed_process_loses_one_part_and_others_share_the_rest(base, tmp_path, monkeypatch):
    texts = sentences(400)
    corpus = corpus_of(tmp_path, texts)
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(base)]
    process = processes.Popen([*command, "0.5"])
    while len(parts_under(tmp_path)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in parts_under(tmp_path)}
    assert 2 <= len(kept) < 8
    pair = [processes.Popen([*command, "0.1"]) for _ in range(2)]
    assert [one.wait() for one in pair] == [0, 0]
    paths = parts_under(tmp_path)
    assert len(paths) == 8
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(paths[0].parent.glob(".*"))
    monkeypatch.setattr(token_cache, "PART_ROWS", 50)
    objective = Objective(load_base(str(base)).backbone)
    tokens = load_tokens(objective, corpus, cache=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    places = list(range(0, 400, 7))
    assert same(objective.pad(tokens.__getitems__(places)), objective.collate(rows_of(corpus, places)))


def test_every_row_must_have_the_same_views(backbones, tmp_path):
    class Sometimes(Objective):
        def texts(self, row):
            return {"passage": row["text"]} | ({"more": row["text"]} if "lift" in row["text"] else {})

    corpus = corpus_of(tmp_path, ["a wing", "the lift"])
    with pytest.raises(
        PluginError, match="returns the views passage of one row and passage, more of another"
    ):
        load_tokens(Sometimes(backbones["bert"]), corpus, cache=tmp_path)


def test_an_objective_with_a_collate_of_its_own_gets_text(backbones):
    class Own(Objective):
        def collate(self, rows):
            return self.tokenise([row["text"] for row in rows], "passage")

    assert is_cacheable(Objective(backbones["bert"]))
    assert not is_cacheable(Own(backbones["bert"]))
