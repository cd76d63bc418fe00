import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stzoo.data.beir import RetrievalDataset, read_beir, write_beir
from stzoo.data.qrels import MAX_GRADE, as_grade
from stzoo.data.texts import Texts
from stzoo.errors import DataError, OutputError, RecipeError

CORPUS = [{"_id": "d1", "title": "Wings", "text": "lift"}, {"_id": "d2", "title": "", "text": " drag "}]
QUERIES = {"q1": "what lifts", "q2": "what drags", "q3": "never judged"}
QRELS = {"test": {"q2": {"d2": 2}, "q1": {"d1": 1, "d2": 0}}, "dev": {"q3": {"d1": 1}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "set", CORPUS, QUERIES, QRELS)


def put(folder: Path, file: str, *lines: object) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / file).write_text(text, encoding="utf-8")


def test_a_written_set_is_read_back(folder):
    judged = read_beir(folder)
    assert (judged.name, judged.split, judged.folder, judged.notes) == ("set", "test", folder, ())
    assert read_beir(folder, name="cqadupstack/android").name == "cqadupstack/android"
    assert isinstance(judged.corpus_ids, Texts)
    assert isinstance(judged.passages, Texts)
    assert dict(zip(judged.corpus_ids, judged.passages, strict=True)) == {"d1": "Wings lift", "d2": "drag"}
    assert judged.queries == {"q1": "what lifts", "q2": "what drags"}
    assert judged.qrels == QRELS["test"]
    assert list(judged.qrels) == list(judged.queries)
    assert judged.judgements == 3
    assert read_beir(folder, "dev").queries == {"q3": "never judged"}


def test_passages_are_what_beir_encodes(folder):
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.models.util import extract_corpus_sentences

    judged = read_beir(folder)
    corpus, queries, qrels = GenericDataLoader(str(folder)).load("test")
    documents = [corpus[document] for document in judged.corpus_ids]
    assert judged.passages == extract_corpus_sentences(documents, sep=" ")
    assert (judged.queries, judged.qrels) == (queries, qrels)


def test_missing_and_null_fields_number_ids_and_integral_floats_are_read(folder):
    rows = [{"_id": 7, "text": "a"}, {"_id": "8", "title": None, "text": None}, {"_id": 9, "title": "b"}]
    put(folder, "corpus.jsonl", *rows, "")
    put(folder, "queries.jsonl", {"_id": 1, "text": "q"})
    put(folder, "qrels/test.tsv", "query-id\tcorpus-id\tscore", "1\t7\t1.0", "1\t8\t-1", "1\t7\t1")
    judged = read_beir(folder)
    assert (judged.corpus_ids, judged.passages) == (["7", "8", "9"], ["a", "", "b"])
    assert judged.qrels == {"1": {"7": 1, "8": -1}}


def test_gzipped_files_and_windows_lines_are_read_alike(folder):
    plain = read_beir(folder)
    for stem in ("corpus", "queries"):
        text = (folder / f"{stem}.jsonl").read_bytes()
        (folder / f"{stem}.jsonl").unlink()
        (folder / f"{stem}.jsonl.gz").write_bytes(
            gzip.compress(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
        )
    for file in list((folder / "qrels").iterdir()):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = read_beir(folder)
    assert packed == plain
    with pytest.raises(DataError, match=r"mean 'test'\? Available splits: dev, test\."):
        read_beir(folder, "tset")
    assert packed.fingerprint == plain.fingerprint


def test_a_task_of_several_over_one_corpus_is_read_by_its_name(folder):
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "qa.dev.tsv")
    judged = read_beir(folder / "qa", "dev")
    assert (judged.name, judged.split, judged.folder) == ("set-qa", "dev", folder)
    assert judged.qrels == QRELS["test"]
    with pytest.raises(DataError, match="Available splits: dev"):
        read_beir(folder / "qa", "test")


def test_a_set_is_named_by_its_folder_however_the_path_is_written(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert read_beir(".").name == "set"
    monkeypatch.chdir(folder / "qrels")
    assert read_beir("..").name == "set"


def test_the_fingerprint_changes_with_whatever_a_score_depends_on(folder):
    seen = {read_beir(folder).fingerprint, read_beir(folder, "dev").fingerprint}
    assert read_beir(folder).corpus_fingerprint == read_beir(folder, "dev").corpus_fingerprint
    put(folder, "qrels/test.tsv", "query-id\tcorpus-id\tscore", "q2\td2\t2", "q1\td1\t1", "q1\td2\t1")
    seen.add(read_beir(folder).fingerprint)
    put(folder, "queries.jsonl", *({"_id": query, "text": text + "?"} for query, text in QUERIES.items()))
    seen.add(read_beir(folder).fingerprint)
    put(folder, "corpus.jsonl", *CORPUS, {"_id": "d3", "text": "more"})
    seen.add(read_beir(folder).fingerprint)
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        *((name, True) for name in ("arguana", "ArguAna", "quora", "QuoraRetrieval", "NanoArguAna")),
        *((name, False) for name in ("scifact", "cranfield", "quora-like", "set-qa")),
    ],
)
def test_only_arguana_and_quora_share_ids(folder, name, shares):
    folder.rename(folder.with_name(name))
    assert read_beir(folder.with_name(name)).shares_ids is shares


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("corpus.jsonl", [CORPUS[0], "{oops"], r"corpus\.jsonl:2: invalid JSON"),
        ("corpus.jsonl", [CORPUS[0], "[1]"], r"corpus\.jsonl:2: a JSON list"),
        ("corpus.jsonl", [CORPUS[0], {"text": "x"}], r"corpus\.jsonl:2: no _id"),
        ("corpus.jsonl", [CORPUS[0], {"_id": 1.5, "text": "x"}], r"corpus\.jsonl:2: the _id 1\.5"),
        ("corpus.jsonl", [CORPUS[0], {"_id": True, "text": "x"}], r"corpus\.jsonl:2: the _id True"),
        ("corpus.jsonl", [CORPUS[0], {"_id": "", "text": "x"}], r"corpus\.jsonl:2: the _id ''"),
        (
            "corpus.jsonl",
            [CORPUS[0], "", CORPUS[0]],
            r"corpus\.jsonl:3: document id 'd1' for the second time",
        ),
        (
            "corpus.jsonl",
            ["", {"_id": 7, "text": "x"}, {"_id": "8", "text": "y"}, {"_id": "7", "text": "z"}],
            r"corpus\.jsonl:4: document id '7' for the second time",
        ),
        (
            "corpus.jsonl",
            [CORPUS[0], {"_id": "d2", "body": "x"}],
            r"corpus\.jsonl:2: document 'd2' without a text",
        ),
        ("corpus.jsonl", ["[" * 99999], r"corpus\.jsonl:1: invalid JSON .*nested more than 64 deep"),
        (
            "corpus.jsonl",
            [{"_id": "d1", "text": "\ud800"}],
            r"corpus\.jsonl:1: invalid JSON .*half of a surrogate pair.* in text",
        ),
        (
            "corpus.jsonl",
            [{"_id": "\udfff", "text": "x"}],
            r"corpus\.jsonl:1: invalid JSON .*half of a surrogate pair.* in _id",
        ),
        ("corpus.jsonl", [{"_id": "d1", "text": ["x"]}], r"corpus\.jsonl:1: a text of type list"),
        ("corpus.jsonl", [], r"corpus\.jsonl has no document"),
        ("queries.jsonl", [{"_id": "q1", "text": "x"}] * 2, r"queries\.jsonl:2: query id 'q1'"),
        ("queries.jsonl", [{"_id": i, "text": "x"} for i in "abcb"], r"queries\.jsonl:4: query id 'b'"),
        ("queries.jsonl", [{"_id": "q1"}], r"queries\.jsonl:1: query 'q1' without a text"),
        ("qrels/test.tsv", ["q1\td1\t1"], r"test\.tsv:1: a judgement in place of the header"),
        ("qrels/test.tsv", ["a\tb\tc", "q9\td1\t1"], r"test\.tsv:2: the unknown query 'q9'"),
        ("qrels/test.tsv", ["a\tb\tc", "q1\td9\t1"], r"test\.tsv:2: the unknown document 'd9'"),
        (
            "qrels/test.tsv",
            ["q9\td9\tc", "q1\td1\t1", "", "q2\td9\t1"],
            r"test\.tsv:4: the unknown document 'd9'",
        ),
        ("qrels/test.tsv", ["a\tb\tc", "q1\td1\t1.5"], r"test\.tsv:2: the score '1\.5'"),
        ("qrels/test.tsv", ["a\tb\tc", "q1\td1\tinf"], r"test\.tsv:2: the score 'inf'"),
        ("qrels/test.tsv", ["a\tb\tc", "q1\td1\t1_0"], r"test\.tsv:2: the score '1_0'"),
        (
            "qrels/test.tsv",
            ["q1\td1\t1_0", "q1\td1\t1"],
            r"test\.tsv:1: a judgement in place of the header",
        ),
        ("qrels/test.tsv", ["a\tb\tc", "q1\td1\t\uff11"], r"test\.tsv:2: the score '\uff11'"),
        ("qrels/test.tsv", ["a\tb\tc", "q1\td1\t1e1"], r"test\.tsv:2: the score '1e1'"),
        ("qrels/test.tsv", ["a\tb\tc", "q1\td1\t3000000000"], r"test\.tsv:2: .*3000000000.*at most 1000000"),
        (
            "qrels/test.tsv",
            ["a\tb\tc", f"q1\td1\t-{2**63}"],
            r"test\.tsv:2: the score '-9223372036854775808'",
        ),
        ("qrels/test.tsv", ["a\tb\tc", f"q1\td1\t{'9' * 9999}"], r"test\.tsv:2: the score .{99,200} at most"),
        ("qrels/test.tsv", ["a\tb\tc", "\td1\t1"], r"test\.tsv:2: an empty query id"),
        (
            "qrels/test.tsv",
            ["a\tb\tc", f"{'q' * 10**6}\td1\t1"],
            r"test\.tsv:2: the unknown query 'q{9,99} … q{9,99}' ",
        ),
        ("qrels/test.tsv", ["a\tb\tc", "q1 d1 1"], r"test\.tsv:2: 1 field;"),
        ("qrels/test.tsv", ["a\tb\tc", "q1\td1\t1", "q1\td1\t2"], r"test\.tsv:3: a second score"),
        ("qrels/test.tsv", ["a\tb\tc"], r"test\.tsv has no judgement"),
    ],
)
def test_a_line_that_does_not_hold_is_named(folder, file, lines, message):
    put(folder, file, *lines)
    with pytest.raises(DataError, match=message):
        read_beir(folder)


@given(st.text() | st.from_regex(r"[-+]?[0-9]{1,8}(\.0*)?", fullmatch=True))
def test_a_grade_is_what_python_and_c_read_alike(field):
    grade = as_grade(field)
    assert grade is None or (field.isascii() and grade == float(field) and abs(grade) <= MAX_GRADE)
    digits = field.strip(" ").isascii() and field.strip(" ").removeprefix("-").isdecimal()
    if digits and abs(int(field)) <= MAX_GRADE:
        assert grade == int(field)


JUDGED_BEYOND = ["a\tb\tc", "q1\td1\t1", "q1\tx1\t2", "q2\tx2\t1", "q9\td1\t1"]


@pytest.mark.parametrize(
    ("way", "lines", "qrels", "notes"),
    [
        (
            "drop",
            JUDGED_BEYOND[:3],
            {"q1": {"d1": 1}},
            ["1 judged document not in the corpus: left out"],
        ),
        (
            "drop",
            JUDGED_BEYOND,
            {"q1": {"d1": 1}},
            [
                "1 judged query not in queries.jsonl: left out (missing_judged: drop)",
                "2 judged documents not in the corpus: left out (missing_judged: drop), with 1 query without "
                "any other",
            ],
        ),
        (
            "not-found",
            JUDGED_BEYOND[:-1],
            {"q1": {"d1": 1, "x1": 2}, "q2": {"x2": 1}},
            ["2 judged documents not in the corpus: counted as not found (missing_judged: not-found)"],
        ),
    ],
)
def test_judgements_of_what_is_missing_are_treated_as_asked_and_noted(folder, way, lines, qrels, notes):
    put(folder, "qrels/test.tsv", *lines)
    judged = read_beir(folder, missing_judged=way)
    assert judged.qrels == qrels
    assert list(judged.queries) == list(qrels)
    assert [found.startswith(note) for found, note in zip(judged.notes, notes, strict=True)] == [True] * len(
        notes
    )


def test_what_is_missing_is_refused_with_a_way_on(folder):
    put(folder, "qrels/test.tsv", *JUDGED_BEYOND[:-1])
    with pytest.raises(
        DataError, match=r"test\.tsv:3: the unknown document 'x1' \(one of 2\).*--missing-judged drop"
    ):
        read_beir(folder)
    put(folder, "qrels/test.tsv", *JUDGED_BEYOND)
    with pytest.raises(
        DataError,
        match=r"test\.tsv:5: the unknown query 'q9'.*--missing-judged drop \(leave such judgements out\)\)",
    ):
        read_beir(folder, missing_judged="not-found")
    put(folder, "qrels/test.tsv", "a\tb\tc", "q2\tx2\t1")
    with pytest.raises(DataError, match="the corpus has none of the judged documents"):
        read_beir(folder, missing_judged="drop")
    with pytest.raises(RecipeError, match="expected one of error, drop, not-found"):
        read_beir(folder, missing_judged="ignore")


def test_queries_that_nothing_can_answer_are_noted(folder):
    put(folder, "queries.jsonl", {"_id": "q1", "text": " "}, {"_id": "q2", "text": "drag"})
    put(folder, "qrels/test.tsv", "a\tb\tc", "q1\td1\t1", "q2\td1\t0", "q2\td2\t-1")
    assert [note.partition(";")[0] for note in read_beir(folder).notes] == [
        "1 of 2 judged queries have an empty text",
        "1 of 2 judged queries have no relevant document (no grade above 0)",
    ]


def test_a_set_whose_queries_are_documents_is_recognised_without_its_name(folder):
    texts = {f"a{i}": f"argument {i} is as long as it needs to be" for i in range(4)}
    corpus = [{"_id": name, "title": "topic", "text": text} for name, text in texts.items()]
    qrels = {f"a{i}": {f"a{i + 1}": 1} for i in range(3)}
    judged = read_beir(write_beir(folder, corpus, texts, {"test": qrels}))
    assert judged.shares_ids
    assert (
        "3 of 3 queries are themselves in the corpus, under the same id; a document under" in judged.notes[0]
    )
    known = read_beir(folder, name="ArguAna")
    assert known.shares_ids
    assert known.notes == ()
    # not where such a document is judged relevant, nor where the same id has another text
    relevant = write_beir(folder, corpus, texts, {"test": {name: {name: 1} for name in qrels}})
    strangers = write_beir(
        folder.with_name("other"), corpus, dict.fromkeys(texts, "what is it"), {"test": qrels}
    )
    for other in (relevant, strangers):
        assert not read_beir(other).shares_ids
        assert read_beir(other).notes == ()


def test_documents_without_a_title_are_noted_where_others_have_one(folder):
    bare = [{"_id": "d3", "text": "x"}, {"_id": "d4", "title": None, "text": "y"}]
    put(folder, "corpus.jsonl", *CORPUS, "", *bare)
    note = "2 of 4 documents have no title, others do (the first: corpus.jsonl:4)"
    assert read_beir(folder).notes == (note,)
    put(folder, "corpus.jsonl", CORPUS[1] | {"_id": "d1"}, CORPUS[1], *bare)
    assert read_beir(folder).notes == ()


def test_documents_that_a_known_set_lacks_are_noted_not_refused(folder):
    def judge(*documents: str) -> None:
        put(folder, "qrels/test.tsv", "a\tb\tc", "q1\td1\t1", *(f"q2\t{name}\t1" for name in documents))

    judge("x1", "x2", "x3", "x4", "x5")
    judged = read_beir(folder, name="ArguAna")
    assert judged.notes == ("5 judged documents not in the corpus (known of ArguAna): never found",)
    assert list(judged.qrels["q2"]) == ["x1", "x2", "x3", "x4", "x5"]
    with pytest.raises(DataError, match=r"test\.tsv:3: the unknown document 'x1'"):
        read_beir(folder)
    judge("x1", "x2", "x3", "x4", "x5", "x6")
    with pytest.raises(DataError, match=r"test\.tsv:3: the unknown document 'x1'"):
        read_beir(folder, name="ArguAna")


# From what the process held before to its peak. Not ru_maxrss: a process inherits its parent's.
MEASURE = """
import re, sys
from pathlib import Path
from stzoo.data.beir import read_beir

def kib(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

small, large = map(Path, sys.argv[1:])
read_beir(small)
before = kib("VmRSS")
judged = read_beir(large)
taken = (kib("VmHWM") - before) * 1024
size = sum(len(text.encode()) for texts in (judged.corpus_ids, judged.passages) for text in texts)
print(taken, size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc shows no peak of memory here")
def test_reading_takes_at_most_a_fifth_more_memory_than_the_texts(folder, tmp_path):
    draw = random.Random(0)
    english = "dense retrieval of passages with one vector each; " * 900
    russian = "плотный поиск отрывков, naïve, одним вектором; " * 900

    def passage() -> str:
        start = draw.randrange(40000)
        return (russian if draw.random() < 0.2 else english)[start : start + int(draw.expovariate(1 / 300))]

    corpus = [{"_id": f"doc-{i}", "title": passage()[:30], "text": passage()} for i in range(180_000)]
    queries = {f"q{i}": f"a question, number {i}" for i in range(9_000)}
    large = write_beir(tmp_path / "large", corpus, queries, {"test": {"q1": {"doc-1": 1, "doc-2": 0}}})
    out = subprocess.run([sys.executable, "-c", MEASURE, folder, large], check=True, stdout=subprocess.PIPE)
    taken, size = map(int, out.stdout.split())
    assert size > 60e6
    assert taken < 1.2 * size


def test_bytes_that_are_no_text_are_named_by_line(folder):
    (folder / "corpus.jsonl").write_bytes(
        json.dumps(CORPUS[0]).encode() + b'\n{"_id": "d2", "text": "\xff"}\n'
    )
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: byte .* is not UTF-8"):
        read_beir(folder)


def test_a_gzip_file_that_breaks_off_is_named(folder):
    rows = (json.dumps({"_id": str(i), "text": os.urandom(9).hex()}) + "\n" for i in range(9999))
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress("".join(rows).encode())[:-99])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz is damaged after line \d"):
        read_beir(folder)


def test_a_split_that_is_not_there_lists_those_that_are(folder):
    with pytest.raises(DataError, match=r"no split 'tset'.*mean 'test'\? Available splits: dev, test\."):
        read_beir(folder, "tset")


def test_a_folder_that_is_not_there_or_no_set_is_an_error(folder, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_beir(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no corpus\.jsonl"):
        read_beir(tmp_path)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no queries\.jsonl"):
        read_beir(folder)


def test_writing_replaces_a_set_and_nothing_else(folder, tmp_path):
    write_beir(folder, CORPUS[:1], {"q": "x"}, {"test": {"q": {"d1": 1}}})
    assert read_beir(folder).corpus_ids == ["d1"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="has content that is not a BEIR data set"):
        write_beir(tmp_path / "mine", CORPUS, QUERIES, QRELS)
    with pytest.raises(DataError, match="tab or line break"):
        write_beir(tmp_path / "new", CORPUS, QUERIES, {"test": {"q1": {"a\tb": 1}}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "set"]


@pytest.mark.parametrize("name", ["scifact", "vaswani", "cranfield"])
def test_published_results_are_of_the_data_as_it_is_read_now(data, name):
    judged = read_beir(data / "beir" / name)
    results = list((Path(__file__).parents[2] / "benchmarks" / "results").rglob(f"{name}.json"))
    assert results
    for path in results:
        result = json.loads(path.read_text())
        assert result["dataset_revision"] == judged.corpus_fingerprint
        assert result["splits"]["test"]["fingerprint"] == judged.fingerprint


@pytest.mark.skipif("STZOO_DATA" not in os.environ, reason="STZOO_DATA does not name the real data")
def test_real_sets_have_their_known_counts():
    beir = Path(os.environ["STZOO_DATA"]) / "beir"

    def counts(judged: RetrievalDataset) -> tuple[int, int, int]:
        return len(judged.corpus_ids), len(judged.queries), judged.judgements

    assert counts(read_beir(beir / "scifact")) == (5183, 300, 339)
    assert counts(read_beir(beir / "scifact", "train")) == (5183, 809, 919)
    assert counts(read_beir(beir / "vaswani")) == (11429, 93, 2083)
    assert len(read_beir(beir.parent / "minikilt" / "qa-squad", "dev").queries) == 574
    cranfield = read_beir(beir / "cranfield")
    assert counts(cranfield) == (1400, 225, 1837)
    assert cranfield.passages.count("") == 2
