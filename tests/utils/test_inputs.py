"""Bad paths, pipes, JSON, YAML and Parquet are refused with file and place by every reader."""

import json
import os
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.helpers import cli

from stzoo.data.beir import read_beir
from stzoo.data.corpus import load_corpus
from stzoo.data.training_sets.read import read_judged, read_training
from stzoo.data.trec import read_qrels, read_run
from stzoo.errors import DataError, RecipeError, StzooError
from stzoo.evaluation.contamination.training_texts import find_training, training_texts
from stzoo.plugins import builders
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.recipes import parse_changes
from stzoo.utils.inputs import MAX_DEPTH, parse_json


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))


def contamination(path):
    return [text for file in find_training(path, False) for text in training_texts(file, False)]


# --- recipes -----------------------------------------------------------------------------------------------

RECIPE = "base: mlm\ncorpus: [corpus.jsonl]\n"
BAD_RECIPES = [
    ("learning_rate: 1e-3\nlearning_rate: 1e-5\n", "the key 'learning_rate' twice .*line 1"),
    ("options:\n  decoder_rate: 0.5\n  decoder_rate: 0.7\n", "the key 'decoder_rate' twice .*line 4"),
    ("batch_size: true\n", "batch_size is True: expected a plain number such as 10"),
    ("warmup_ratio: yes\n", "warmup_ratio is True: expected a plain number"),
    ("weights: {head: true}\n", r"weights is \{'head': True\}: expected a plain number"),
    ("max_steps: 1:30\n", "max_steps is '1:30': expected a plain number"),
    ("max_steps: 1_0\n", "max_steps is '1_0': expected a plain number"),
    ("max_steps: 010\n", "max_steps is '010': expected"),
    ("max_steps: 0x10\n", "max_steps is '0x10': expected a plain number"),
    ("learning_rate: 1_0.5\n", "learning_rate is '1_0.5': expected a plain number"),
    ("learning_rate: 1\uff11e-3\n", "learning_rate is '1\uff11e-3': expected a plain number"),
    ("max_steps: 2024-13-45\n", "max_steps is '2024-13-45': expected a plain number"),
    ('probe: "\\ud800"\n', "half of a surrogate pair, which is not a character, in probe"),
    ("probe: " + "[" * 2000 + "\n", f"nested more than {MAX_DEPTH} deep"),
    ("probe: " + "[" * 70 + "]" * 70 + "\n", f"nested more than {MAX_DEPTH} deep"),
    ("probe: &a [*a]\n", f"nested more than {MAX_DEPTH} deep"),
    ("b0: &b0 [x, x]\n" + "".join(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]\n" for i in range(1, 40)), "100000"),
    ("3: x\n", "the key '3', which is not text"),
    ("probe: !!bool maybe\n", "not YAML"),
    ("probe: !!timestamp x\n", "not YAML"),
    ("probe: !!binary aGk=\n", "a value of type bytes in probe"),
    ("probe: \0\n", "not YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "error"), BAD_RECIPES)
def test_a_recipe_that_could_be_misread_is_refused(tmp_path, lines, error):
    (tmp_path / "r.yaml").write_text(RECIPE + lines, encoding="utf-8")
    with pytest.raises(RecipeError, match=error):
        PretrainSettings.read(tmp_path / "r.yaml", {})


def test_text_that_looks_like_a_number_of_yaml_stays_text_and_numbers_stay_numbers(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "base: 2024-01-01\ncorpus: [1_0, 010, 1:30]\nlearning_rate: 1e-4\nmax_steps: 1e3\nepochs: .5\n"
        'batch_size: "8"\nskip_bad_lines: yes\noptions: {a: &a {x: 1, y: 2}, b: {<<: *a, y: -3}}\n'
    )
    wanted = PretrainSettings.read(tmp_path / "r.yaml", {})
    assert (wanted.base, wanted.corpus) == ("2024-01-01", ["1_0", "010", "1:30"])
    assert (wanted.learning_rate, wanted.max_steps, wanted.epochs, wanted.batch_size) == (1e-4, 1000, 0.5, 8)
    assert wanted.skip_bad_lines is True
    assert wanted.options == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": -3}}


def test_a_setting_is_given_once():
    with pytest.raises(RecipeError, match="--set seed is given twice"):
        parse_changes(["seed=1", "seed=2"])
    with pytest.raises(RecipeError, match="nested more than"):
        parse_changes(["options=" + "[" * 3000])


WORDS = [
    (["pretrain", "--batch-size", "1_0"], "batch_size is '1_0': expected a plain number"),
    (["pretrain", "--learning-rate", "\uff11e-3"], "learning_rate is '\uff11e-3'"),
    (["pretrain", "--seed=1_0"], "seed is '1_0'"),
    (["finetune", "m", "--matryoshka", "6_4"], "matryoshka is ['6_4']"),
    (["bench", "m", "--k", "1_000"], "k is '1_000'"),
    (["mine", "m", "--memory-gib", "\u0663"], "memory_gib is '\u0663'"),
    (["demo", "--seed", "1_0"], "seed is '1_0'"),
    (["prepare", "master", "--query-tokens", "6_4"], "query_tokens is '6_4'"),
]


@pytest.mark.parametrize(("words", "error"), WORDS)
def test_numbers_of_the_command_line_are_written_in_digits(words, error):
    done = cli(*words, "--output", "x")
    assert done.returncode == 2
    assert error in done.stderr


def test_options_of_components_are_numbers_too():
    for value in (True, "1_0", "\uff15"):
        with pytest.raises(RecipeError, match=r"the option decoder_rate is .*expected a plain number"):
            builders.call("x", rated, decoder_rate=value)
    assert builders.call("x", rated, decoder_rate="0.5") == 0.5


def rated(decoder_rate: float | None = None):
    return decoder_rate


# --- paths and files ---------------------------------------------------------------------------------------

READERS = {
    "corpus": load_corpus,
    "training rows": read_training,
    "what is mined": read_judged,
    "the corpus of ids": lambda path: read_training(__file__, corpus=path),
    "contamination": contamination,
    "a recipe": lambda path: PretrainSettings.read(path, {}),
}
BAD_PATHS = [
    ("x" * 300 + ".jsonl", r"x … x+\.jsonl' \(308 characters\).*File name too long"),
    ("~no-such-user/x.jsonl", "~no-such-user/x.jsonl names the home folder of a user"),
    ("a\0b.jsonl", "null byte"),
    ("\udcff.jsonl", "not valid UTF-8"),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("path", "error"), BAD_PATHS)
def test_a_path_that_cannot_be_is_refused_by_every_reader(reader, path, error):
    with pytest.raises(StzooError, match=error):
        READERS[reader](path)


@pytest.mark.parametrize("reader", [*READERS, "run", "qrels"])
def test_a_named_pipe_without_a_writer_is_not_waited_for(tmp_path, reader):
    pipe = tmp_path / "x.jsonl"
    os.mkfifo(pipe)
    read = {"run": read_run, "qrels": read_qrels, **READERS}[reader]
    with pytest.raises(StzooError, match=r"x\.jsonl is a named pipe; expected a file"):
        read(pipe)


def test_a_named_pipe_in_a_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    for reader in (load_corpus, contamination):
        with pytest.raises(DataError, match="is a named pipe"):
            reader(tmp_path)
    with pytest.raises(DataError, match="no training data"):
        read_training(tmp_path)


# --- JSON --------------------------------------------------------------------------------------------------

BAD_JSON = [
    ('"text": "b", "x": {"y": 1, "y": 2}', "the key 'y' twice"),
    ('"text": "b", "text": "c"', "the key 'text' twice"),
    ('"text": "b", "x": ' + "[" * 5000, "nested more than"),
    ('"text": "b", "x": ' + "[" * 100 + "]" * 100, "nested more than"),
    ('"text": "b \\ud800"', "half of a surrogate pair, which is not a character, in text"),
    ('"text": "b", "\\udfff": 1', "half of a surrogate pair, which is not a character, in a key"),
    ('"text": "b", "x": ' + "9" * 5000, "digits"),
]


@pytest.mark.parametrize(("rest", "error"), BAD_JSON)
def test_a_row_that_could_be_misread_is_refused_by_every_reader(tmp_path, rest, error):
    good = {"_id": "a", "text": "one two three", "query": "q", "positive": "p"}
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    rows = f"{json.dumps(good)}\n" + '{"_id": "b", "query": "r", "positive": "p", ' + rest + "}\n"
    for name in ("corpus", "queries"):
        (folder / f"{name}.jsonl").write_text(rows)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\ta\t1\n")
    for read in (
        lambda: load_corpus(folder / "corpus.jsonl"),
        lambda: read_training(folder / "corpus.jsonl"),
        lambda: contamination(folder / "corpus.jsonl"),
        lambda: read_beir(folder),
    ):
        with pytest.raises(DataError, match=rf"\.jsonl:2: invalid JSON \(.*{error}"):
            read()
    assert load_corpus(folder / "corpus.jsonl", skip_bad_lines=True).bad_lines == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(json_values, st.booleans())
def test_json_is_read_as_python_reads_it(value, ascii_only):
    try:
        text = json.dumps(value, ensure_ascii=ascii_only)
        text.encode()
        expected = json.loads(text)
        json.dumps(expected, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert parse_json(text) == expected


# --- tables ------------------------------------------------------------------------------------------------


def test_parquet_with_two_columns_of_one_name_is_refused_by_every_reader(tmp_path):
    texts = [pa.array(["one two three"]), pa.array(["four five six"])]
    pq.write_table(
        pa.Table.from_arrays([*texts, texts[0]], ["text", "text", "query"]), tmp_path / "a.parquet"
    )
    for reader in (load_corpus, read_training, contamination):
        with pytest.raises(DataError, match=r"a\.parquet has two columns named 'text'"):
            reader(tmp_path / "a.parquet")


def test_a_value_that_python_lacks_is_named_by_row_and_column(tmp_path):
    days = pa.array([0, 1 << 30], pa.int32()).cast(pa.date32())
    table = pa.table({"query": ["q", "r"], "positive": ["p", "o"], "text": ["a b c", "d e f"], "id": days})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:2: a value in id that cannot be read \(days="):
        read_training(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r'a\.parquet:1: an "id" of type date'):
        load_corpus(tmp_path / "a.parquet")
    assert date(1970, 1, 1) == days[0].as_py()
    pq.write_table(table.slice(1), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet:1: a value in id that cannot be read \(days="):
        load_corpus(tmp_path / "b.parquet")


def damaged(folder):
    """Ways in which a folder of save_to_disk is damaged: a file, and what becomes of its bytes."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        raw = file.read_bytes()
        for change in (b"", raw[: len(raw) // 2], b"[]", b"null", b"{}", b"[" * 5000, raw.replace(b'"', b"")):
            yield file, change


def test_a_damaged_folder_of_datasets_is_refused_or_read(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"query": "q", "positive": "p"}] * 3)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "d"))
    (arrow,) = (tmp_path / "d").rglob("*.arrow")
    raw = arrow.read_bytes()
    offsets = (b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)), (0x7FFFFFFF).to_bytes(4, "little"))
    arrow.write_bytes(raw.replace(offsets[0], offsets[0][:4] + offsets[1] + offsets[0][8:]))
    assert arrow.read_bytes() != raw
    with pytest.raises(DataError, match="is damaged"):  # reading a value would end the process
        read_training(tmp_path / "d")
    arrow.write_bytes(raw)
    refused = 0
    for file, change in list(damaged(tmp_path / "d")):
        before = file.read_bytes()
        file.write_bytes(change)
        try:
            assert read_training(tmp_path / "d").queries == ["q"]
        except DataError:
            refused += 1
        file.write_bytes(before)
    assert refused >= 14


def test_csv_that_ends_in_the_middle_or_has_endless_fields_is_refused(tmp_path):
    for text, error in (
        ('anchor,positive,label\nq,p,"' + "[" * 3000 + '"\n', r":2: the label '\[+ … \[+' \(3002 char"),
        ("anchor,positive\nq," + "x" * 200_000 + "\n", r":2: an invalid row of csv \(field larger"),
        ('anchor,positive\nq,"p\n', r":2: an invalid row of csv"),
    ):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(DataError, match=rf"a\.csv{error}"):
            read_training(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("\n\nanchor,positive\nq,p\n")
    assert read_training(tmp_path / "a.csv").queries == ["q"]


# --- any rows ----------------------------------------------------------------------------------------------

NAMES = """
    query question anchor positive pos positives passage document answer context text negative neg negatives
    hard_negative negative_1 negative2 neg_1 label labels relevance is_relevant score scores similarity
    pos_scores neg_scores pos_id neg_id query_id qid id title positive_passages negative_passages
    positive_document_ids query_text input output stzoo split rel Negative hardNegs
""".split()  # noqa: SIM905 - one line for each would be long
names = st.sampled_from(NAMES) | st.text(max_size=6)
texts = st.sampled_from(["a", "b c", "", " ", "é", "1", "[1, 0]", "\0", "北京"]) | st.text(max_size=4)
values = (
    texts
    | st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.lists(texts | st.integers(0, 1) | st.none(), max_size=3)
    | st.lists(st.fixed_dictionaries({"docid": texts, "text": texts}), max_size=2)
)
rows = st.lists(st.dictionaries(names, values, max_size=6), min_size=1, max_size=4)
likely = st.lists(
    st.fixed_dictionaries(
        {"query": texts, "positive": texts | st.lists(texts, max_size=2)},
        optional=dict.fromkeys(("neg", "label", "score", "hard_negatives", "x", "pos_id"), values),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300)
@given(rows | likely)
def test_any_rows_are_understood_or_refused(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        training = read_training(path)
    except StzooError:
        return
    (columns,) = training.columns
    used = {name for role, found in columns.items() if role not in ("form", "unused") for name in found}
    assert used | {*columns.get("unused", ())} | {"stzoo"} >= {name for row in rows for name in row}
    for row in training.rows():
        assert row.positives
        assert all(one.text.strip() for one in (*row.positives, *row.negatives))
    if not {"label", "grade"} & columns.keys():  # then each positive stands in a column of positives
        given_texts = {
            text
            for row in rows
            for name in columns["positive"]
            for text in (row.get(name) if isinstance(row.get(name), list) else [row.get(name)])
            if isinstance(text, str)
        }
        assert (
            columns["form"] == "Tevatron"
            or {one.text for row in training.rows() for one in row.positives} <= given_texts
        )
