import gzip
import os
import random
import re
from dataclasses import replace

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.helpers import in_trec_order

from stzoo.data.beir import read_beir
from stzoo.data.ranking import rank
from stzoo.data.trec import check_ids, read_qrels, read_run, write_run
from stzoo.errors import DataError
from stzoo.evaluation.scoring import score

QRELS = {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}

# No ASCII white space, as in a run's fields; a byte order mark would be taken for the file's.
ids = st.text(min_size=1).filter(lambda name: not re.search(r"[ \t\n\v\f\r]|^\ufeff", name))
scores = st.floats(width=32, allow_nan=False).map(float)
runs = st.dictionaries(ids, st.dictionaries(ids, scores, min_size=1), min_size=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("trec") / "a.run"


@given(runs)
def test_a_run_is_read_back_to_the_last_bit_and_ir_measures_reads_the_same(path, run):
    ranked = rank(run)
    assert all(list(ranked[query]) == in_trec_order(run[query]) for query in run)
    write_run(path, ranked, "tag")
    again = rank(read_run(path))
    assert again == ranked == run
    assert [list(found) for found in again.values()] == [list(found) for found in ranked.values()]
    if any(name.split() != [name] for query in run for name in (query, *run[query])):
        return  # ir-measures splits at the white space of Unicode, unlike trec_eval
    # ir-measures keeps float64
    theirs = {
        (row.query_id, row.doc_id): np.float32(row.score) for row in ir_measures.read_trec_run(str(path))
    }
    assert theirs == {(query, name): value for query in run for name, value in run[query].items()}


def test_a_run_is_written_as_trec_lays_it_down(path):
    write_run(path, {"q1": {"d2": 1 / 3, "d1": -2.0}, "q2": {}}, "bm25")
    assert path.read_text() == "q1 Q0 d2 1 0.333333333 bm25\nq1 Q0 d1 2 -2 bm25\n"


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_ranks_and_the_order_of_lines_do_not_matter(path, ending):
    lines = [f"q{q} Q0 d{d} {d} {d % 7 + q / 3} x" for q in (1, 2) for d in range(50)]
    write = gzip.open if ending else open
    found = []
    for seed in range(2):
        random.Random(seed).shuffle(lines)
        with write(f"{path}{ending}", "wt") as file:
            file.write("\r\n\n".join(lines).replace(" ", "\t  "))
        found.append(read_run(f"{path}{ending}"))
    assert found[0] == found[1]
    assert list(rank(found[0])["q1"]) == list(rank(found[1])["q1"])
    assert list(found[0]["q1"]) != list(found[1]["q1"])
    assert score(QRELS, found[0]) == score(QRELS, found[1])
    assert rank(found[0])["q1"]["d8"] == np.float32(1 + 1 / 3)


@given(st.text() | st.floats().map(str) | st.from_regex(r"[0-9_.e+-]{1,6}", fullmatch=True))
def test_a_score_is_what_python_and_c_read_alike(path, text):
    field = "".join(text.split())
    path.write_text(f"q Q0 d 1 {field} x", encoding="utf-8")
    plain = field.isascii() and "_" not in field
    try:
        value = float(field)
    except ValueError:
        value = float("nan")
    try:
        found = rank(read_run(path))["q"]["d"]
    except DataError:
        assert not plain or np.isnan(value)
    else:
        assert plain
        with np.errstate(over="ignore"):
            assert found == np.float32(value)


def test_scores_are_kept_in_float32_as_trec_eval_keeps_them(path):
    path.write_text("q Q0 a 1 1.00000001 x\nq Q0 b 2 1e39 x\nq Q0 c 3 -inf x\n")
    assert rank(read_run(path)) == {"q": {"a": 1.0, "b": float("inf"), "c": float("-inf")}}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["q Q0 d 1 1.5 x", "q Q0 e 2 1.0"], r"a\.run:2: 5 fields; expected qid Q0 docid rank score tag"),
        (["q Q0 d 1 1.5 x", "", "q Q0 an id 2 1.0 x"], r"a\.run:3: 7 fields"),
        (["q Q0 d 1 high x"], r"a\.run:1: the score 'high'"),
        (["q Q0 d 1 1_000 x"], r"a\.run:1: the score '1_000'"),
        (["q Q0 d 1 \uff11 x"], r"a\.run:1: the score '\uff11'"),
        (["q Q0 d 1 1 x", "q Q0 e 2 NaN x"], r"a\.run:2: NaN as score"),
        (["q Q0 d 1 1 x", "r Q0 d 1 1 x", "q Q0 d 2 0 x"], r"a\.run:3: document 'd' .* for query 'q'"),
        (["", " "], r"a\.run has no results"),
    ],
)
def test_a_line_of_a_run_that_does_not_hold_is_named(path, lines, message):
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        read_run(path)


def test_a_file_that_is_not_there_is_named(path):
    for read in (read_run, read_qrels):
        with pytest.raises(DataError, match=r"none\.txt cannot be read"):
            read(path.with_name("none.txt"))


def test_judgements_are_read_in_both_layouts(path):
    path.write_text("q1 0 d1 1\nq1 0 d2 0\n\nq2\tQ0\td2   2\nq1 0 d1 1\n")
    assert read_qrels(path) == QRELS
    path.write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td2\t2.0\n")
    assert read_qrels(path) == QRELS
    path.with_name("a.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_qrels(path.with_name("a.gz")) == QRELS


def test_judgements_are_read_from_a_pipe():
    out, into = os.pipe()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(2000))]
    os.write(into, "\n".join(lines).encode())
    os.close(into)
    assert len(read_qrels(f"/dev/fd/{out}")) == 2000
    os.close(out)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["q\td\t1"], r"a\.run:1: 3 fields; expected qid iter docid grade, or BEIR's"),
        (["q 0 d 1", "q 0 d"], r"a\.run:2: 3 fields"),
        (["q 0 d 1", "q 0 e high"], r"a\.run:2: the score 'high'"),
        (["q 0 d 1", "", "q 0 d 2"], r"a\.run:3: a second score"),
        (["q 0 d 1_0"], r"a\.run:1: the score '1_0'"),
        (["query-id\tcorpus-id\tscore", "q\td\t9223372036854775808"], r"a\.run:2: .*at most 1000000"),
        (["query-id\tcorpus-id\tscore", "q\td\t1", "q\td"], r"a\.run:3: 2 fields"),
        (["query-id\tcorpus-id\tscore"], r"a\.run has no judgement"),
        ([], r"a\.run has no judgement"),
    ],
)
def test_a_line_of_qrels_that_does_not_hold_is_named(path, lines, message):
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        read_qrels(path)


def test_ids_with_white_space_are_refused(judged):
    plain = read_beir(judged)
    check_ids(plain)
    for broken in (
        replace(plain, queries={"q 1": "x"}),
        replace(plain, corpus_ids=["d1", "d\v2"]),
        replace(plain, corpus_ids=["d1", "\n"]),
        replace(plain, corpus_ids=["d1 "]),
    ):
        with pytest.raises(DataError, match="white space, which a TREC run file cannot represent"):
            check_ids(broken)


def test_real_judgements_are_those_of_the_folder(data):
    folder = data / "beir" / "scifact"
    assert read_qrels(folder / "qrels" / "test.tsv") == read_beir(folder).qrels
