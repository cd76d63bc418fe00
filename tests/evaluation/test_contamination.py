import gzip
import json
import random
import re
import statistics
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from stzoo.cli import app
from stzoo.data.beir import read_beir, write_beir
from stzoo.errors import DataError, MissingExtraError, OutputError, RecipeError
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.contamination import LIST, REPORT, contamination
from stzoo.evaluation.contamination.overlap import Index, words
from stzoo.evaluation.contamination.result import as_json, table

PASSAGE = (
    "The lift of a wing in a slipstream grows with the velocity of the propeller, as was measured again and "
    "again in the large wind tunnel of the institute during the summer"
)
CORPUS = [
    {"_id": "wing", "title": "Lift", "text": PASSAGE},
    {"_id": "cell", "title": "", "text": "Mitochondria release cytochrome during apoptosis of the cell."},
    {"_id": "rates", "title": "", "text": "Interest rates rose while unemployment fell in most countries."},
    {"_id": "other", "title": "", "text": "A treaty that nobody asks for was signed by twelve kingdoms."},
]
QUERIES = {
    "q1": "what does the lift of a wing depend on",
    "q2": "what do mitochondria release when a cell dies",
    "q3": "how did unemployment change with interest rates",
    "q4": "which kingdoms signed",
    "t1": "who measured the wing in the tunnel",
}
TEST = {"q1": {"wing": 1, "cell": 0}, "q2": {"cell": 2}, "q3": {"rates": 1}, "q4": {"wing": 0, "rates": 1}}


@pytest.fixture
def tested(tmp_path) -> Path:
    train = {"t1": {"wing": 1, "rates": 0}}
    return write_beir(tmp_path / "tested", CORPUS, QUERIES, {"test": TEST, "train": train})


def write(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def found_in(path, tested, **options):
    return [
        (hit.kind, hit.id, hit.how, hit.line, hit.field)
        for hit in contamination(path, data=tested, **options).hits
    ]


def shown(report, width=80):
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width).print(table(report))
    return out.getvalue()


def test_words_are_compared_without_case_punctuation_or_widths():
    assert words("Don't — \uff33\uff34\uff2f\uff30: the ﬁrst_Straße (2.5%)!") == words(
        "don t stop the first_strasse 2 5"
    )
    assert words("東京タワー is tall") == ["東", "京", "タ", "ワ", "ー", "is", "tall"]
    assert words(" … ") == []
    assert words("cafe\u0301 हिन्दी") == ["café", "हिन्दी"]


texts = st.lists(st.lists(st.sampled_from("abcde"), max_size=9).map(" ".join), min_size=1, max_size=5)


@given(texts, texts, st.integers(2, 4), st.sampled_from([0.5, 0.8, 1.0]))
@settings(max_examples=150)
def test_what_is_found_is_what_the_definitions_say(indexed, streamed, ngram, jaccard):
    def runs(text):
        return {tuple(text.split()[i : i + ngram]) for i in range(len(text.split()) - ngram + 1)}

    expected, alike = {}, {}
    for i, text in enumerate(streamed):
        for j, other in enumerate(indexed):
            if text == other and text:
                expected[i, j, "exact"] = 1.0
            elif text and other:
                if both := runs(text) & runs(other):
                    expected[i, j, "ngram"] = len(both) / len(runs(other))
                a, b = set(text.split()), set(other.split())
                if len(a & b) / len(a | b) >= jaccard:
                    alike[i, j, "minhash"] = len(a & b) / len(a | b)
    found = {tuple(match[:3]): match.similarity for match in Index(indexed, ngram, jaccard).find(streamed)}
    near = {key: value for key, value in found.items() if key[2] == "minhash"}
    assert {key: value for key, value in found.items() if key not in near} == pytest.approx(expected)
    # candidates are drawn by LSH: none is wrong, and of equal sets none is missed
    assert near == pytest.approx({key: alike.get(key) for key in near})
    assert {key for key, value in alike.items() if value == 1} <= near.keys()
    assert {tuple(m[:3]) for m in Index(indexed, ngram, None).find(streamed)} == expected.keys()


def test_a_pair_right_at_the_threshold_is_found_99_times_in_100():
    draw = random.Random(0)
    for jaccard, shared in ((0.5, 20), (0.8, 32), (0.9, 36)):
        firsts, seconds = [], []
        for _ in range(500):  # pairs of 40 words together, of which `shared` are in both
            pool = [f"{draw.getrandbits(64):x}" for _ in range(40)]
            half = (40 + shared) // 2
            firsts.append(" ".join(pool[:half]))
            seconds.append(" ".join(pool[:shared] + pool[half:]))
        matches = list(Index(firsts, 99, jaccard).find(seconds))
        assert {match.similarity for match in matches} == {jaccard}
        assert {match.text - match.found for match in matches} == {0}
        assert len(matches) / 500 >= 0.985


def test_queries_and_relevant_passages_are_found_whole_in_part_and_nearly(tested, tmp_path):
    train = write(
        tmp_path / "train.jsonl",
        {"text": "Nothing of the kind."},
        {
            "query": "WHICH KINGDOMS -- signed?",
            "pos": ["x", "mitochondria of mammals release cytochrome during apoptosis of the cell"],
        },
        {"nested": [{"deep": "In short: " + " ".join(PASSAGE.split()[2:18]).upper()}]},
        {"text": "which, kingdoms signed", "_id": "which kingdoms signed"},
        {"text": "A treaty that nobody asks for was signed by twelve kingdoms."},
        {"text": "what do mitochondria release when a cell dies then"},
    )
    report = contamination(str(train), data=tested)
    assert [(hit.kind, hit.id, hit.how, hit.places, hit.line, hit.field) for hit in report.hits] == [
        ("query", "q2", "minhash", 1, 6, "text"),
        ("query", "q4", "exact", 2, 2, "query"),
        ("passage", "wing", "ngram", 1, 3, "nested[0].deep"),
        ("passage", "cell", "minhash", 1, 2, "pos[1]"),
    ]
    by_id = {hit.id: hit for hit in report.hits}
    assert by_id["q2"].similarity == pytest.approx(8 / 9)
    assert by_id["q4"].similarity == 1.0
    assert by_id["wing"].similarity == pytest.approx(
        4 / 21
    )  # 16 words give 4 runs of 13, "Lift" and 32 give 21
    assert by_id["cell"].similarity == pytest.approx(8 / 9)
    assert by_id["q4"].text == QUERIES["q4"]
    assert by_id["q4"].training_text == "WHICH KINGDOMS -- signed?"
    assert all(hit.file == str(train) for hit in report.hits)
    assert (report.queries, report.passages, report.texts) == (4, 3, 8)
    assert report.found_queries == ("q2", "q4")
    assert report.found_passages == ("wing", "cell")
    # "cell" is judged 0 for q1, "wing" 0 for q4
    assert report.contaminated == ("q1", "q2", "q4")
    assert report.counts == {
        "query": {"exact": 1, "ngram": 0, "minhash": 1, "any": 2},
        "passage": {"exact": 0, "ngram": 1, "minhash": 1, "any": 2, "only_negatives": 0},
    }
    without = contamination([train], data=tested, minhash=False, ngram=3)
    assert [(hit.id, hit.how) for hit in without.hits] == [
        *(("q1", "ngram"), ("q2", "ngram"), ("q4", "exact")),
        *(("wing", "ngram"), ("cell", "ngram")),
    ]
    assert without.jaccard is None


def test_passages_that_are_negatives_only_are_counted_apart(tested, tmp_path):
    wing, cell, rates = (f"{row['title']} {row['text']}".strip() for row in CORPUS[:3])
    rows = [
        {"query": "x", "pos": ["y"], "neg": [wing, cell]},
        {"anchor": "x", "positive": cell, "negative_1": rates},
    ]
    report = contamination(write(tmp_path / "train.jsonl", *rows), data=tested, minhash=False)
    assert report.found_passages == ("cell",)
    assert report.only_negatives == ("wing", "rates")
    assert report.contaminated == ("q2",)
    by_id = {hit.id: hit for hit in report.hits if hit.how == "exact"}
    assert {id_: (hit.places, hit.negatives, hit.field) for id_, hit in by_id.items()} == {
        "wing": (1, 1, "neg[0]"),
        "cell": (2, 1, "positive"),
        "rates": (1, 1, "negative_1"),
    }
    assert as_json(report)["counts"]["passage"]["only_negatives"] == 2
    assert re.search(r"passages, as negatives only +2 +3", shown(report))


def test_the_most_similar_place_is_listed(tested, tmp_path):
    parts = [" ".join(PASSAGE.split()[:count]) for count in (15, 25, 20, 25)]
    (hit,) = contamination(write(tmp_path / "train.txt", *parts), data=tested, minhash=False).hits
    assert (hit.places, hit.line, hit.similarity) == (4, 2, pytest.approx(13 / 21))


def test_every_form_of_training_data_is_read(tested, tmp_path):
    query = QUERIES["q4"]
    rows = [{"query": "x", "pos": ["y"], "neg": ["z", query]}, {"text": query, "title": None}]
    expected = [("query", "q4", "exact", 2, "text")]  # which counts for more than the negative before it
    assert found_in(write(tmp_path / "a.jsonl", *rows), tested) == expected
    assert found_in(write(tmp_path / "b.jsonl.gz", *rows), tested) == expected
    pq.write_table(pa.Table.from_pylist([{"n": 1, **row} for row in rows[:1]] * 1500), tmp_path / "c.parquet")
    (hit,) = contamination(tmp_path / "c.parquet", data=tested).hits
    assert (hit.places, hit.line, hit.field) == (1500, 1, "neg[1]")
    last = [{"n": 1, "anchor": "x"}] * 1234 + [{"n": 2, "anchor": query}]
    pq.write_table(pa.Table.from_pylist(last), tmp_path / "d.parquet")
    assert found_in(tmp_path / "d.parquet", tested) == [("query", "q4", "exact", 1235, "anchor")]
    for name in ("e.txt", "f.txt.gz"):
        assert found_in(write(tmp_path / name, "x", "", query), tested) == [("query", "q4", "exact", 3, "")]
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "one.jsonl", {"a": "x"})
    write(tmp_path / "folder" / "two.v2.txt", query)
    assert found_in(tmp_path / "folder", tested) == [("query", "q4", "exact", 1, "")]


def test_a_title_and_its_text_are_one(tmp_path):
    short = {"_id": "s", "title": "Cells", "text": "They die."}
    data = write_beir(tmp_path / "titled", [short], {"q": "how?"}, {"test": {"q": {"s": 1}}})
    train = write(tmp_path / "train.jsonl", {"passages": [{"title": "Cells", "text": "They die."}]})
    assert found_in(train, data) == [("passage", "s", "exact", 1, "passages[0].text")]
    alone = write(tmp_path / "alone.jsonl", {"title": "Cells: they die!", "text": None})
    assert found_in(alone, data) == [("passage", "s", "exact", 1, "title")]


def test_a_beir_folder_is_trained_on_by_its_train_split(tested):
    # t1 and the passage relevant to it, "wing", not "rates", which it judges 0, nor the test queries
    report = contamination(tested, data=tested)
    assert [(hit.kind, hit.id, hit.how, Path(hit.file).name) for hit in report.hits] == [
        ("passage", "wing", "exact", "corpus.jsonl")
    ]
    assert report.texts == 2
    assert report.contaminated == ("q1",)
    lines = (tested / "qrels" / "train.tsv").read_text()
    (tested / "qrels" / "train.tsv").unlink()
    (tested / "qrels" / "task.train.tsv").write_text(lines)
    assert contamination(tested / "task", data=tested).hits == report.hits
    with pytest.raises(DataError, match="has no split 'train'"):
        contamination(tested, data=tested)


@pytest.mark.parametrize(
    ("name", "content", "options", "error", "reason"),
    [
        ("absent", None, {}, DataError, "no file or folder .*absent"),
        ("a.xml", "x", {}, DataError, "has an unknown type"),
        ("a.jsonl", "{} \n[", {}, DataError, "a.jsonl:2: invalid JSON"),
        ("a.jsonl", '{"n": 1}\n', {}, DataError, "training data has no text"),
        ("a.parquet", "x", {}, DataError, "a.parquet cannot be read"),
        ("a.txt", "x", dict(ngram=1), RecipeError, "ngram is 1"),
        ("a.txt", "x", dict(jaccard=80), RecipeError, "jaccard is 80"),
        ("a.txt", "x", dict(jaccard=0.0), RecipeError, r"jaccard is 0\.0"),
        ("a.txt", "x", dict(split="dev"), DataError, "has no split 'dev'"),
    ],
)
def test_what_cannot_be_searched_is_said(tested, tmp_path, name, content, options, error, reason):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=reason):
        contamination(path, data=tested, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_parquet_file_without_text_or_no_file_at_all_is_an_error(tested, tmp_path):
    pq.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match=r"n\.parquet has the columns n; expected at least one of text"):
        contamination(tmp_path / "n.parquet", data=tested)
    for nothing in ("", [" "], ["a.jsonl", ""]):
        with pytest.raises(RecipeError, match="no training data"):
            contamination(nothing, data=tested)
    done = CliRunner().invoke(app, ["contamination", "--train", "", "--data", str(tested)])
    assert isinstance(done.exception, RecipeError)
    with pytest.raises(DataError, match="the training data, a list, is empty"):
        contamination([], data=tested)


def test_minhash_alone_needs_datasketch(tested, tmp_path, monkeypatch):
    train = write(tmp_path / "train.txt", QUERIES["q4"])
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingExtraError, match=r"--no-minhash.*pip install 'stzoo\[contamination\]'"):
        contamination(train, data=tmp_path / "absent")
    assert found_in(train, tested, minhash=False) == [("query", "q4", "exact", 1, "")]


def test_scores_are_given_with_and_without_what_was_found(tested, tmp_path):
    (result,) = bench([], data=tested, output=tmp_path / "results", run_files=False)
    scores = result.scores.per_query["MRR@10"]
    train = write(tmp_path / "train.txt", QUERIES["q4"], PASSAGE)
    report = contamination(train, data=tested, results=tmp_path / "results", measure="RR@10")
    assert (report.measure, report.found_queries, report.contaminated) == ("MRR@10", ("q4",), ("q1", "q4"))
    (row,) = report.scores
    assert (row.system, row.path) == ("bm25s", str(result.path))
    assert row.all == pytest.approx(statistics.fmean(scores.values()))
    assert row.without_found == pytest.approx(statistics.fmean(scores[q] for q in ("q1", "q2", "q3")))
    assert row.without_contaminated == pytest.approx(statistics.fmean(scores[q] for q in ("q2", "q3")))
    assert len({row.all, row.without_found, row.without_contaminated}) > 1
    everything = write(tmp_path / "all.txt", *(QUERIES[query] for query in TEST))
    (row,) = contamination(everything, data=tested, results=[tmp_path / "results"]).scores
    assert (row.without_found, row.without_contaminated) == (None, None)


def test_results_on_other_data_are_refused(tested, tmp_path):
    bench([], data=tested, output=tmp_path / "results", run_files=False)
    (tested / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\twing\t1\n")
    train = write(tmp_path / "train.txt", "x")
    with pytest.raises(
        DataError, match=r"no results on .*tested \(test\) in its present form, only on tested \(test\)"
    ):
        contamination(train, data=tested, results=tmp_path / "results")


def test_the_list_and_the_report_are_written_and_not_overwritten_unasked(tested, tmp_path):
    train = write(tmp_path / "train.txt", QUERIES["q4"], PASSAGE)
    report = contamination([train], data=tested, output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LIST, REPORT]
    lines = (tmp_path / "out" / LIST).read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(as_json(report)["hits"])
    stored = json.loads((tmp_path / "out" / REPORT).read_text())
    assert stored == {
        key: value for key, value in json.loads(json.dumps(as_json(report))).items() if key != "hits"
    }
    assert stored["contaminated"] == ["q1", "q4"]
    assert stored["counts"]["query"]["exact"] == 1
    with pytest.raises(OutputError, match="already has a report"):
        contamination([train], data=tested, output=tmp_path / "out")
    contamination(write(tmp_path / "train.txt", "x"), data=tested, output=tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / LIST).read_text() == ""
    assert json.loads((tmp_path / "out" / REPORT).read_text())["contaminated"] == []


def test_the_tables_fit_80_columns_and_show_the_counts(tested, tmp_path):
    bench([], data=tested, output=tmp_path / "results", run_files=False)
    train = write(tmp_path / "train.txt", QUERIES["q4"], PASSAGE)
    text = shown(contamination(train, data=tested, results=tmp_path / "results"))
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["test", "queries", "1", "0", "0", "1", "4"] in rows
    assert ["their", "relevant", "passages", "0", "1", "1", "1", "3"] in rows
    assert ["queries", "with", "either", "2", "4"] in rows
    assert ["System", "(4)", "(3)", "(2)"] in rows
    assert ["test", "queries", "1", "0", "-", "1", "4"] in [
        line.split() for line in shown(contamination(train, data=tested, minhash=False)).splitlines()
    ]


def test_memory_does_not_grow_with_the_training_data(tested, tmp_path):
    code = (
        "import re, sys; from stzoo.evaluation.contamination import contamination\n"
        "assert contamination(sys.argv[1], data=sys.argv[2]).hits[0].places > 100\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    peak = {}
    for megabytes in (3, 28):
        texts = (f"{i} " + f"some words {i % 977} " * 64 for i in range(megabytes * 1000))
        rows = ((text, PASSAGE) if i % 20 == 0 else (text,) for i, text in enumerate(texts))
        path = write(tmp_path / f"{megabytes}.txt", *(text for row in rows for text in row))
        out = subprocess.run([sys.executable, "-c", code, path, tested], check=True, stdout=subprocess.PIPE)
        peak[megabytes] = int(out.stdout) / 1024
    assert peak[28] - peak[3] < 8


def test_planted_near_duplicates_of_real_texts_are_found(data):
    judged = read_beir(data / "beir" / "scifact")
    relevant = {d for grades in judged.qrels.values() for d in grades}
    passages = [text for id_, text in zip(judged.corpus_ids, judged.passages, strict=True) if id_ in relevant]
    strangers = [
        text for id_, text in zip(judged.corpus_ids, judged.passages, strict=True) if id_ not in relevant
    ]
    draw = random.Random(0)

    def dropped(text):
        parts = text.split()
        del parts[draw.randrange(len(parts))]
        return " ".join(parts)

    def restyled(text):
        return re.sub(r"[.,]", " - ", text).upper()

    def lengthened(text):
        return f"{text} {draw.choice(strangers)[:150]}"

    for originals, change, recall in (
        (list(judged.queries.values()), dropped, 0.97),  # of five words or fewer, four are too few
        (list(judged.queries.values()), restyled, 1.0),
        (passages, dropped, 1.0),
        (passages, restyled, 1.0),
        (passages, lengthened, 1.0),
    ):
        matches = Index(originals, 13, 0.8).find([change(text) for text in originals])
        found = {match.found for match in matches if match.text == match.found}
        assert len(found) / len(originals) >= recall
    index = Index([*judged.queries.values(), *passages], 13, 0.8)
    assert list(index.find(read_beir(data / "beir" / "vaswani").passages[:3000])) == []


def test_scifacts_test_claims_are_found_among_its_training_claims(data):
    folder = data / "beir" / "scifact"
    report = contamination([folder, data / "text" / "peps.jsonl.gz"], data=folder)
    assert not [hit for hit in report.hits if "peps" in hit.file]
    test, train = (read_beir(folder, split) for split in ("test", "train"))
    alike = set()
    sets = [frozenset(words(text)) for text in train.queries.values()]
    for query, text in test.queries.items():
        own = frozenset(words(text))
        if any(len(own & other) >= 0.8 * len(own | other) for other in sets):
            alike.add(query)
    near = {hit.id for hit in report.hits if hit.kind == "query" and hit.how != "ngram"}
    assert near == alike
    assert len(alike) == 69
    same = {d for grades in test.qrels.values() for d, grade in grades.items() if grade} & {
        d for grades in train.qrels.values() for d, grade in grades.items() if grade
    }
    assert {hit.id for hit in report.hits if (hit.kind, hit.how) == ("passage", "exact")} == same
