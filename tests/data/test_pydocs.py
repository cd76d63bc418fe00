import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from stzoo.data import pydocs
from stzoo.errors import DataError


def words(text):
    return pydocs._words(text)


def test_the_corpus_is_large_enough_to_learn_from_and_to_measure_on():
    rows, queries, qrels = pydocs.beir()
    assert len(pydocs.passages()) > 3000
    assert len(rows) > 1500
    assert len(qrels["test"]) >= 300
    shares = {split: len(found) / len(queries) for split, found in qrels.items()}
    assert shares == pytest.approx({"train": 0.80, "dev": 0.05, "test": 0.15}, abs=0.02)


def test_a_known_docstring_is_split_into_summary_and_rest():
    (pair,) = [pair for pair in pydocs.pairs() if pair.passage_id == "shutil.copytree"]
    assert pair.query == "Recursively copy a directory tree and return the destination directory."
    assert pair.passage.startswith("If exception(s) occur, an Error is raised")


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("Return the first thing of all. {}", "Return the first thing of all."),
        ("Return the first\n    thing of all\n\n{}", "Return the first thing of all"),
        ("Read a thing, e.g. A or B, and more. {}", "Read a thing, e.g. A or B, and more."),
        ("Read the file version 2.1 of it. {}", "Read the file version 2.1 of it."),
        ("Too short.\n\n{}", ""),
        ("read(a, b) -> the thing it reads\n\n{}", ""),
        ("Returns one of the following things:\n\n{}", ""),
        ("atom = [CFWS] and 1*atext [CFWS]\n\n{}", ""),
        (">>> Say the thing again\n\n{}", ""),
    ],
)
def test_only_prose_is_a_summary(text, summary):
    rest = "The rest is long enough. " * 4
    assert pydocs._split(text.format(rest)) == (summary, rest.strip() if summary else "")


def test_a_short_rest_makes_no_pair():
    assert pydocs._split("Return the next thing of all.\n\nOr None if there is none.") == ("", "")


def test_no_query_stands_in_any_passage_that_is_searched():
    text = " | ".join(words(row["text"]) for row in pydocs.beir()[0])
    found = [query for query in pydocs.beir()[1].values() if f" {words(query)} " in f" {text} "]
    assert found == []


def test_queries_and_passages_and_their_ids_are_unique():
    rows, queries, qrels = pydocs.beir()
    for values in (
        [words(query) for query in queries.values()],
        [words(row["text"]) for row in rows],
        [row["_id"] for row in rows] + list(queries),
        [doc.name for doc in pydocs.docstrings()],
        [query for found in qrels.values() for query in found],
    ):
        assert len(set(values)) == len(values)


def test_queries_and_passages_are_long_enough_to_be_read():
    rows, queries, _ = pydocs.beir()
    assert all(4 <= len(words(query).split()) <= 30 for query in queries.values())
    assert all(len(row["text"].split()) >= pydocs.REST_WORDS for row in rows)
    assert all(len(row["text"].split()) >= 8 for row in pydocs.passages())


def test_every_pair_is_judged_and_every_judgement_is_a_pair():
    rows, queries, qrels = pydocs.beir()
    texts = {row["_id"]: row["text"] for row in rows}
    judged = {
        (queries[q], texts[d]) for found in qrels.values() for q, grades in found.items() for d in grades
    }
    assert judged == {(pair.query, pair.passage) for pair in pydocs.pairs()}
    assert {words(doc.rest) for doc in pydocs.docstrings() if doc.summary} >= {
        words(t) for t in texts.values()
    }
    # Both kinds of sharing are there: one query of several passages, one passage of several queries.
    assert len(judged) > len(queries)
    assert len(judged) > len(rows)


def test_the_split_is_a_hash_of_the_summary():
    for pair in pydocs.pairs()[:50]:
        digest = hashlib.sha256(words(pair.query).encode()).hexdigest()
        assert pair.id == "q" + digest[:12]
        share = int(digest[:8], 16) / 16**8
        assert pair.split == ("train" if share < 0.8 else "dev" if share < 0.85 else "test")


def test_pre_training_reads_no_held_out_query_but_every_held_out_rest():
    text = " | ".join(words(row["text"]) for row in pydocs.passages())
    for pair in pydocs.pairs():
        if pair.split != "train":
            assert f" {words(pair.query)} " not in f" {text} "
    rests = {words(pair.passage) for pair in pydocs.pairs() if pair.split == "test"}
    assert sum(f" {rest} " in f" {text} " for rest in rests) > 0.97 * len(rests)


def test_whole_docstrings_are_given_where_no_query_is_held_out():
    whole, held = pydocs.passages(()), pydocs.passages()
    text = " | ".join(words(row["text"]) for row in whole)
    assert all(f" {words(pair.query)} " in f" {text} " for pair in pydocs.pairs())
    assert len(whole) > len(held) > 0.97 * len(whole)
    assert len({words(row["text"]) for row in held}) == len(held)


def test_the_library_is_read_and_not_run_and_read_the_same_every_time():
    code = (
        "import sys, hashlib, json; from stzoo.data import pydocs; before = set(sys.modules)\n"
        "text = json.dumps([pydocs.passages(), pydocs.beir()]); new = set(sys.modules) - before\n"
        "print(hashlib.sha256(text.encode()).hexdigest(), sorted(new & {'this', 'antigravity', 'turtle'}))"
    )
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "1"},
    )
    ours = hashlib.sha256(json.dumps([pydocs.passages(), pydocs.beir()]).encode()).hexdigest()
    assert child.stdout.split() == [ours, "[]"], child.stderr
    assert child.stderr == ""


def test_tests_and_installed_packages_are_no_part_of_the_library():
    names = {path.name for path in pydocs.source_files()}
    assert "shutil.py" in names
    folders = {part for path in pydocs.source_files() for part in path.parts[-5:-1]}
    assert not folders & {"site-packages", "dist-packages", "test", "tests", "__pycache__"}


def test_an_interpreter_without_sources_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(DataError, match="has no Python files"):
        pydocs.source_files()


def test_the_written_folder_is_a_judged_set(tmp_path):
    from stzoo.data.beir import read_beir

    folder = pydocs.write_pydocs(tmp_path / "pydocs")
    rows, queries, qrels = pydocs.beir()
    for split in pydocs.SPLITS:
        judged = read_beir(folder, split)
        assert judged.qrels == qrels[split]
        assert judged.passages == [row["text"] for row in rows]
        assert judged.queries == {query: queries[query] for query in qrels[split]}
