import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stzoo.data.beir import read_beir, write_beir
from stzoo.data.column_roles import parse_columns
from stzoo.data.texts import Texts
from stzoo.data.training_sets.builder import TrainingSetWriter
from stzoo.data.training_sets.formats import describe_formats
from stzoo.data.training_sets.mined import read_made, write_training
from stzoo.data.training_sets.read import from_judged, read_judged, read_training
from stzoo.data.training_sets.sets import Candidate, Mined, TrainingSet
from stzoo.errors import DataError, OutputError, RecipeError

# Two queries, the first with two positives; "c" answers one and not the other.
ROWS = [
    Mined(
        "q1",
        "what lifts a wing",
        [Candidate("wings lift", "a", 2.5), Candidate("lift of wings", "b", 1.0)],
        [Candidate("drag grows with speed", "c", -1.0), Candidate("cells divide", "d", -3.5)],
    ),
    Mined(
        "q2",
        "what grows",
        [Candidate("drag grows with speed", "c", 4.0)],
        [Candidate("wings lift", "a", 0.25)],
    ),
]
TRIPLES = [(row, one, other) for row in ROWS for one in row.positives for other in row.negatives]
CORPUS = {one.id: one.text for row in ROWS for one in (*row.positives, *row.negatives)}

texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def put(path, *rows):
    """Writes lines, or objects as JSON, one a line; .gz as the name says."""
    raw = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def listed(training: TrainingSet, ids: bool = True, scores: bool = True) -> list[Mined]:
    """The rows of a set; without ids or scores where a form has none."""

    def passages(candidates):
        return [
            Candidate(one.text, one.id if ids else None, one.score if scores else None) for one in candidates
        ]

    return [
        Mined(row.query_id if ids else "", row.query, passages(row.positives), passages(row.negatives))
        for row in training.rows()
    ]


def bare(rows, ids=False, scores=False):
    writer = TrainingSetWriter()
    for row in rows:
        writer.add(row.query, row.positives, row.negatives, row.query_id)
    return listed(writer.finish("rows", Path("rows")), ids, scores)


def flag(row, scores=True, ids=True):
    sides = {"pos": row.positives, "neg": row.negatives}
    found = {"query": row.query} | {name: [one.text for one in side] for name, side in sides.items()}
    if scores:
        found |= {f"{name}_scores": [one.score for one in side] for name, side in sides.items()}
    if ids:
        found |= {"query_id": row.query_id}
        found |= {f"{name}_id": [one.id for one in side] for name, side in sides.items()}
    return found


def tevatron(row):
    def passages(side):
        return [
            {"docid": one.id, "title": one.text.split()[0], "text": " ".join(one.text.split()[1:])}
            for one in side
        ]

    return {
        "query_id": row.query_id,
        "query": row.query,
        "positive_passages": passages(row.positives),
        "negative_passages": passages(row.negatives),
    }


def tevatron_ids(row):
    return {
        "query_id": row.query_id,
        "query_text": row.query,
        "positive_document_ids": [one.id for one in row.positives],
        "negative_document_ids": [one.id for one in row.negatives],
    }


def columns(row):
    """A row a positive, as mine_hard_negatives writes n-tuples with scores."""
    for one in row.positives:
        numbered = {f"negative_{n}": other.text for n, other in enumerate(row.negatives, 1)}
        scores = [one.score, *(other.score for other in row.negatives)]
        yield {"anchor": row.query, "positive": one.text, **numbered, "scores": scores}


@pytest.fixture
def corpus(tmp_path):
    """A BEIR folder of the passages and queries, with one passage more."""
    passages = [{"_id": name, "title": "", "text": text} for name, text in CORPUS.items()]
    passages.insert(0, {"_id": "z", "title": "Not", "text": "named"})
    queries = {row.query_id: row.query for row in ROWS} | {"q3": "never judged"}
    qrels = {"train": {row.query_id: {one.id: 2 for one in row.positives} | {"z": 0} for row in ROWS}}
    return write_beir(tmp_path / "beir", passages, queries, qrels)


def kilt(page_of):
    return [
        {
            "id": row.query_id,
            "input": row.query,
            "output": [{"answer": "x"}, {"provenance": [{"wikipedia_id": page}]}],
        }
        for row, page in zip(ROWS, page_of, strict=True)
    ]


# --- the forms ---------------------------------------------------------------------------------------------


def test_flagembedding_rows_are_read_with_ids_and_scores(tmp_path):
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.txt"):
        training = read_training(put(tmp_path / name, *map(flag, ROWS)))
        assert listed(training) == ROWS
        assert training.name == name.removesuffix(".gz").removesuffix(".jsonl")
        assert training.scored
        assert training.made is None


def test_without_ids_and_scores_passages_are_numbered_and_unscored(tmp_path):
    training = read_training(
        put(tmp_path / "rows.jsonl", *(flag(row, scores=False, ids=False) for row in ROWS))
    )
    assert training.query_ids == ["0", "1"]
    assert training.corpus_ids == ["0", "1", "2", "3"]
    assert training.passages == list(CORPUS.values())
    assert not training.scored
    assert training.positives.scores is None
    assert listed(training, ids=False) == bare(ROWS)


def test_lone_texts_and_missing_negatives_are_read_as_flagembedding_rows(tmp_path):
    training = read_training(put(tmp_path / "rows.jsonl", {"query": "q", "pos": "p", "pos_scores": 1.5}))
    assert listed(training, ids=False) == [Mined("", "q", [Candidate("p", None, 1.5)], [])]
    assert training.scored  # as there is no negative that lacks a score


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "saved", "csv.gz"])
def test_columns_are_read_from_each_kind_of_file(tmp_path, kind):
    rows = [one for row in ROWS[:1] for one in columns(row)]
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        put(path, *rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "saved":
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        import csv
        import io

        text = io.StringIO()
        mark = "\t" if kind == "tsv" else ","
        writer = csv.DictWriter(text, list(rows[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(rows)
        raw = b"\xef\xbb\xbf" + text.getvalue().encode()
        path.write_bytes(gzip.compress(raw) if kind.endswith("gz") else raw)
    assert listed(read_training(path), ids=False) == bare(ROWS[:1], scores=True)


@pytest.mark.parametrize(
    ("anchor", "positive"), [("query", "answer"), ("question", "passage"), ("anchor", "document")]
)
def test_the_usual_names_of_columns_are_known(tmp_path, anchor, positive):
    rows = [{"index": 7, anchor: "q", positive: "p", "negative": "n"}]
    assert listed(read_training(put(tmp_path / "a.jsonl", *rows)), ids=False) == [
        Mined("", "q", [Candidate("p")], [Candidate("n")])
    ]


def test_negatives_come_in_the_order_of_their_numbers_and_may_be_missing(tmp_path):
    numbered = {f"negative_{n}": f"n{n}" for n in (10, 2, 1)}
    put(tmp_path / "a.jsonl", {"anchor": "q", "positive": "p", **numbered, "negative_3": None})
    (row,) = read_training(tmp_path / "a.jsonl").rows()
    assert [one.text for one in row.negatives] == ["n1", "n2", "n10"]


LABELLED = [
    [{"anchor": "q", "positive": "n", "label": 0}, {"anchor": "q", "positive": "p", "label": 1}],
    [{"anchor": "q", "positive": "n", "label": "0"}, {"anchor": "q", "positive": "p", "label": "1"}],
    [{"anchor": "q", "document": ["p", "n"], "labels": [1, 0]}],
    [{"anchor": "q", "document": ["p", "n"], "labels": "[1, 0]"}],
]


@pytest.mark.parametrize("rows", LABELLED)
def test_labels_of_0_and_1_say_which_passages_are_positive(tmp_path, rows):
    assert listed(read_training(put(tmp_path / "a.jsonl", *rows)), ids=False) == [
        Mined("", "q", [Candidate("p")], [Candidate("n")])
    ]


def test_labels_beside_scores_leave_the_scores_theirs(tmp_path):
    put(tmp_path / "a.jsonl", {"anchor": "q", "document": ["n", "p"], "labels": [0, 1], "scores": [0.5, 2]})
    assert listed(read_training(tmp_path / "a.jsonl"), ids=False) == [
        Mined("", "q", [Candidate("p", None, 2.0)], [Candidate("n", None, 0.5)])
    ]


def test_labels_beside_negatives_are_a_teachers_scores(tmp_path):
    put(tmp_path / "a.jsonl", {"anchor": "q", "positive": "p", "negative": "n", "label": [1, 0]})
    (row,) = read_training(tmp_path / "a.jsonl").rows()
    assert (row.positives[0].score, row.negatives[0].score) == (1.0, 0.0)


# what columns are: rows, what is read (query, positives, negatives), what the user is shown
UNDERSTOOD = [
    ([{"query": "q", "positive": "p", "hard_negative": "n"}], ["p"], ["n"], "negatives ← hard_negative"),
    ([{"query": "q", "positive": "p", "hard_negatives": ["n", "m"]}], ["p"], ["n", "m"], "← hard_negatives"),
    (
        [{"anchor": "q", "positive": "p", "negative2": "m", "negative1": "n"}],
        ["p"],
        ["n", "m"],
        "negatives ← negative1, negative2",
    ),
    ([{"query": "q", "positive": "p", "neg": ["n"]}], ["p"], ["n"], "positive ← positive, negatives ← neg"),
    ([{"query": "q", "pos": ["p"], "negative": "n"}], ["p"], ["n"], "positive ← pos, negatives ← negative"),
    ([{"Question": "q", "Positive": "p", "hardNegative-1": "n"}], ["p"], ["n"], "← hardNegative-1"),
    # a column that only later rows have
    (
        [{"query": "q", "positive": "p"}, {"query": "q", "positive": "o", "neg_1": "n"}],
        ["p", "o"],
        ["n"],
        "neg_1",
    ),
    (
        [{"id": 7, "question": "q", "passage": "p", "answer": "a", "neg": "n"}],
        ["p"],
        ["n"],
        "query ← question, positive ← passage, negatives ← neg; not used: id, answer.",
    ),
    ([{"question": "q", "answer": "a", "context": "p"}], ["p"], [], "positive ← context; not used: answer"),
    (
        [{"query": "q", "passage": "p", "relevance": 1}, {"query": "q", "passage": "n", "relevance": 0}],
        ["p"],
        ["n"],
        "grade ← relevance (above 0: positive",
    ),
    (
        [{"query": "q", "doc": t, "grade": g} for t, g in (("n", "-1"), ("p", "3"), ("m", "0"))],
        ["p"],
        ["n", "m"],
        "grade ← grade",
    ),
    (
        [
            {"query": "q", "passage": "p", "is_relevant": True},
            {"query": "q", "passage": "n", "is_relevant": False},
        ],
        ["p"],
        ["n"],
        "grade ← is_relevant",
    ),
    ([{"query": "q", "positive": "p", "label": None}], ["p"], [], "not used: label"),
    (
        [{"query": "q", "positive": "p", "negative": None, "label": 1}],
        ["p"],
        [],
        "label ← label (1: positive",
    ),
]


@pytest.mark.parametrize(("rows", "positives", "negatives", "said"), UNDERSTOOD)
def test_what_each_column_was_taken_for_is_said_and_kept(tmp_path, capsys, rows, positives, negatives, said):
    training = read_training(put(tmp_path / "rows.jsonl", *rows))
    assert listed(training, ids=False) == [
        Mined("", "q", list(map(Candidate, positives)), list(map(Candidate, negatives)))
    ]
    shown = capsys.readouterr().err.splitlines()
    assert [said in line for line in shown] == [True]
    (columns,) = training.columns
    assert columns["form"] == ("FlagEmbedding" if "pos" in rows[0] else "sentence-transformers")
    assert {name for role in columns.values() if isinstance(role, list) for name in role} == {
        name for row in rows for name in row
    }


# rows that could mean more than one thing, the error, the --columns that settles it, and what is read then
AMBIGUOUS = [
    (
        [{"query": "q", "positive": "p", "negs_by_bm25": "n"}],
        "'negs_by_bm25', which looks like negatives",
        "negative=negs_by_bm25",
        ["p"],
        ["n"],
    ),
    (
        [{"query": "q", "pos": "p", "distractor": "n"}],
        "'distractor', which looks like neg",
        "ignore=distractor",
        ["p"],
        [],
    ),
    (
        [{"query": "q", "text": "p", "is_positive": 1}],
        "a row with query, text, is_positive; expected one of",
        "positive=text,label=is_positive",
        ["p"],
        [],
    ),
    (
        [{"query": "q", "passage": "p", "is_gold": 1}],
        "'is_gold', which looks like positives",
        "label=is_gold,positive=passage",
        ["p"],
        [],
    ),
    (
        [{"query": "q", "passage": "p", "is_selected": 1}],
        "'is_selected', which looks like labels",
        "label=is_selected",
        ["p"],
        [],
    ),
    (
        [{"query": "q", "positive": "p", "rejected": "n"}],
        "'rejected', which looks like negatives",
        "negative=rejected",
        ["p"],
        ["n"],
    ),
    (
        [{"query": "q", "passage": "p", "rel_label": 1}],
        "'rel_label', which looks like labels",
        "label=rel_label",
        ["p"],
        [],
    ),
    (
        [{"query": "q", "passage": "p", "document": "d"}],
        "passage, document, each of which can be the positive",
        "positive=document",
        ["d"],
        [],
    ),
    (
        [{"query": "q", "question": "r", "positive": "p"}],
        "query, question, each of which can be the query",
        "query=query",
        ["p"],
        [],
    ),
    (
        [{"query": "q", "positive": "p", "pos": "o"}],
        "positive, pos, each of which",
        "positive=positive,positive=pos",
        ["p", "o"],
        [],
    ),
    (
        [{"query": "q", "positive": "p", "label": 1, "relevance": 0}],
        "each of which can say which passages",
        "label=label",
        ["p"],
        [],
    ),
    (
        [{"query": "q", "positive": "p", "negative": "n", "relevance": 2}],
        ":1: negatives in a row with relevance",
        "ignore=relevance",
        ["p"],
        ["n"],
    ),
    (
        [{"query": "q", "passage": t, "score": s} for t, s in (("p", 1.0), ("n", 0.0))],
        ":1: a score and no negatives",
        "label=score",
        ["p"],
        ["n"],
    ),
    (
        [{"query": "q", "passage": t, "similarity": s} for t, s in (("p", 0.9), ("n", 0.1))],
        ":1: a similarity and no neg",
        "ignore=similarity",
        ["p", "n"],
        [],
    ),
    (
        [{"query": "q", "passage": t, "label": s} for t, s in (("p", 1), ("n", 0), ("m", 2))],
        ":3: a label that is not 0 or 1",
        "grade=label",
        ["p", "m"],
        ["n"],
    ),
    (
        [{"query": "q", "passage": t, "label": s} for t, s in (("p", 1), ("n", 0.3))],
        ":2: a label that is not 0 or 1",
        "score=label",
        ["p", "n"],
        [],
    ),
    (
        [{"query": "q", "passage": "p", "relevance": 0.5}],
        ":1: a relevance that is not a whole number",
        "ignore=relevance",
        ["p"],
        [],
    ),
    (
        [{"query": "q", "passage": "p", "label": 1}, {"query": "q", "passage": "n"}],
        ":2: a row without label",
        "ignore=label",
        ["p", "n"],
        [],
    ),
    (
        [
            {"query": "q", "positive": "p", "negative": "n", "label": [1, 0]},
            {"query": "q", "positive": "o", "label": 0},
        ],
        ":2: a label and no negatives",
        "ignore=label",
        ["p", "o"],
        ["n"],
    ),
    (
        [{"query": "q", "pos": "p", "score": 1, "pos_scores": 1}],
        "scores in score and in columns of",
        "ignore=score",
        ["p"],
        [],
    ),
]


@pytest.mark.parametrize(("rows", "error", "columns", "positives", "negatives"), AMBIGUOUS)
def test_what_is_ambiguous_is_refused_and_settled_by_the_user(
    tmp_path, rows, error, columns, positives, negatives
):
    path = put(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError, match=error) as refused:
        read_training(path)
    assert "--columns" in str(refused.value)
    training = read_training(path, columns=columns)
    assert [
        (row.query, [p.text for p in row.positives], [n.text for n in row.negatives])
        for row in training.rows()
    ] == [("q", positives, negatives)]
    assert read_training(path, columns=parse_columns(columns)).fingerprint == training.fingerprint


def test_columns_of_other_forms_are_not_passed_over_either(tmp_path, corpus):
    path = put(tmp_path / "rows.jsonl", tevatron(ROWS[0]) | {"hard_negatives": ["n"], "source": "x"})
    with pytest.raises(DataError, match="'hard_negatives', which looks like negatives"):
        read_training(path)
    training = read_training(path, columns={"ignore": "hard_negatives"})
    assert training.columns[0]["unused"] == ["hard_negatives", "source"]
    with pytest.raises(RecipeError, match="is a BEIR folder"):
        read_training(corpus, columns="query=question")
    for wrong, error in (
        (
            "query=nowhere",
            r":1: no column 'nowhere', which --columns names as query; expected one of query_id",
        ),
        ("negativ=neg", "no role in columns 'negativ'; did you mean 'negative'"),
        ("query", "columns has 'query'; expected ROLE=COLUMN"),
        ("query=a,positive=a", "columns has 'a' twice"),
        ("query=a,query=b", "columns has a, b as query; expected one"),
        ({"query": 3}, "columns.query is 3; expected the name of a column"),
        (["query"], "expected columns by role"),
    ):
        with pytest.raises((DataError, RecipeError), match=error):
            read_training(path, columns=wrong)
    with pytest.raises(DataError, match="without column names"):
        read_training(put(tmp_path / "a.tsv", "what is it\tsome thing\tno thing"), columns="query=a")


def test_a_header_of_the_users_own_names_is_read(tmp_path):
    path = put(tmp_path / "a.csv", "frage,treffer,text", "q,1,p", "q,0,n")
    with pytest.raises(DataError, match="the line 'frage,treffer,text'; expected one of these formats"):
        read_training(path)
    (row,) = read_training(path, columns="query=frage,label=treffer,positive=text").rows()
    assert ([one.text for one in row.positives], [one.text for one in row.negatives]) == (["p"], ["n"])


def test_labels_mean_the_same_in_all_files_of_a_folder(tmp_path):
    put(tmp_path / "a.jsonl", {"query": "q", "passage": "p", "label": 1})
    put(tmp_path / "b.jsonl", {"query": "r", "positive": "p", "negative": "n", "label": [0.9, 0.1]})
    with pytest.raises(DataError, match=r"b\.jsonl has score, and .*a\.jsonl has label; expected the same"):
        read_training(tmp_path)


def test_what_teaches_nothing_is_left_out_and_said(tmp_path, capsys):
    rows = [("q", "p", 1), ("q", "n", 0), ("r", "n", 0), ("q", " ", 0)]
    path = put(tmp_path / "a.jsonl", *({"query": q, "passage": p, "label": y} for q, p, y in rows))
    training = read_training(path)
    assert [
        len(part) for part in (training.queries, training.positives.places, training.negatives.places)
    ] == [1, 1, 1]
    assert training.notes == (
        "left out 1 passage without text",
        "left out 1 row without any passage with text",
        "1 of 2 queries have no positive and are left out",
    )
    shown = capsys.readouterr().err
    assert all(note in shown for note in training.notes)
    put(tmp_path / "a.jsonl", *({"query": q, "passage": p, "label": 0} for q, p, _ in rows[:3]))
    with pytest.raises(DataError, match=r":1: a row without a positive \(2 of 2"):
        read_training(path)


def test_all_forms_of_the_same_data_give_the_same_set(tmp_path, corpus):
    triples = ["\t".join((row.query, one.text, other.text)) for row, one, other in TRIPLES]
    ids = ["\t".join((row.query_id, one.id, other.id)) for row, one, other in TRIPLES]
    named = [
        put(tmp_path / "flag.jsonl", *(flag(row, scores=False) for row in ROWS)),
        put(tmp_path / "tevatron.jsonl", *map(tevatron, ROWS)),
        put(tmp_path / "ids.jsonl.gz", *map(tevatron_ids, ROWS)),
        put(tmp_path / "triples.tsv.gz", *ids),
    ]
    by_text = [
        put(tmp_path / "columns.jsonl", *(one for row in ROWS for one in columns(row))),
        put(tmp_path / "triples.txt", *triples),
    ]
    read = [read_training(path, corpus=corpus) for path in named]
    assert listed(read[0]) == bare(ROWS, ids=True)
    assert {one.fingerprint for one in read} == {read[0].fingerprint}
    for path in by_text:
        assert listed(read_training(path), ids=False, scores=False) == bare(ROWS)


def test_id_triples_find_their_texts_in_ms_marcos_own_files(tmp_path):
    put(tmp_path / "collection.tsv", *(f"{name}\t{text}" for name, text in CORPUS.items()), "z\tnot named")
    put(tmp_path / "queries.dev.tsv", f"{ROWS[0].query_id}\t{ROWS[0].query}")
    put(tmp_path / "queries.train.tsv.gz", f"{ROWS[1].query_id}\t{ROWS[1].query}")
    triples = put(
        tmp_path / "qidpidtriples.tsv",
        *("\t".join((row.query_id, one.id, other.id)) for row, one, other in TRIPLES),
    )
    training = read_training(triples, corpus=tmp_path)
    assert listed(training) == bare(ROWS, ids=True)
    assert set(training.corpus_ids) == set(CORPUS)  # what is not named is not kept


def test_triples_in_a_script_without_spaces_are_no_ids(tmp_path):
    put(tmp_path / "a.tsv", "首都\t北京是首都\t上海是城市")
    assert next(read_training(tmp_path / "a.tsv").rows()).positives[0].text == "北京是首都"


def test_quotes_in_triples_are_text(tmp_path):
    put(tmp_path / "a.tsv", 'who said "it\t"a man" said it\tno, "he')
    assert listed(read_training(tmp_path / "a.tsv"), ids=False) == [
        Mined("", 'who said "it', [Candidate('"a man" said it')], [Candidate('no, "he')])
    ]


def test_all_passages_of_a_kilt_questions_evidence_pages_are_positive(tmp_path):
    rows = [
        {"_id": f"p{n}", "title": "T", "text": text, "wikipedia_id": page}
        for n, (text, page) in enumerate([("one", 1), ("two", 2), ("again one", 1), ("three", 3)])
    ]
    put(tmp_path / "corpus.jsonl", *rows)
    training = read_training(put(tmp_path / "k.jsonl", *kilt(["1", "2"])), corpus=tmp_path / "corpus.jsonl")
    assert [[one.id for one in row.positives] for row in training.rows()] == [["p0", "p2"], ["p1"]]
    assert training.passages == ["T one", "T again one", "T two"]
    assert training.notes == ()
    training = read_training(put(tmp_path / "k.jsonl", *kilt(["1", "9"])), corpus=tmp_path / "corpus.jsonl")
    assert training.query_ids == ["q1"]
    assert training.notes == (
        "1 of 2 evidence pages have no passage in the corpus",
        "left out 1 question without a passage of the evidence",
    )
    put(tmp_path / "k.jsonl", *kilt(["8", "9"]))
    with pytest.raises(DataError, match=r"no evidence page of .*k\.jsonl has a passage"):
        read_training(tmp_path / "k.jsonl", corpus=tmp_path / "corpus.jsonl")


def test_of_a_beir_folder_the_relevant_passages_are_kept(corpus):
    training = read_training(corpus)
    assert listed(training) == [replace_negatives(row) for row in bare(ROWS, ids=True)]
    assert training.corpus_ids == ["a", "b", "c"]
    assert (training.name, training.folder) == ("beir", corpus)


def replace_negatives(row):
    return row._replace(negatives=[])


def test_beir_queries_without_a_relevant_passage_are_left_out(corpus):
    (corpus / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t1\nq2\tz\t0\n")
    training = read_training(corpus, "dev")
    assert training.query_ids == ["q1"]
    assert training.notes == ("1 of 2 queries have no relevant passage and are left out",)
    (corpus / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\tz\t0\n")
    with pytest.raises(DataError, match="split dev: no judgement above 0"):
        read_training(corpus, "dev")
    (corpus / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\tnone\t1\n")
    with pytest.raises(DataError, match=r"dev\.tsv:2: the unknown document 'none'"):
        read_training(corpus, "dev")


def test_a_passage_judged_irrelevant_to_a_query_may_answer_another(corpus):
    (corpus / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tc\t0\nq2\tc\t1\n")
    rows = read_training(corpus, "dev").rows()
    assert [[one.id for one in row.positives] for row in rows] == [["a"], ["c"]]


def test_a_row_of_csv_may_take_several_lines(tmp_path):
    put(tmp_path / "a.csv", "anchor,positive", 'q,"one', "", 'two"', '"r', 's","p"')
    rows = [(row.query, row.positives[0].text) for row in read_training(tmp_path / "a.csv").rows()]
    assert rows == [("q", "one\n\ntwo"), ("r\ns", "p")]
    put(tmp_path / "a.csv", "anchor,positive", 'q,"one', "", 'two"', '"r', 's",""')
    with pytest.raises(DataError, match=r"a\.csv:5: a row without a positive"):
        read_training(tmp_path / "a.csv")


def test_a_folder_of_files_is_read_in_name_order_or_by_split(tmp_path):
    put(tmp_path / "b.jsonl", flag(ROWS[0]))
    put(tmp_path / "a.jsonl", flag(ROWS[1]))
    put(tmp_path / ".hidden.jsonl", "{")
    put(tmp_path / "run.json", "{")
    assert read_training(tmp_path).query_ids == ["q2", "q1"]
    put(tmp_path / "train-0.jsonl", flag(ROWS[1]))
    put(tmp_path / "test-0.jsonl", flag(ROWS[0]))
    assert read_training(tmp_path).query_ids == ["q2"]
    assert read_training(tmp_path, "test").query_ids == ["q1"]
    with pytest.raises(DataError, match="has no splits, but the split is 'dev'"):
        read_training(tmp_path, "dev")


def test_a_saved_data_set_has_splits(tmp_path):
    import datasets

    sets = {
        name: datasets.Dataset.from_list(list(columns(row)))
        for name, row in zip(("train", "dev"), ROWS, strict=True)
    }
    datasets.DatasetDict(sets).save_to_disk(str(tmp_path / "d"))
    assert read_training(tmp_path / "d", "dev").queries == [ROWS[1].query]
    with pytest.raises(DataError, match=r"no split 'test'. Available splits: dev, train"):
        read_training(tmp_path / "d", "test")


def test_a_data_set_of_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    # The Hub's client keeps a data set as a folder of Arrow files; here such a folder is made from a file.
    import shutil

    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = put(tmp_path / "rows.jsonl", *(one for row in ROWS for one in columns(row)))
    made = datasets.load_dataset("json", data_files=str(source), split="train")
    wanted = tmp_path / "cache" / "some___pairs" / "default" / "0.0.0" / "abc"
    wanted.parent.mkdir(parents=True)
    shutil.copytree(Path(made.cache_files[0]["filename"]).parent, wanted)
    (wanted / "json-train.arrow").rename(wanted / "pairs-train.arrow")
    for name in ("some/pairs", "some/pairs:default:train"):
        assert listed(read_training(name), ids=False) == bare(ROWS, scores=True)
    with pytest.raises(DataError, match="cannot be loaded from the Hub"):
        read_training("some/pairs", "dev")


# --- rows become a set -------------------------------------------------------------------------------------

examples = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.tuples(st.integers(0, 4), floats), min_size=1, max_size=4),
        st.lists(st.tuples(st.integers(5, 9), floats), max_size=4),
    ),
    min_size=1,
    max_size=8,
)


@given(examples)
def test_rows_of_a_query_are_joined_and_the_first_of_equal_passages_counts(rows):
    writer = TrainingSetWriter()
    expected: dict[int, tuple[dict, dict]] = {}
    for query, *sides in rows:
        writer.add(
            f"query {query}", *([Candidate(f"text {n}", f"id {n}", s) for n, s in side] for side in sides)
        )
        for known, side in zip(expected.setdefault(query, ({}, {})), sides, strict=True):
            for number, score in side:
                known.setdefault(number, score)
    training = writer.finish("x", Path("x"))
    assert training.queries == [f"query {query}" for query in expected]
    assert len(set(training.passages)) == len(training.passages)
    for row, sides in zip(training.rows(), expected.values(), strict=True):
        for found, known in zip(row[2:], sides, strict=True):
            assert found == [Candidate(f"text {n}", f"id {n}", s) for n, s in known.items()]
    for lists in (training.positives, training.negatives):
        assert (lists.starts.dtype, lists.places.dtype) == (np.int64, np.int64)
        assert lists.scores.dtype == np.float32


@given(examples, st.data())
def test_a_part_has_the_rows_asked_for(rows, data):
    writer = TrainingSetWriter()
    for number, (_, *sides) in enumerate(rows):
        writer.add(f"query {number}", *([Candidate(f"text {n}", None, s) for n, s in side] for side in sides))
    training = writer.finish("x", Path("x"))
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    every = listed(training)
    assert listed(training.part(np.array(chosen, np.int64))) == [every[place] for place in chosen]


def test_ids_are_unique_where_some_are_given_and_some_are_not():
    writer = TrainingSetWriter()
    writer.add("first", [Candidate("a")])
    writer.add("second", [Candidate("b", "0")], [Candidate("c", "3"), Candidate("d")], "0")
    training = writer.finish("x", Path("x"))
    assert training.query_ids == ["_0", "0"]
    assert training.corpus_ids == ["_0", "0", "3", "_3"]


def test_one_text_under_two_ids_is_one_passage_under_the_first():
    writer = TrainingSetWriter()
    writer.add("q", [Candidate("a", "1"), Candidate("a", "2")], [Candidate("b", "3")])
    training = writer.finish("x", Path("x"))
    assert training.corpus_ids == ["1", "3"]
    with pytest.raises(DataError, match="a second text for passage id '2'"):
        writer.add("r", [Candidate("c", "2")])


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ("The answer.", " The\u00a0answer. \n"),
        ("café", "cafe\u0301"),
        ("カタカナ", "ｶﾀｶﾅ"),
        ("soft", "so\u00adft\ufeff"),
    ],
)
def test_a_negative_that_looks_like_the_positive_is_left_out(tmp_path, positive, negative):
    rows = [
        {"query": "q", "pos": [positive], "neg": [negative, "other"]},
        {"query": "r", "pos": [negative], "neg": ["other"]},
    ]
    training = read_training(put(tmp_path / "rows.jsonl", *rows))
    found = [(row.query, [one.text for one in (*row.positives, *row.negatives)]) for row in training.rows()]
    assert found == [("q", [positive, "other"]), ("r", [positive, "other"])]
    assert training.notes == (
        "left out as copies of a positive but for white space or Unicode form: 1 negative",
    )
    with pytest.raises(DataError, match="both positive and negative"):
        read_training(put(tmp_path / "same.jsonl", {"query": "q", "pos": [negative], "neg": [negative]}))


def test_many_queries_without_a_negative_are_noted():
    def notes(missing, without_positive=0):
        writer = TrainingSetWriter()
        for number in range(10):
            writer.add(f"q{number}", [Candidate(f"p{number}")], [Candidate("n")] * (number >= missing))
        for number in range(without_positive):
            writer.add(f"r{number}", [], [Candidate("n")])
        return writer.finish("x", Path("x"), leave_out=True).notes

    assert notes(3) == ("3 of 10 queries (30%) have no negative",)
    assert notes(2) == notes(10) == ()  # few; or none is meant to have any
    left_out = "10 of 20 queries have no positive and are left out"  # and do not count as having negatives
    assert notes(3, without_positive=10) == (left_out, "3 of 10 queries (30%) have no negative")


def test_queries_of_one_text_under_two_ids_are_two():
    writer = TrainingSetWriter()
    writer.add("q", [Candidate("a")], query_id="1")
    writer.add("q", [Candidate("b")], query_id="2")
    assert writer.finish("x", Path("x")).query_ids == ["1", "2"]


def test_scores_that_not_all_have_are_left_out_with_a_note():
    writer = TrainingSetWriter()
    writer.add("q", [Candidate("a", None, 1.0)], [Candidate("b", None, 1.0), Candidate("c")])
    training = writer.finish("x", Path("x"), notes=("read",))
    assert training.negatives.scores is None
    assert not training.scored
    assert training.notes == ("read", "1 of 2 negatives have no score, so none is used")


def test_a_set_is_a_judged_set_over_its_own_passages(tmp_path):
    training = read_training(put(tmp_path / "rows.jsonl", *map(flag, ROWS)))
    judged = training.judged()
    assert judged.qrels == {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}
    assert judged.queries == {row.query_id: row.query for row in ROWS}
    assert (judged.corpus_ids, judged.passages) == (list(CORPUS), list(CORPUS.values()))
    assert listed(from_judged(judged), scores=False) == [
        replace_negatives(row) for row in bare(ROWS, ids=True)
    ]


def changed(training):
    """Sets that differ from one in a single thing."""
    lists = training.negatives
    yield replace(training, query_ids=["q1", "other"])
    yield replace(training, queries=["q", *training.queries[1:]])
    yield replace(training, passages=["other", *training.passages[1:]])
    yield replace(training, corpus_ids=["other", *training.corpus_ids[1:]])
    yield replace(training, negatives=replace(lists, scores=lists.scores + 1))
    yield replace(training, negatives=replace(lists, scores=None))
    yield replace(training, negatives=replace(lists, places=lists.places[::-1].copy()))
    yield replace(training, negatives=replace(lists, starts=np.array([0, 1, 3])))
    yield replace(training, positives=training.negatives, negatives=training.positives)


def test_the_fingerprint_tells_sets_apart_and_not_the_order_of_passages(tmp_path):
    training = read_training(put(tmp_path / "rows.jsonl", *map(flag, ROWS)))
    prints = [one.fingerprint for one in (training, *changed(training))]
    assert len(set(prints)) == len(prints)
    assert all(len(one) == 64 for one in prints)
    turned = replace(
        training,
        passages=Texts(reversed(list(training.passages))),
        corpus_ids=Texts(reversed(list(training.corpus_ids))),
        positives=replace(training.positives, places=3 - training.positives.places),
        negatives=replace(training.negatives, places=3 - training.negatives.places),
    )
    assert turned.fingerprint == training.fingerprint


def test_a_set_takes_little_more_memory_than_its_texts_and_16_bytes_an_entry():
    def fill():
        writer = TrainingSetWriter()
        for query in range(500):
            passages = [Candidate(f"passage {(31 * query + n) % 1000:050d}", None, 0.5) for n in range(31)]
            writer.add(f"query {query}", passages[:1], passages[1:])
        return writer.finish("x", Path("x"))

    fill()  # imports
    tracemalloc.start()
    try:
        training = fill()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    entries = len(training.positives.places) + len(training.negatives.places)
    texts = (training.queries, training.query_ids, training.passages, training.corpus_ids)
    assert entries == 15_500
    assert held < sum(one.nbytes for one in texts) + 16 * entries + 50_000


# --- mined files -------------------------------------------------------------------------------------------

sides = st.lists(st.tuples(texts, floats), max_size=3)


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(texts, sides, sides), min_size=1, max_size=4),
    scored=st.booleans(),
    made=st.dictionaries(st.text(max_size=3).filter(str.isprintable), st.integers() | texts, max_size=3),
)
def test_what_is_written_is_read_back_from_both_forms(tmp_path_factory, rows, scored, made):
    folder = tmp_path_factory.mktemp("mined")
    writer = TrainingSetWriter()
    for number, (query, *lists) in enumerate(rows):
        candidates = [
            [Candidate(f"{kind} {text}", None, score if scored else None) for text, score in side]
            for kind, side in zip("pn", lists, strict=True)
        ]
        candidates[0].append(Candidate("always", None, 0.0 if scored else None))
        writer.add(query, *candidates, f"q{number}")
    training = writer.finish("x", Path("x"))
    for suffix in ("jsonl", "parquet"):
        path, again = folder / f"a.{suffix}", folder / f"b.{suffix}"
        write_training(path, training.rows(), made)
        write_training(again, iter(listed(training)), made)
        assert path.read_bytes() == again.read_bytes()
        read = read_training(path)
        assert listed(read) == listed(training)
        assert read.fingerprint == training.fingerprint
        assert read.made == read_made(path) == made
        assert sorted(folder.iterdir()) == sorted(folder.glob("[ab].*"))  # no draft is left


def test_datasets_reads_mined_files_under_flagembeddings_names(tmp_path):
    import datasets

    for suffix, kind in ((".jsonl", "json"), (".parquet", "parquet")):
        path = write_training(tmp_path / f"m{suffix}", ROWS, {"model": "x"})
        found = datasets.load_dataset(
            kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )
        rows = [{name: value for name, value in row.items() if name != "stzoo"} for row in found]
        assert rows == list(map(flag, ROWS))


def test_new_scores_can_be_written(tmp_path):
    training = read_training(put(tmp_path / "rows.jsonl", *(flag(row, scores=False) for row in ROWS)))
    scores = [
        np.arange(len(part.places), dtype=np.float32) for part in (training.positives, training.negatives)
    ]
    scored = replace(
        training,
        positives=replace(training.positives, scores=scores[0]),
        negatives=replace(training.negatives, scores=scores[1]),
    )
    read = read_training(write_training(tmp_path / "scored.parquet", scored.rows(), {}))
    assert read.fingerprint == scored.fingerprint != training.fingerprint
    assert read.negatives.scores.tolist() == [0, 1, 2]


def test_a_list_that_is_scored_in_part_is_written_unscored(tmp_path):
    half = [Candidate("n", "n", 1.0), Candidate("m", "m")]
    path = write_training(tmp_path / "m.jsonl", [ROWS[0]._replace(negatives=half)], {})
    read = read_training(path)
    assert read.negatives.scores is None
    assert read.positives.scores.tolist() == [2.5, 1.0]


def test_rows_are_written_as_they_come_and_a_failure_leaves_the_old_file(tmp_path):
    path = write_training(tmp_path / "m.parquet", ROWS, {})
    before = path.read_bytes()

    def rows():
        yield from ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_training(path, rows(), {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.parquet"]


def test_what_cannot_be_written_is_refused(tmp_path):
    for name in ("m.json", "m.jsonl.gz", "m"):
        with pytest.raises(RecipeError, match=r"ends in \.parquet or \.jsonl"):
            write_training(tmp_path / name, iter(ROWS), {})
    with pytest.raises(DataError, match="no row to write"):
        write_training(tmp_path / "m.jsonl", [], {})
    with pytest.raises(DataError, match=r"query 'q1' has a score that is not finite"):
        write_training(
            tmp_path / "m.jsonl", [ROWS[0]._replace(negatives=[Candidate("n", "n", float("nan"))])], {}
        )
    put(tmp_path / "file", "x")
    with pytest.raises(OutputError):
        write_training(tmp_path / "file" / "m.jsonl", ROWS, {})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# --- what mining searches ----------------------------------------------------------------------------------


def test_a_beir_folder_is_searched_as_read_beir_reads_it(corpus):
    assert read_judged(corpus).fingerprint == read_beir(corpus, "train").fingerprint


def test_other_data_are_searched_over_their_own_passages(tmp_path):
    judged = read_judged(put(tmp_path / "rows.jsonl", *map(flag, ROWS)))
    assert judged.corpus_ids == list(CORPUS)
    assert judged.qrels == {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}


def test_over_a_corpus_every_passage_with_a_positives_text_is_relevant(tmp_path):
    rows = [("b", "lift of wings"), ("twin", "wings lift"), ("c", "unlike c"), ("twin2", "wings lift")]
    put(tmp_path / "corpus.jsonl", *({"_id": name, "text": text} for name, text in rows))
    judged = read_judged(put(tmp_path / "rows.jsonl", *map(flag, ROWS)), corpus=tmp_path / "corpus.jsonl")
    assert judged.corpus_ids == ["b", "twin", "c", "twin2", "_c"]
    assert judged.passages[4] == "drag grows with speed"
    assert judged.qrels == {"q1": {"twin": 1, "twin2": 1, "b": 1}, "q2": {"_c": 1}}
    assert judged.notes == ("added 1 positive that corpus.jsonl does not have",)
    assert len(set(judged.corpus_ids)) == len(judged.corpus_ids)


def test_a_positive_without_its_title_is_the_passage_of_its_id(tmp_path, capsys):
    """Or its own passage would be mined as a negative."""
    passages = [("b", "Lift", "wings lift planes"), ("c", "Drag", "drag slows planes"), ("d", "", "unlike d")]
    rows = [{"_id": name, "title": title, "text": text} for name, title, text in passages]
    put(tmp_path / "corpus.jsonl", *rows)
    pairs = [
        ("q1", "b", "wings  lift planes"),
        ("q2", "c", "Drag drag slows planes"),
        ("q3", "d", "other text"),
    ]
    rows = [{"query": query, "positive": text, "positive_id": name} for query, name, text in pairs]
    judged = read_judged(put(tmp_path / "rows.jsonl", *rows), corpus=tmp_path / "corpus.jsonl")
    assert list(judged.qrels.values()) == [{"b": 1}, {"c": 1}, {"_d": 1}]
    assert list(judged.corpus_ids) == ["b", "c", "d", "_d"]
    assert (
        "added 1 positive that corpus.jsonl does not have, by the text (the first: _d)"
        in capsys.readouterr().err
    )


def test_numbers_of_rows_are_no_ids_of_the_corpus(tmp_path):
    """Rows without ids are numbered, as passages of many corpora are."""
    passages = [{"_id": str(number), "text": text} for number, text in enumerate(("a party of art", "b c"))]
    put(tmp_path / "corpus.jsonl", *passages)
    rows = [{"query": "q", "positive": "art"}, {"query": "r", "positive": "b c"}]
    judged = read_judged(put(tmp_path / "rows.jsonl", *rows), corpus=tmp_path / "corpus.jsonl")
    assert [list(grades) for grades in judged.qrels.values()] == [["_0"], ["1"]]


def test_ids_are_searched_over_the_corpus_that_has_them(tmp_path, corpus):
    judged = read_judged(put(tmp_path / "ids.jsonl", *map(tevatron_ids, ROWS)), corpus=corpus)
    assert judged.corpus_ids == ["z", *CORPUS]
    assert judged.qrels == {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}
    assert judged.notes == ()


# --- bad input ---------------------------------------------------------------------------------------------

GOOD = {"query": "q", "pos": ["p"], "neg": ["n"]}
COLUMNS = {"anchor": "q", "positive": "p", "negative": "n"}
TEVATRON = {"query_id": "1", "query": "q", "positive_passages": [{"docid": "1", "text": "p"}]}
BAD_ROWS = [
    ([GOOD | {"pos": []}], r":1: a row without a positive \(1 of 1 query without one\)"),
    ([GOOD, {"query": "r", "pos": [], "neg": []}], r":2: a row without a positive \(1 of 2 queries"),
    ([GOOD, "", GOOD | {"neg": ["p"]}], r":3: a passage that is both positive and negative .*: 'p'"),
    ([GOOD | {"neg": ["p"]}], r":1: a passage that is both"),
    ([COLUMNS, COLUMNS | {"negative": "p"}], r":2: a passage that is both"),
    (
        [GOOD | {"pos_scores": [1, 2]}],
        r":1: pos_scores has 2 numbers for 1 passage; expected one number per passage",
    ),
    ([GOOD | {"neg_scores": [1], "neg": []}], r":1: neg_scores has 1 number for 0"),
    ([COLUMNS | {"scores": [1.0]}], r":1: scores has 1 number for 2 passages"),
    ([COLUMNS | {"score": 0.7}], r":1: score has 1 number for 2"),
    ([{"anchor": "q", "positive": ["p", "n"], "labels": [1]}], r":1: labels has 1 number for 2 passages"),
    ([GOOD | {"pos_scores": ["1"]}], r":1: the pos_scores \['1'\]; expected finite numbers"),
    (['{"query": "q", "pos": ["p"], "pos_scores": [NaN]}'], r":1: the pos_scores \[nan\]; expected finite"),
    ([GOOD | {"pos_scores": [1e39]}], r":1: the pos_scores .*; expected finite numbers"),
    ([COLUMNS | {"scores": "[1, x"}], r":1: the scores '\[1, x'; expected a number"),
    ([GOOD | {"neg": ["n", 7]}], r":1: a neg of type int; expected text"),
    ([GOOD | {"neg": [None]}], r":1: null in neg; expected text"),
    ([GOOD | {"pos": {"text": "p"}}], r":1: a pos of type dict; expected text"),
    ([GOOD | {"query": None}], r":1: null in query; expected text"),
    ([GOOD | {"query": " "}], r":1: a blank query"),
    ([GOOD | {"pos": [" "]}], r":1: a blank positive"),
    ([GOOD | {"neg": ["\ud800"]}], r":1: .*half of a surrogate pair.* in neg\[0\]"),
    ([GOOD | {"query": "\ud800"}], r":1: .*half of a surrogate pair.* in query"),
    ([GOOD | {"neg_id": ["1", "2"]}], r":1: neg_id has 2 ids for 1 passage"),
    ([GOOD | {"query_id": [1]}], r":1: the query_id \[1\]"),
    ([GOOD | {"pos_id": ["1"]}, GOOD | {"pos": ["x"], "pos_id": ["1"]}], r":2: a second text for passage id"),
    ([GOOD | {"query_id": "1"}, GOOD | {"query_id": 1, "query": "x"}], r":2: a second text for query id '1'"),
    ([TEVATRON, TEVATRON | {"positive_passages": [{"docid": 1}]}], r":2: null in text; expected text"),
    ([TEVATRON | {"positive_passages": ["p"]}], r':1: the positive_passages \["p"\]'),
    ([{"text": "p", "id": 1}], r":1: a row with text, id; expected one of these formats:\n- BEIR: "),
    ([GOOD, COLUMNS], r":1: the columns query, anchor, each of which can be the query"),
    ([GOOD, "[1]"], r":2: a JSON list; expected a JSON object"),
    (["{"], r":1: invalid JSON"),
    ([GOOD | {"stzoo": 3}], "'stzoo' is not a JSON object"),
    (["a,b", "1,2"], r":1: the line 'a,b'; expected one of these formats"),
    (["a\tb", "1\t2"], r":1: a line of 2 fields; expected one of these formats"),
    (["what is it\tsome thing\tno thing", "a b\tc d"], r":2: 2 fields, 2 of them filled; expected three"),
    (["what is it\tsome thing\tno thing", "a b\t\tc d"], r":2: 3 fields, 2 of them filled; expected three"),
    (["anchor,positive,positive", "a,b,c"], "has two columns named 'positive'"),
    (["anchor,positive", "a,b", "a,b,c"], r":3: 3 fields; expected 2, as in the header"),
    (["anchor,positive", 'a,"b'], r":2: an invalid row of csv"),
    (["anchor,positive"], "has no row"),
    ([], "is empty"),
    ([" "], "is empty"),
]


@pytest.mark.parametrize(("rows", "found"), BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(tmp_path, rows, found):
    path = put(tmp_path / "data.any", *rows)
    with pytest.raises(DataError, match=rf"data\.any.*{found}" if found[0] != ":" else rf"data\.any{found}"):
        read_training(path)


def test_an_unknown_form_is_answered_with_all_that_are_known(tmp_path):
    with pytest.raises(DataError) as error:
        read_training(put(tmp_path / "a.jsonl", {"text": "t"}))
    assert describe_formats() in str(error.value)
    assert [line.split(":")[0] for line in describe_formats().splitlines()] == [
        "- BEIR",
        "- FlagEmbedding",
        "- Tevatron",
        "- Tevatron by ids",
        "- KILT",
        "- sentence-transformers",
        "- MS MARCO triples",
        "- MS MARCO triples by ids",
    ]


BAD_IDS = [
    (
        [tevatron_ids(ROWS[0]) | {"negative_document_ids": ["y"]}],
        r":1: the unknown passage 'y'; expected an id of",
    ),
    ([tevatron_ids(ROWS[0]) | {"positive_document_ids": 7}], r":1: positive_document_ids of type int"),
    ([tevatron_ids(ROWS[0]) | {"positive_document_ids": [None]}], r":1: the positive_document_ids null"),
    ([tevatron_ids(ROWS[0]) | {"query_text": None}], r":1: null in query_text"),
    ([tevatron_ids(ROWS[0]) | {"negative_document_ids": ["a"]}], r":1: a passage that is both"),
    (["q1\ta\tc", "q1\tb\ty"], r":2: the unknown passage 'y'"),
    (["q1\ta\tc", "q9\tb\tc"], r":2: the unknown query 'q9'; expected an id of the queries next to"),
    ([{"id": 1, "input": " ", "output": []}], r":1: a blank query"),
    ([{"id": 1, "input": "q", "output": []}], r"no row of .*data\.any has provenance"),
    ([{"id": 1, "input": "q", "output": [{"provenance": 3}]}], r":1: the provenance 3"),
    (
        [{"id": 1, "input": "q", "output": [{"provenance": [{"wikipedia_id": 3}]}]}],
        r"corpus\.jsonl:1: no wikip",
    ),
]


@pytest.mark.parametrize(("rows", "found"), BAD_IDS)
def test_bad_ids_are_named_by_file_and_line(tmp_path, corpus, rows, found):
    path = put(tmp_path / "data.any", *rows)
    with pytest.raises(DataError, match=found):
        read_training(path, corpus=corpus)


def test_ids_without_a_corpus_that_has_them_are_refused(tmp_path):
    for row in (tevatron_ids(ROWS[0]), kilt(["1", "2"])[0], "q1\ta\tc"):
        path = put(tmp_path / "data.any", row)
        with pytest.raises(DataError, match=r"data\.any has only ids .*; give the corpus"):
            read_training(path)
        with pytest.raises(DataError, match="there is no corpus"):
            read_training(path, corpus=tmp_path / "nowhere")
    put(tmp_path / "collection.tsv", "a\tp", "c\tn")
    with pytest.raises(DataError, match=r"has no queries\*\.tsv next to collection\.tsv"):
        read_training(path, corpus=tmp_path)
    put(tmp_path / "queries.tsv", "q1\tq")
    assert read_training(path, corpus=tmp_path).queries == ["q"]
    put(tmp_path / "collection.tsv", "a\tp", "a\tn")
    with pytest.raises(DataError, match=r"collection\.tsv has the id 'a' twice"):
        read_training(path, corpus=tmp_path)
    put(tmp_path / "collection.tsv", "a\tp", "a n")
    with pytest.raises(DataError, match=r"collection\.tsv:2: a line without an id and a tab"):
        read_training(path, corpus=tmp_path)


def test_what_is_not_there_or_damaged_is_refused(tmp_path):
    for data in (tmp_path / "no" / "where", "rows.jsonl", "org/rows.csv"):
        with pytest.raises(DataError, match="there is no file or folder"):
            read_training(data)
    with pytest.raises(DataError, match="cannot be loaded from the Hub"):
        read_training("nobody/nothing")
    with pytest.raises(DataError, match="no training data of a known type"):
        read_training(tmp_path)
    path = put(tmp_path / "rows.jsonl", flag(ROWS[0]))
    with pytest.raises(DataError, match="has no splits, but the split is 'test'"):
        read_training(path, "test")
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 10)[:-9])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is damaged after line"):
        read_training(path)
    (tmp_path / "a.csv").write_bytes(b"anchor,positive\nq,\xff\n")
    with pytest.raises(DataError, match=r"a\.csv:2: byte 3 of the line is not UTF-8"):
        read_training(tmp_path / "a.csv")
    (tmp_path / "a.parquet").write_bytes(write_training(tmp_path / "m.parquet", ROWS, {}).read_bytes()[:-20])
    with pytest.raises(DataError, match="expected a whole Parquet file"):
        read_training(tmp_path / "a.parquet")


def test_parquet_columns_of_one_name_and_rows_that_are_wrong_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 3, ["anchor", "positive", "positive"]), path)
    with pytest.raises(DataError, match="two columns named 'positive'"):
        read_training(path)
    pq.write_table(pa.table({"anchor": ["x", "y"], "positive": ["p", None]}), path)
    with pytest.raises(DataError, match=r"a\.parquet:2: a row without a positive"):
        read_training(path)
    pq.write_table(pa.table({"anchor": [1], "positive": ["p"]}), path)
    with pytest.raises(DataError, match=r"a\.parquet:1: a anchor of type int"):
        read_training(path)


# --- real data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "queries", "pairs"), [("beir/scifact", 809, 919), ("minikilt/qa-squad", 4110, 4110)]
)
def test_real_data_survive_being_written(tmp_path, data, name, queries, pairs):
    training = read_training(data / name)
    assert (len(training.queries), len(training.positives.places)) == (queries, pairs)
    for suffix in (".jsonl", ".parquet"):
        path = write_training(tmp_path / f"m{suffix}", training.rows(), {"of": name})
        assert read_training(path).fingerprint == training.fingerprint
    folder = data / name if (data / name).is_dir() else (data / name).parent
    judged = read_judged(path, corpus=folder)
    whole = read_beir(data / name, "train")
    assert judged.notes == whole.notes
    assert judged.corpus_fingerprint == whole.corpus_fingerprint
    assert {query: set(grades) for query, grades in judged.qrels.items()} == {
        query: {name for name, grade in grades.items() if grade > 0} for query, grades in whole.qrels.items()
    }
