"""Every function takes Python objects as well as paths, and returns objects that print as tables."""

import functools
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
import torch
import tqdm
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import WordWeights
from stzoo_retromae.retromae import RetroMAE
from support import notebook
from support.helpers import cli
from support.objectives import Autoencoder

import stzoo
from stzoo.data import objects
from stzoo.data.corpus import load_corpus
from stzoo.errors import DataError, ModelError, OutputError, PluginError, RecipeError
from stzoo.models.loaded import open_model
from stzoo.models.loading import load_model
from stzoo.models.objects import model_path, model_revision
from stzoo.plugins import classes, manager
from stzoo.pretraining.pretrain import load_base
from stzoo.testing import sentences
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.trained import TrainedModel
from stzoo.utils.messages import notify
from stzoo.utils.public import public

TEXTS = sentences(12, seed=3)
ROWS = [{"id": f"d{i}", "title": "T", "text": text} for i, text in enumerate(TEXTS)]
DICTS = (
    {row["id"]: {"title": row["title"], "text": row["text"]} for row in ROWS},
    {f"q{i}": " ".join(text.split()[:4]) for i, text in enumerate(TEXTS)},
    {f"q{i}": {f"d{i}": 1} for i in range(12)},
)


class Secret:
    def __repr__(self):
        raise AssertionError("an object must not be shown")


@pytest.fixture(scope="module")
def model(base):
    return load_model(str(base))


def rows_of(path):
    lines = (line for line in open(f"{path}/corpus.jsonl", encoding="utf-8"))  # noqa: PTH123, SIM115
    return [json.loads(line) for line in lines]


# --- corpora


@pytest.mark.parametrize(
    "corpus",
    [
        ROWS,
        tuple(ROWS),
        iter(ROWS),
        pd.DataFrame(ROWS),
        polars.DataFrame(ROWS),
        pa.Table.from_pylist(ROWS),
        datasets.Dataset.from_list(ROWS),
        DICTS[0],
        DICTS,
    ],
    ids=lambda corpus: type(corpus).__name__,
)
def test_every_form_of_a_corpus_has_the_same_rows(corpus):
    rows = rows_of(objects.corpus_path(corpus))
    assert [(row["_id"], row["title"], row["text"]) for row in rows] == [
        (f"d{i}", "T", text) for i, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("texts", [TEXTS, pd.Series(TEXTS), polars.Series(TEXTS), np.array(TEXTS)])
def test_texts_are_numbered(texts):
    assert [row["_id"] for row in rows_of(objects.corpus_path(texts))] == [str(i) for i in range(1, 13)]


def test_a_path_says_what_the_object_was_and_changes_with_its_content():
    first = objects.corpus_path(TEXTS)
    assert "/objects/list-of-12-texts-" in first
    assert objects.corpus_path(list(TEXTS)) == first
    assert objects.corpus_path([*TEXTS[:-1], "another text of some words"]) != first
    assert "/objects/DataFrame-of-12-rows-" in objects.corpus_path(pd.DataFrame(ROWS))
    assert "/objects/12-passages-12-queries-" in objects.judged_path(DICTS)


def test_a_list_of_strings_is_one_of_texts_unless_they_are_names(tmp_path):
    file = tmp_path / "my corpus"
    file.write_text("")
    for names in (["a.jsonl", "org/name"], ["pydocs"], ["fodler"], [str(file), "b.jsonl"], ["one text"]):
        assert objects.corpus_paths(names) == names
    assert objects.corpus_paths([file, "b.jsonl"]) == [str(file), "b.jsonl"]
    assert objects.corpus_paths(TEXTS) == [objects.corpus_path(TEXTS)]
    assert objects.corpus_paths([pd.DataFrame(ROWS), "pydocs"])[1] == "pydocs"
    with pytest.raises(DataError, match=r"my corpus'.* is a file or folder, but '.*my notes'.* is not"):
        objects.corpus_paths([str(file), str(tmp_path / "my notes")])


def test_values_that_json_lacks_and_missing_values_are_no_hindrance():
    frame = pd.DataFrame(
        {"text": TEXTS[:2], "title": ["T", None], "when": pd.to_datetime(["2024-01-01"] * 2)}
    )
    first, second = rows_of(objects.corpus_path(frame))
    assert (first["when"][:10], second["title"], second["text"]) == ("2024-01-01", None, TEXTS[1])


@pytest.mark.parametrize(
    ("corpus", "error"),
    [
        (Secret(), "an object of type Secret was given; expected a list of texts"),
        ([*TEXTS, Secret()], "13: a Secret; expected a text"),
        (pd.DataFrame({"body": TEXTS}), 'the columns body; expected a "text"'),
        ([], "a list, is empty"),
        ({"d1": Secret()}, "an object of type dict was given"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}), r"one split of it"),
    ],
)
def test_a_wrong_corpus_is_a_short_error(corpus, error):
    with pytest.raises(DataError, match=error) as raised:
        objects.corpus_path(corpus)
    assert len(str(raised.value)) < 300


def test_settings_keep_paths_in_place_of_objects(base, model):
    settings = PretrainSettings.read(None, {"base": str(base), "corpus": TEXTS, "probe": DICTS})
    assert settings.corpus == [objects.corpus_path(TEXTS)]
    assert settings.probe == objects.judged_path(DICTS)
    assert load_corpus(settings.corpus).rows["text"][:] == TEXTS
    tasks = [{"name": "a", "data": [{"query": "a", "positive": "b"}], "dev_data": DICTS}]
    settings = FinetuneSettings.read(None, {"model": model, "tasks": tasks})
    assert settings.model == model_path(model)
    assert settings.tasks[0].data.endswith(".jsonl")
    assert settings.tasks[0].dev_data == objects.judged_path(DICTS, "dev")
    for name in ("base", "pooling", "batch_size", "corpus"):
        with pytest.raises((RecipeError, DataError, ModelError), match="type Secret") as raised:
            PretrainSettings.read(None, {"base": str(base), "corpus": "x.jsonl", name: Secret()})
        assert len(str(raised.value)) < 300


def test_wrong_rows_are_short_errors():
    for function, given, error in (
        (stzoo.pretrain, {"base": "x", "corpus": [1, 2]}, "1: an int; expected a text"),
        (stzoo.pretrain, {"base": "x", "corpus": []}, "the corpus, a list, is empty"),
        (stzoo.finetune, {"data": []}, "the training data, a list, is empty"),
        (stzoo.finetune, {"data": [("a question", "an answer")]}, "1: a tuple; expected a dict such as"),
    ):
        with pytest.raises(DataError, match=error):
            function(**given, output="x")
    with pytest.raises(RecipeError, match=r"type DataFrame was given as recipe; .* by name, as in data="):
        stzoo.finetune("x", pd.DataFrame(ROWS), output="x")
    with pytest.raises(DataError, match="a dict with corpus and queries only was given"):
        stzoo.bench("bm25s", data={"corpus": DICTS[0], "queries": DICTS[1]})


def test_judgements_may_name_their_splits():
    corpus, queries, qrels = DICTS
    folder = objects.judged_path(
        {"corpus": corpus, "queries": queries, "qrels": {"dev": qrels, "test": qrels}}
    )
    assert sorted(file.name for file in (TrainedModel(folder) / "qrels").iterdir()) == ["dev.tsv", "test.tsv"]
    for wrong, error in (
        ((corpus, queries, {"q1": {"d1": "high"}}), "the qrels of 'q1' are of another form"),
        ((corpus, {"q1": 3}, qrels), "the query 'q1' is of type int"),
        ((corpus, queries), "a tuple of 2 items was given; expected a BEIR folder, or the dicts"),
        ((corpus, queries, "qrels.tsv"), "whose qrels are of type str"),
        ((corpus, ["a query"], qrels), "whose queries are of type list"),
        ((corpus, queries, {"q1": ["d1"]}), "whose qrels of 'q1' are of type list, not grades by document"),
        ({"corpus": corpus, "queries": queries}, "a dict with corpus and queries only was given"),
        (Secret(), "an object of type Secret"),
    ):
        with pytest.raises(DataError, match=error):
            objects.judged_path(wrong)


# --- models


def test_a_model_object_is_opened_as_it_is(model):
    opened = open_model(model)
    assert opened.model is not model
    assert (opened.name, opened.revision) == ("bert", model_revision(model))
    model.encode("a text")  # sets the padding of its tokenizer
    assert open_model(model, name="mine").revision == opened.revision
    shorter = open_model(model, max_tokens=8)
    assert (shorter.model.max_seq_length, model.max_seq_length) == (8, 64)
    weights = [one[0].model.get_input_embeddings().weight.data_ptr() for one in (shorter.model, model)]
    assert weights[0] == weights[1]
    with pytest.raises(RecipeError, match="dtype and backend are for models that stzoo loads"):
        open_model(model, dtype="float16")
    with pytest.raises(ModelError, match="an object of type Secret was given as model"):
        open_model(Secret())


def test_the_copy_of_a_model_has_its_vectors_and_is_made_once(model):
    folder = model_path(model)
    np.testing.assert_allclose(SentenceTransformer(folder).encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    assert model_path(model) == folder


def test_search_takes_a_model_and_any_corpus(model, tmp_path):
    found = stzoo.search(model, TEXTS[:2], data=TEXTS, k=2)
    assert [one["found"][0]["text"] for one in found] == TEXTS[:2]
    assert len(found.to_pandas()) == 4
    assert TEXTS[0][:20] in str(found)
    assert json.loads(found.save(tmp_path / "found.json").read_text()) == list(found)
    file = tmp_path / "passages.csv"
    pd.DataFrame(ROWS).to_csv(file, index=False)
    [one] = stzoo.search(model, TEXTS[3], data=file, k=1)
    assert one["found"][0]["id"] == "d3"
    with pytest.raises(DataError, match="an object of type int"):
        stzoo.search(model, "a question", data=3)


@pytest.mark.usefixtures("unverified")
def test_mined_file_by_objects(model, tmp_path, capfd):
    mined = stzoo.mine(model, data=DICTS, output=tmp_path / "mined.jsonl", mined=2, depth=5)
    assert mined == mined.path == tmp_path / "mined.jsonl"
    assert mined["counts"] == mined.counts == mined.record["counts"]
    assert mined.counts["queries"] == 12
    assert "<td>12</td>" in mined._repr_html_()
    assert list(mined.counts.to_pandas().columns) == ["", "number"]
    found = stzoo.contamination(mined, data=DICTS, minhash=False)
    assert found.contaminated
    given = dict(max_steps=1, batch_size=4, dev_queries=0, threads=1, progress=False)
    tuned = stzoo.finetune(model, data=mined, output=tmp_path / "tuned", **given)
    assert tuned.record["recipe"]["data"] == str(mined)
    assert "/objects/" not in capfd.readouterr().err.partition("Next:")[2]  # the copy of the model
    [row] = tuned.history
    assert row.keys() == {"step", "loss", "learning_rate"}


def test_contamination_by_objects(tmp_path):
    train = [
        {"query": "an unrelated question", "pos": [f"T {TEXTS[0]}"]},
        {"query": "another", "pos": ["nothing"]},
    ]
    found = stzoo.contamination(train, data=DICTS, minhash=False)
    assert (found.found_passages, found.contaminated) == (("d0",), ("q0",))
    assert len(found.to_pandas()) == len(found.hits)
    assert "test queries" in str(found)
    assert json.loads(found.save(tmp_path / "found.json").read_text())["queries"] == 12
    whole = stzoo.contamination([f"T {text}" for text in TEXTS], data=DICTS, minhash=False)
    assert len(whole.found_passages) == 12


# --- bench and compare


def test_bench_and_compare_by_objects(model, tmp_path):
    results = stzoo.bench({"mine": model}, data={"one": DICTS, "two": DICTS}, output=tmp_path / "results")
    assert [(row.model, row.dataset) for row in results] == [
        (name, dataset) for dataset in ("one", "two") for name in ("bm25s", "mine")
    ]
    assert list(results.to_pandas().columns[:4]) == ["model", "dataset", "split", "nDCG@10"]
    assert "one (test)" in str(results) == repr(results)
    assert "<td>mine</td>" in results._repr_html_()
    assert len(json.loads(results.save(tmp_path / "results.json").read_text())["results"]) == 4
    stored = stzoo.compare(["bm25s", "mine"], results=tmp_path / "results", data={"one": DICTS, "two": DICTS})
    for comparison in (
        stzoo.compare(results),
        stzoo.compare(["bm25s", "mine"], results=results),
        stzoo.compare([[row for row in results if row.model == name] for name in ("bm25s", "mine")]),
    ):
        assert [pair.test for pair in comparison.pairs] == [pair.test for pair in stored.pairs]
    assert "mine against bm25s on one (test)" in str(stored)
    for pairs in (stored.pairs, comparison.pairs):  # also without data, which bench has read
        assert all(example.text for example in [*pairs[0].gains, *pairs[0].losses])
    assert [*stored.pairs[0].gains, *stored.pairs[0].losses]
    with pytest.raises(DataError, match=r"there is no system 'mien' in the results.*did you mean 'mine'"):
        stzoo.compare(["bm25s", "mien"], results=results)


def test_two_models_of_one_name_keep_their_own_runs(base):
    """Fusion and comparison tell them apart by their revisions."""
    models = [load_model(str(base)) for _ in range(2)]
    with torch.no_grad():
        next(models[1].parameters()).mul_(-1)
    given = dict(data=DICTS, fuse="min-max", progress=False)
    both = stzoo.bench(models, **given)
    alone = [stzoo.bench(one, bm25=True, **given) for one in models]
    fused = {
        (row.model, row.revision): row.scores.per_query for row in both if row.model.startswith("BM25 +")
    }
    assert len(fused) == 2
    for results in alone:
        row = next(row for row in results if row.model.startswith("BM25 +"))
        assert fused[row.model, row.revision] == row.scores.per_query
    comparison = stzoo.compare(
        [stzoo.bench({"one": models[0]}, data=DICTS), stzoo.bench({"two": models[1]}, data=DICTS, bm25=False)]
    )
    assert (comparison.baseline, comparison.systems) == ("bm25s", ("one", "two"))


def test_a_copy_of_a_model_depends_on_all_that_its_vectors_do(base):
    model = load_model(str(base))
    first = model_path(model)
    model.truncate_dim = 8
    assert model_path(model) != first
    model.truncate_dim = None
    assert model_path(model) == first
    before = model_revision(model)
    model.tokenizer.padding_side = "left"
    assert model_revision(model) != before


@pytest.mark.parametrize("grade", [0.5, float("inf"), "high", None])
def test_grades_are_whole_numbers(grade):
    with pytest.raises(DataError, match="expected grades"):
        objects.judged_path((DICTS[0], DICTS[1], {"q0": {"d0": grade}}))
    assert objects.judged_path((DICTS[0], DICTS[1], {"q0": {"d0": 1.0}}))


@pytest.mark.parametrize("value", [b"hello", {"a", "b"}, object()])
def test_values_that_are_no_text_do_not_become_one(value):
    with pytest.raises(DataError, match=f"a value of type {type(value).__name__} was given"):
        objects.training_path([{"query": "a question", "positive": value}])


def test_runs_may_be_dicts():
    run = {query: {f"d{i}": 1.0, f"d{(i + 1) % 12}": 0.5} for i, query in enumerate(DICTS[1])}
    results = stzoo.score({"mine": run, "other": run}, data=DICTS)
    assert [(row.model, row.scores.mean["nDCG@10"]) for row in results] == [("mine", 1.0), ("other", 1.0)]
    assert stzoo.score(run, data=DICTS)[0].scores.mean["MRR@10"] == 1.0
    with pytest.raises(DataError, match="an object of type Secret was given as run"):
        stzoo.score([Secret()], data=DICTS)


def test_a_wrong_model_or_data_set_is_refused_before_anything_is_read(model):
    with pytest.raises(ModelError, match="an object of type Secret was given as model"):
        stzoo.bench([model, Secret()], data=DICTS)
    with pytest.raises(DataError, match="an object of type Secret"):
        stzoo.bench(model, data=Secret())
    with pytest.raises(DataError, match="has no split 'dev'"):
        stzoo.bench(model, data=DICTS, split="dev")


# --- the whole way


@pytest.mark.usefixtures("unverified")
def test_the_whole_way_by_objects(base, tmp_path):
    frame, comparison, results, pretrained, tuned = notebook.run(base, tmp_path)
    assert list(frame["system"]) == ["pre-trained", "tuned"]
    assert comparison.baseline == "bm25s"
    assert len(results) == 3
    assert isinstance(tuned.model, SentenceTransformer)
    assert tuned.path == tmp_path / "tuned" == tuned
    assert tuned.history[-1]["step"] == 2
    assert "loss" in tuned.history.to_pandas()
    assert "list-of-40-texts-" in json.loads((pretrained / "run.json").read_text())["recipe"]["corpus"][0]
    assert str(tuned) in tuned._repr_html_()
    record = json.loads((tuned / "run.json").read_text())
    assert "list-of-20-rows-" in record["recipe"]["data"]


# --- the surface


@pytest.mark.usefixtures("unverified")
def test_an_objective_may_be_a_class(base, tmp_path):
    common = {"corpus": TEXTS, "max_steps": 1, "max_tokens": 16}
    first = stzoo.pretrain(base=base, objective=Autoencoder, output=tmp_path / "first", **common)
    name = json.loads((first / "run.json").read_text())["recipe"]["objective"]
    assert re.fullmatch(r"python:autoencoder@[0-9a-f]{8}", name)
    card = (first / "README.md").read_text()
    assert "Objective: **autoencoder**, a class of its author's, which no package provides" in card
    assert "- autoencoder" not in card, "it is no tag"
    assert "defined" not in card
    assert re.search(r"Made with: .*\d; \d+ CPU cores", card)
    again = stzoo.pretrain(base=first, objective=Autoencoder, output=tmp_path / "again", **common)
    assert "untrained" not in (again / "README.md").read_text()
    changed = type("Autoencoder", (Autoencoder,), {"scale": 2})
    assert stzoo.pretrain(base=first, objective=changed, output=tmp_path / "changed", **common).model
    assert SentenceTransformer(str(again)).encode(TEXTS[0]).shape == (32,)
    with pytest.raises(ModelError, match=r"was trained with 'python:autoencoder@.*does not fit 'retromae'"):
        stzoo.pretrain(base=first, output=tmp_path / "other", **common)


STEPS = {"most": 99}  # a global variable, which is no part of the class below


@pytest.mark.usefixtures("unverified")
def test_a_run_with_a_class_is_not_resumed_with_another(base, corpus, tmp_path, monkeypatch):
    common = {"corpus": TEXTS, "max_steps": 4, "max_tokens": 16, "save_steps": 2, "base": base}

    def kind(factor):
        class Mine(Autoencoder):
            calls = 0
            scale = factor

            def losses(self, **views):
                Mine.calls += 1
                if Mine.calls > STEPS["most"]:
                    raise KeyboardInterrupt
                return {name: loss * self.scale for name, loss in super().losses(**views).items()}

        Mine.calls = 0
        return Mine

    monkeypatch.setitem(STEPS, "most", 3)
    with pytest.raises(KeyboardInterrupt):
        stzoo.pretrain(objective=kind(1.0), output=tmp_path / "run", **common)
    with pytest.raises(OutputError, match=r"'python:mine@[0-9a-f]{8}' then, 'python:mine@"):
        stzoo.pretrain(objective=kind(2.0), output=tmp_path / "run", resume=True, **common)
    with pytest.raises(OutputError, match=r"'python:mine@[0-9a-f]{8}' then, 'retromae:retromae' now"):
        stzoo.pretrain(output=tmp_path / "run", resume=True, **common)
    monkeypatch.setitem(STEPS, "most", 99)
    assert stzoo.pretrain(objective=kind(1.0), output=tmp_path / "run", resume=True, **common).model
    name = json.loads((tmp_path / "run/run.json").read_text())["recipe"]["objective"]
    words = ["--objective", name, "--base", base, "--corpus", corpus, "--output", tmp_path / "x"]
    done = cli("pretrain", *words, env=os.environ)  # another process, which does not know the class
    assert done.returncode == 2
    assert "was passed in Python" in done.stderr


def test_other_code_has_another_fingerprint():
    def kind(text, name="Mine", base=object):
        exec(f"class {name}(base):\n{text}", places := {**GLOBALS, "base": base})  # as in another process
        return places[name]

    one_text = "    rate = {0!r}\n    def draw(self, n={1!r}):\n        return {{'a', 'b'}} if n else {2!r}"
    known = {classes.fingerprint(kind(one_text.format(*values))) for values in np.ndindex(2, 2, 2)}
    assert len(known) == 8
    more = [
        "    @functools.cached_property\n    def rate(self):\n        return 0",
        "    rate = property(None, lambda self, value: 0)",
        "    rate = functools.partialmethod(print, 0)",
        "    @decorated\n    def draw(self):\n        return 0",
        "    draw = (lambda value: lambda self: value)(0)",
        "    one = (lambda value: lambda self: value)(1)\n    two = (lambda value: lambda self: value)(0)",
        "    def draw(self, how={'a': [0]}):\n        return super().draw(how)",
    ]
    for text in more:
        one, other = (classes.fingerprint(kind(text.replace("0", digit))) for digit in "07")
        assert one != other, text
    again = kind(one_text.format(0, 0, 0), "Renamed")
    assert classes.fingerprint(again) in known
    assert classes.fingerprint(kind("    pass", base=again)) != classes.fingerprint(kind("    pass"))
    hashed = {
        subprocess.run(
            [sys.executable, "-c", HASHED], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True
        ).stdout
        for seed in "123"
    }
    assert len(hashed) == 1
    assert len(hashed.pop().strip()) == 8


def decorated(function):
    @functools.wraps(function)
    def call(*given):
        return function(*given)

    return call


GLOBALS = {"functools": functools, "decorated": decorated, "__name__": "mine"}
HASHED = """
from torch.nn import functional
from stzoo.plugins import classes
class Mine:
    words = {"one", "two", "three"}
    losses = {"a": functional.mse_loss, "b": (object(), {"x", "y"})}
    def test(self, word, loss=functional.cross_entropy, also=lambda: {"p", "q", "r"}):
        return word in {"four", "five", "six"} or super().test()
print(classes.fingerprint(Mine))
"""


def the_backbone(backbone):
    return backbone


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (7, r"objective: input should be|objective is 7"),
        (int, "objective 'python:int@[0-9a-f]{8}' cannot be built: TypeError"),
        (the_backbone, "is a Backbone; expected a subclass of stzoo.Objective"),
        (lambda backbone: backbone, "that has a name"),
        (functools.partial(Autoencoder, rate=0.1), "that has a name"),
    ],
)
def test_what_is_no_objective_is_refused(base, tmp_path, given, error):
    with pytest.raises((PluginError, RecipeError), match=error):
        stzoo.pretrain(base=base, objective=given, corpus=TEXTS, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_objective_that_is_an_object_is_refused(base, tmp_path):
    objective = Autoencoder(load_base(str(base)).backbone)
    with pytest.raises(PluginError, match="expected a name, or a class or function that has a name"):
        stzoo.pretrain(base=base, objective=objective, corpus=TEXTS, output=tmp_path / "run")


def test_classes_have_their_own_names_and_leave_those_of_plugins_alone():
    installed = manager.all("objective")

    class Retromae:
        """First line.

        Second.
        """

    name = manager.register("objective", Retromae)
    assert name.startswith("python:retromae@")
    assert manager.find("objective", name).build is Retromae
    assert manager.find("objective", name).summary == "First line."
    assert manager.all("objective") == installed
    assert manager.find("objective", "retromae") is installed["retromae"]
    assert manager.register("objective", stzoo.Component(name="mine", build=Retromae, summary="")).startswith(
        "python:mine@"
    )
    assert manager.register("objective", manager.find("objective", "dupmae")) == "dupmae"
    assert manager.register("objective", RetroMAE) == "retromae"
    with pytest.raises(PluginError, match="has the name 'a:b'; expected kebab-case"):
        manager.register("objective", stzoo.Component(name="a:b", build=Retromae, summary=""))
    with pytest.raises(PluginError, match="Pass it there again, unchanged, as objective=CLASS"):
        manager.find("objective", "python:retromae@00000000")


@pytest.mark.parametrize(
    ("name", "kebab"),
    [
        ("BagOfWords", "bag-of-words"),
        ("PCGrad2", "pcgrad2"),
        ("bag_of_words", "bag-of-words"),
        ("Über", "über"),
    ],
)
def test_the_name_of_a_class_in_kebab_case(name, kebab):
    assert classes.as_component(type(name, (), {})).name == kebab


def test_help_shows_the_settings():
    for function, names in (
        (stzoo.finetune, {"model", "output", "data", "learning_rate", "progress"}),
        (stzoo.pretrain, {"base", "corpus", "max_steps", "progress"}),
        (stzoo.mine, {"data", "depth"}),
        (stzoo.rerank, {"data", "base", "dev_data", "patience", "progress"}),
        (stzoo.adapt, {"corpus", "queries"}),
        (stzoo.bench, {"models", "data", "progress"}),
    ):
        signature = inspect.signature(function)
        assert names <= signature.parameters.keys()
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    assert inspect.signature(stzoo.finetune).parameters["learning_rate"].default == 2e-5
    assert "learning_rate: Peak learning rate of AdamW." in stzoo.finetune.__doc__


def test_names_are_complete_and_typed():
    source = Path(stzoo.__file__).read_text("utf-8")
    typed = set(re.findall(r"^    from stzoo\.\S+ import (\w+) as \1$", source, re.MULTILINE))
    assert typed == set(stzoo._LAZY)
    assert set(stzoo.__all__) <= set(dir(stzoo))
    assert not {"Any", "import_module", "TYPE_CHECKING"} & set(dir(stzoo))
    assert not [name for name in dir(stzoo) if name.startswith("_") and not name.endswith("__")]
    assert Path(stzoo.__file__).with_name("py.typed").is_file()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("read", "did you mean 'read_documents'?"),
        ("import", "did you mean 'import_checkpoint'?"),
        ("finetun", "did you mean 'finetune'?"),
        ("list", "`stzoo list` is a command only."),
        ("recipe", "`stzoo recipe` is a command only."),
    ],
)
def test_an_unknown_name_of_the_package_is_answered_with_a_similar_one(name, hint):
    with pytest.raises(AttributeError, match=re.escape(f"no attribute '{name}'; {hint}")):
        getattr(stzoo, name)


def test_the_words_of_a_model_are_not_shown():
    assert repr(WordWeights(["a"] * 3000, {"a": 1.0})) == "WordWeights(3,000 words)"


def test_notes_go_through_logging(caplog, capfd):
    notify("a note")
    assert [record.name for record in caplog.records] == ["stzoo"]
    assert "stzoo: a note" in capfd.readouterr().err
    caplog.set_level("ERROR", logger="stzoo")
    notify("a note")
    assert capfd.readouterr().err == ""


def test_progress_false_hides_the_bars_of_libraries_too(capfd):
    @public()
    def work():
        for _ in tqdm.tqdm(range(3), file=sys.stderr):
            pass
        datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)

    work(progress=False)
    assert capfd.readouterr().err == ""
    work()
    assert "3/3" in capfd.readouterr().err


def test_a_checkout_named_stzoo_in_the_current_folder_does_not_hide_the_package(tmp_path):
    """An editable installation of the project is a path, not an import hook."""
    root = Path(__file__).parents[1]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / "stzoo").mkdir()
    (tmp_path / "stzoo" / "__init__.py").touch()
    code = "from setuptools import build_meta; print(build_meta.build_editable('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = [name for name in wheel.namelist() if "dist-info" not in name]
        assert [wheel.read(name).decode().strip() for name in names] == [str(tmp_path)]
    checkout = tmp_path / "above" / "stzoo"
    shutil.copytree(tmp_path / "stzoo", checkout / "stzoo")
    done = subprocess.run(
        [sys.executable, "-c", "import stzoo; print(stzoo.__file__)"],
        cwd=checkout.parent,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(checkout / "stzoo" / "__init__.py")
