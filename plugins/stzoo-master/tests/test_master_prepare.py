"""The data of MASTER: what is made, what the corpus brings, what the authors' own files become."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import stzoo
from stzoo.data.corpus import load_corpus
from stzoo.testing import TEXTS, sentences, tiny_masked_lm


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_masked_lm("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def generators(base, tmp_path_factory):
    """Random weights, real shapes: a sequence-to-sequence model and a causal one."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = dict(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=tokenizer.sep_token_id)
    t5 = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, **ids)
    gpt2 = GPT2Config(n_positions=256, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, **ids)
    folders = {}
    for name, model in (("t5", T5ForConditionalGeneration(t5)), ("gpt2", GPT2LMHeadModel(gpt2))):
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def make(base, tmp_path):
    def run(rows, name="rows.jsonl", **given):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        plain = dict(queries="none", continuation="none", neighbours=["none"], frequencies="none")
        folder = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        stzoo.prepare("master", output=folder, corpus=[str(path)], tokenizer=str(base), **{**plain, **given})
        return folder

    return run


def rows_of(folder):
    return pq.read_table(next(folder.glob("passages-*.parquet"))).to_pylist()


PLAIN = [{"id": f"doc.{n}", "text": text} for n, text in enumerate(sentences(9))]


def test_models_ask_and_continue_each_passage(make, generators):
    given = dict(
        queries=str(generators["t5"]),
        queries_per_passage=4,
        query_tokens=8,
        continuation=str(generators["gpt2"]),
        continuation_tokens=12,
        shard_rows=4,
    )
    folder = make(PLAIN, **given)
    rows = rows_of(folder)
    assert all(1 <= len(row["queries"]) <= 4 for row in rows)
    assert all(row["neighbours"] is None for row in rows)
    assert len({row["continuation"] for row in rows}) > 1
    made_by = json.loads((folder / "run.json").read_text())["made_by"]
    assert made_by["queries"]["model"] == generators["t5"].name
    assert made_by["continuation"]["max_tokens"] == 12
    assert rows_of(make(PLAIN, **given)) == rows
    assert rows_of(make(PLAIN, **given, seed=1)) != rows
    repeated = make([{"id": str(n), "text": TEXTS[0]} for n in range(8)], **given)
    first, second = (rows_of(repeated)[n]["continuation"] for n in (0, 4))
    assert first != second, "each shard draws anew"


def test_each_column_is_its_own(make):
    rows = rows_of(make(PLAIN, queries="lexical", queries_per_passage=3, neighbours=["document"]))
    texts = {row["text"] for row in PLAIN}
    for number, row in enumerate(rows):
        assert set(row["neighbours"]) <= texts - {row["text"]}
        assert row["neighbours"][0] == PLAIN[number + 1 if number < 8 else 7]["text"]
        assert not set(row["queries"]) & texts
        assert row["continuation"] is None


def test_a_passage_has_so_many_neighbours_of_all_kinds(make):
    rows = rows_of(make(PLAIN, neighbours=["document", "bm25"], neighbours_per_passage=3))
    alone = rows_of(make(PLAIN, neighbours=["bm25"], neighbours_per_passage=1))
    for row, nearest in zip(rows, alone, strict=True):
        assert len(set(row["neighbours"])) == len(row["neighbours"]) == 3
        assert nearest["neighbours"][0] in row["neighbours"][:2]


def test_no_model_is_loaded_for_what_the_corpus_brings(make):
    brought = [
        {**row, "queries": [f"what is {n}"], "continuation": f"and {n}", "neighbours": [TEXTS[0]]}
        for n, row in enumerate(PLAIN)
    ]
    folder = make(brought, queries="no/such", continuation="no/such", neighbours=["no/such"])
    assert [row["queries"] for row in rows_of(folder)] == [row["queries"] for row in brought]
    assert json.loads((folder / "run.json").read_text())["made_by"]["brought"] == [
        "continuation", "neighbours", "queries",
    ]  # fmt: skip


def test_only_rows_that_lack_something_get_it(make):
    some = [{**row, "queries": ["what is brought"]} if n % 2 else row for n, row in enumerate(PLAIN)]
    for number, row in enumerate(rows_of(make(some, queries="lexical"))):
        assert (row["queries"] == ["what is brought"]) == bool(number % 2)


def test_the_released_form_is_read_as_it_is(make, base):
    """Token ids under text, queries and next, in a file of the authors' kind of name."""
    tokenizer = AutoTokenizer.from_pretrained(base)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = [
        {
            "text": ids(f"{TEXTS[n]} [SEP] {TEXTS[0]}"),
            "queries": [ids(TEXTS[1]), ids("a war")],
            "next": [ids(TEXTS[2])],
        }
        for n in range(5)
    ] + [{"text": ids(TEXTS[6]), "queries": [ids(TEXTS[1])], "next": [[]]}]
    folder = make(rows, name="ms_pass.tsv.json", frequencies="count")
    for given, made in zip(rows, rows_of(folder), strict=True):
        assert ids(made["text"]) == given["text"]
        assert [ids(query) for query in made["queries"]] == given["queries"]
        assert ids(made["continuation"] or "") == given["next"][0]
    corpus = load_corpus(folder, columns={"queries": list[str], "continuation": str, "neighbours": list[str]})
    assert corpus.rows.column_names == ["id", "text", "queries", "continuation"]


def test_text_in_the_released_form_is_read_too(make):
    rows = rows_of(make([{"text": TEXTS[0], "queries": ["a wing"], "next": [TEXTS[1], "more"]}]))
    assert rows[0]["continuation"] == TEXTS[1]
    assert rows[0]["queries"] == ["a wing"]


def test_a_table_of_the_users_own_is_taken(make, tmp_path):
    pq.write_table(pa.table({"word": ["wing", "the"], "count": [1, 9]}), tmp_path / "own.parquet")
    folder = make(PLAIN, frequencies=str(tmp_path / "own.parquet"))
    table = pq.read_table(folder / "frequencies/words.parquet")
    assert table.to_pylist() == [{"word": "the", "count": 9}, {"word": "wing", "count": 1}]
    assert not (make(PLAIN) / "frequencies").exists()


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"queries": "gpt2"}, stzoo.ModelError, "expected a sequence-to-sequence model"),
        ({"continuation": "t5"}, stzoo.ModelError, "expected a causal"),
        ({"neighbours": ["none", "document"]}, stzoo.RecipeError, "none alone"),
        ({"neighbours": ["bm52"]}, stzoo.ModelError, "by document, bm25 or an encoder"),
        (
            {"frequencies": "counts"},
            stzoo.RecipeError,
            "'counts', which is not a file; expected count, none",
        ),
    ],
)
def test_what_makes_nothing_of_the_kind_is_refused(make, generators, change, error, told):
    named = {
        key: str(generators.get(value, value)) if isinstance(value, str) else value
        for key, value in change.items()
    }
    with pytest.raises(error, match=told):
        make(PLAIN, **named)


@pytest.mark.parametrize("queries", [[""], ["a wing", " "], "a wing", [1]])
def test_empty_or_wrong_queries_are_told_with_their_line(make, queries):
    with pytest.raises(stzoo.DataError, match=r"line 2|:2"):
        make([PLAIN[0], {**PLAIN[1], "queries": queries}])


def test_it_is_told_how_many_documents_the_ids_make(make):
    def notes(rows):
        made = make(rows, neighbours=["document"])
        return json.loads((made / "run.json").read_text())["notes"]

    (told,) = notes([{**row, "id": f"{'ab'[n > 4]}#{n}"} for n, row in enumerate(PLAIN)])
    assert "9 passages in 2 documents, according to ids such as a#0." in told
    no_documents = (
        [{"text": row["text"]} for row in PLAIN],  # the ids count the lines of the file
        [{**row, "id": f"MED-{n}"} for n, row in enumerate(PLAIN)],
        [{**row, "id": f"msmarco_passage_{n}"} for n, row in enumerate(PLAIN)],
    )
    for rows in no_documents:
        (told,) = notes(rows)
        assert "No neighbours by document" in told
