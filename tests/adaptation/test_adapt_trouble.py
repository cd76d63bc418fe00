"""What users do by accident to `stzoo adapt`: a sentence, exit code 2, and nothing of theirs removed."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.chat_server import ChatServer, passage_of, queries
from support.helpers import cli
from support.models import sentence_transformer

import stzoo
from stzoo import DataError, ModelError, OutputError, RecipeError, TrainingError
from stzoo.adaptation.hold_out import TRAIN, Question, documents_of, split_questions
from stzoo.adaptation.lessons import Lessons
from stzoo.adaptation.query_map import check_adaptable, learn_query_map
from stzoo.models.loaded import open_model
from stzoo.utils.files import lock_folder

pytestmark = pytest.mark.usefixtures("unverified")


def texts_of(library, count=350):
    lines = (library / "corpus.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def write(folder, texts, name="p{}"):
    folder.mkdir()
    rows = [{"_id": name.format(at), "text": text} for at, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_documents(folder, texts, each=10, name="{}.md"):
    folder.mkdir(exist_ok=True)
    for at in range(0, len(texts), each):
        parts = [f"# Part {at + i}\n\n{text}\n" for i, text in enumerate(texts[at : at + each])]
        (folder / name.format(at)).write_text("\n".join(parts))
    return folder


def stop_after(stage):
    def stop(line):
        if f" {stage} " in line:
            raise KeyboardInterrupt

    return stop


@pytest.fixture(scope="module")
def finished(tiny_folder, library, tmp_path_factory):
    """A finished run, which is copied before anything is done to it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)
        stzoo.adapt(tiny_folder, corpus=library, output=output, progress=False)
    return output


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def again(tiny_folder, library, output, **settings):
    return stzoo.adapt(tiny_folder, corpus=library, output=output, progress=False, **settings)


# -- corpora


@pytest.mark.parametrize("space", ["\t", "\n", " "])
def test_ids_with_white_space_are_refused_before_questions_are_asked(tiny_folder, library, tmp_path, space):
    corpus = write(tmp_path / "corpus", texts_of(library, 30), f"a{space}{{}}")
    done = cli("adapt", tiny_folder, "--corpus", corpus, "--output", tmp_path / "run")
    assert done.returncode == 2
    assert "contains white space" in done.stderr
    assert not (tmp_path / "run" / "questions").exists()


def test_files_may_have_spaces_in_their_names(library, tmp_path):
    write_documents(tmp_path / "my docs", texts_of(library, 4), 2, "sick leave, 100% {}.md")
    made = stzoo.read_documents(tmp_path / "my docs")
    assert made.corpus[0]["_id"] == "sick%20leave,%20100%25%200.md#1"
    assert made.corpus[0]["metadata"]["document"] == "sick leave, 100% 0.md"


def test_stretches_of_one_large_document_are_held_out(tiny_folder, library, tmp_path, capfd):
    write_documents(tmp_path / "docs", texts_of(library), 350)
    made = stzoo.adapt(tiny_folder, corpus=tmp_path / "docs", output=tmp_path / "run", progress=False)
    assert "has only 1 document, so stretches of 20 passages" in " ".join(capfd.readouterr().err.split())
    corpus = tmp_path / "run" / "corpus" / "corpus.jsonl"
    ids = [json.loads(line)["_id"] for line in corpus.read_text().splitlines()]
    assert documents_of(corpus, ids).tolist() == [place // 20 for place in range(len(ids))]
    assert made.gain.queries > 2


def test_a_document_with_most_questions_is_not_held_out():
    questions = [Question(f"q{at}", "text", f"p{at}") for at in range(100)]
    documents = np.array([0] * 70 + list(range(1, 31)))
    for seed in range(20):
        split = split_questions(
            questions, [one.passage for one in questions], documents, held_out=50, seed=seed
        )
        assert (split.part[:70] == TRAIN).all()
        assert (split.part != TRAIN).sum() == 30


def test_copies_are_mentioned(tiny_folder, library, tmp_path, capfd):
    corpus = write(tmp_path / "corpus", texts_of(library, 1) * 300)
    with pytest.raises(KeyboardInterrupt):
        again(tiny_folder, corpus, tmp_path / "run", on_stage=stop_after("read"))
    assert "only 1 of the 300 passages are different" in " ".join(capfd.readouterr().err.split())


def test_documents_that_changed_are_not_mixed_with_earlier_ones(tiny_folder, library, tmp_path):
    docs = write_documents(tmp_path / "docs", texts_of(library, 60))
    given = dict(output=tmp_path / "run", on_stage=stop_after("read"), progress=False)
    for _ in range(2):  # the same documents are accepted
        with pytest.raises(KeyboardInterrupt):
            stzoo.adapt(tiny_folder, corpus=docs, **given)
    (docs / "0.md").write_text("Leave is granted by the manager of the team, two weeks before it begins.")
    with pytest.raises(OutputError, match="was made from other documents"):
        stzoo.adapt(tiny_folder, corpus=docs, **given)


def test_other_objects_of_the_same_type_are_refused(tiny_folder, library, tmp_path):
    texts = texts_of(library, 40)
    given = dict(output=tmp_path / "run", on_stage=stop_after("read"), progress=False)
    with pytest.raises(KeyboardInterrupt):
        stzoo.adapt(tiny_folder, corpus=texts, **given)
    with pytest.raises(OutputError, match="was made from other documents"):
        stzoo.adapt(tiny_folder, corpus=texts[::-1], **given)
    with pytest.raises(RecipeError, match="corpus"):
        stzoo.adapt(tiny_folder, corpus="", **given)


@pytest.mark.parametrize(
    "given",
    [pd.DataFrame, pl.DataFrame, pa.Table.from_pylist, datasets.Dataset.from_list, list, iter,
     lambda rows: [row["text"] for row in rows], lambda rows: pd.Series([row["text"] for row in rows]),
     lambda rows: pl.Series([row["text"] for row in rows]),
     lambda rows: np.array([row["text"] for row in rows]),
     lambda rows: datasets.IterableDataset.from_generator(lambda: iter(rows))],
    ids=["pandas", "polars", "arrow", "datasets", "dicts", "iterator", "texts", "series",
         "polars series", "numpy", "iterable"],
)  # fmt: skip
def test_a_corpus_in_python_is_read(given, tiny_folder, library, tmp_path):
    rows = [{"_id": f"p{at}", "text": text} for at, text in enumerate(texts_of(library, 30))]
    with pytest.raises(KeyboardInterrupt):
        again(tiny_folder, given(rows), tmp_path / "run", on_stage=stop_after("read"))
    lines = (tmp_path / "run/corpus/corpus.jsonl").read_text().splitlines()
    assert len({json.loads(line)["metadata"]["document"] for line in lines}) == 30


@pytest.mark.parametrize(
    "given",
    [None, 7, b"secret", {"text": ["secret"]}, {"secret"}, [["secret"]], [1], [Path("secret")], object(),
     datasets.DatasetDict(train=datasets.Dataset.from_list([{"text": "secret"}])), pd.Series([1, 2]),
     pd.DataFrame({"body": ["secret"]}), pl.DataFrame({"text": [["secret"]]}), [], [""], np.eye(3),
     pl.LazyFrame({"text": ["secret"]}), pa.chunked_array([["secret"]])],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_other_objects_are_refused_without_printing_them(given, tiny_folder, tmp_path):
    with pytest.raises(DataError) as error:
        again(tiny_folder, given, tmp_path / "run")
    assert "secret" not in str(error.value)
    assert "expected" in str(error.value) or "no document with text" in str(error.value)
    assert len(str(error.value)) < 300


# -- models


def test_vectors_that_are_truncated_are_refused(base):
    with pytest.raises(ModelError, match="truncates its vectors to 8 dimensions"):
        check_adaptable(sentence_transformer(base, truncate_dim=8))


def test_half_precision_is_adapted_in_float32(base, library, tmp_path, capfd):
    sentence_transformer(base).half().save_pretrained(str(tmp_path / "half"))
    made = stzoo.adapt(tmp_path / "half", corpus=library, output=tmp_path / "run", progress=False)
    assert "weights are float16" in capfd.readouterr().err
    assert open_model(str(made.path / "adapted")).dtype == "float32"


def test_a_map_that_is_not_finite_is_refused():
    vectors = np.full((4, 3), np.nan, np.float32)
    lessons = Lessons(
        vectors, np.zeros((4, 2), np.int64), np.zeros((4, 2), np.float32), np.zeros(4, np.int64),
        np.ones(4, np.int64), 1.0,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="NaN or infinity; lower --learning-rate"):
        learn_query_map(
            lessons, np.ones((2, 3), np.float32),
            epochs=1, learning_rate=0.1, batch_size=2, temperature=0.3, seed=0,
        )  # fmt: skip


# -- outputs


def test_a_finished_run_is_left_as_it_is(tiny_folder, library, run):
    edited = [
        run / "adapted" / "README.md",
        run / "held_out" / "queries.jsonl",
        run / "held_out/qrels/mine.tsv",
    ]
    for path in edited:
        path.write_text("mine")
    before = json.loads((run / "adapt.json").read_text())
    made = again(tiny_folder, library, run, threads=1)
    assert made.record == before
    assert [path.read_text() for path in edited] == ["mine"] * 3
    with pytest.raises(OutputError, match=r"is a finished run \(settings.count: None then, 900 now\)"):
        again(tiny_folder, library, run, count=900)


@pytest.mark.parametrize("name", ["held_out/qrels/mine.tsv", "adapted/mine.txt"])
def test_files_of_the_user_in_a_run_are_not_removed(tiny_folder, library, run, name):
    (run / "adapt.json").unlink()
    (run / name).write_text("mine")
    with pytest.raises(OutputError, match=r"does not replace: .*mine"):
        again(tiny_folder, library, run)
    assert (run / name).read_text() == "mine"


def test_outputs_that_would_do_harm_are_refused(tiny_folder, library, tmp_path):
    docs = write_documents(tmp_path / "docs", texts_of(library, 20))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    cases = {
        docs: "is read by this command",
        docs / "run": "is inside",
        tiny_folder / "run": "is inside",
        tmp_path / "file": "is a file",
        tmp_path / "file" / "run": "cannot be used as output",
        tmp_path / "other": "other files (notes.txt)",
    }
    for output, words in cases.items():
        done = cli("adapt", tiny_folder, "--corpus", docs, "--output", output)
        assert done.returncode == 2
        assert words in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_two_processes_do_not_share_an_output(tiny_folder, library, tmp_path):
    with lock_folder(tmp_path / "run"), pytest.raises(OutputError, match="in use by another run"):
        again(tiny_folder, library, tmp_path / "run")


# -- given questions


def test_questions_that_exist_are_used(tiny_folder, library, finished, tmp_path):
    made = again(tiny_folder, library, tmp_path / "run", questions=finished / "questions")
    expected = json.loads((finished / "adapt.json").read_text())
    for name in ("scores", "gain", "questions", "left_out", "copied_questions"):
        assert json.loads(json.dumps(made.record[name])) == expected[name]
    assert made.questions == [
        json.loads(line) for line in (finished / "questions" / "questions.jsonl").read_text().splitlines()
    ]


def test_questions_of_a_user_need_their_passages(tiny_folder, library, tmp_path):
    def adapt_to(*rows):
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return cli(
            "adapt", tiny_folder, "--corpus", library, "--output", tmp_path / "run",
            "--questions", tmp_path / "mine.jsonl",
        )  # fmt: skip

    row = {"_id": "q1", "text": "how long is leave?", "metadata": {"passage": "p1"}}
    for rows, words in (
        ([row | {"metadata": {}}], "no id, text or passage"),
        ([row | {"text": " "}], "no id, text or passage"),
        ([row, row], "the id 'q1' again"),
        ([row], "about the passage p1, which is not in the corpus"),
    ):
        done = adapt_to(*rows)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    done = cli(
        "adapt", tiny_folder, "--corpus", library, "--output", tmp_path / "new", "--questions", tmp_path
    )
    assert "has no questions.jsonl; expected an --output of `stzoo ask`" in done.stderr
    assert not (tmp_path / "new").exists()


# -- interruptions


def test_a_run_that_is_stopped_in_each_stage_ends_with_the_same_result(
    tiny_folder, library, tmp_path, finished
):
    given = dict(corpus=library, output=tmp_path / "run", progress=False)
    for stage in ("read", "ask", "encode", "filter", "train"):
        with pytest.raises(KeyboardInterrupt):
            stzoo.adapt(tiny_folder, on_stage=stop_after(stage), **given)
    made = stzoo.adapt(tiny_folder, **given)
    expected = json.loads((finished / "adapt.json").read_text())
    for name in ("scores", "curve", "gain", "decision", "questions", "notes"):
        assert json.loads(json.dumps(made.record[name])) == expected[name]


def test_the_result_is_json_alone_on_stdout(tiny_folder, library, run):
    done = cli("adapt", tiny_folder, "--corpus", library, "--output", run, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((run / "adapt.json").read_text())


# -- endpoints and budgets


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    started = ChatServer()
    yield started
    started.close()


def test_a_budget_that_is_too_small_may_be_raised_and_questions_are_kept(
    tiny_folder, library, tmp_path, server, monkeypatch
):
    given = dict(queries=server.url, on_stage=stop_after("ask"))
    server.wait = 0.5
    with pytest.raises(DataError, match=r"took \d+ s, so a budget of 0.01 s has no time .* Raise --budget"):
        again(tiny_folder, library, tmp_path / "run", **given, budget="0.01s")
    assert not server.log
    with pytest.raises(DataError, match=r"a question takes .* has time for .* Raise --budget"):
        again(tiny_folder, library, tmp_path / "run", **given, budget="10s")
    asked = len(server.log)
    assert asked
    server.wait = 0.0
    monkeypatch.setattr(
        "stzoo.adaptation.stages.ask.ASK_SHARE", 1e-6
    )  # which leaves fewer than are asked for by default
    with pytest.raises(DataError, match="Raise --budget"):
        again(tiny_folder, library, tmp_path / "run", **given, budget="1h", timeout=120.0)
    assert len(server.log) == asked  # the time of the first call is known
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        again(tiny_folder, library, tmp_path / "run", **given, budget="1h")
    counts = json.loads((tmp_path / "run" / "questions" / "questions.json").read_text())["counts"]
    assert counts["asked"] == 3 * 350  # as without a budget
    assert len(server.log) > asked


def test_rejected_questions_are_counted_with_reasons(tiny_folder, library, tmp_path, server):
    def answer(body):
        span = " ".join(passage_of(body).split()[:8])
        return json.dumps({"queries": [*json.loads(queries(body))["queries"][:2], span]})

    lines, server.answer = [], answer
    with pytest.raises(DataError, match=r"only \d+ questions .* \d+ were rejected, and \d+ did not find"):
        given = dict(queries=server.url, count=300, on_stage=lines.append)
        again(tiny_folder, library, tmp_path / "run", **given, per_passage=3)
    rejected = json.loads((tmp_path / "run/questions/questions.json").read_text())["rejected"]
    assert rejected["a copy of the passage"]["number"] > 50
    for reason, found in rejected.items():
        assert f"{found['number']} {reason}" in lines[2]


def test_an_endpoint_that_is_down_is_explained_and_then_continued(tiny_folder, library, tmp_path, server):
    given = ("adapt", tiny_folder, "--corpus", library, "--output", tmp_path / "run", "--queries", server.url)
    server.fault = "500"
    done = cli(*given, "--retries", "0")
    assert done.returncode == 2
    assert "HTTP 500" in done.stderr
    assert not (tmp_path / "run" / "settings.json").exists()  # no query has been asked
    server.fault = ""
    with pytest.raises(KeyboardInterrupt):
        again(
            tiny_folder, library, tmp_path / "run", queries=server.url, on_stage=stop_after("ask"), retries=1
        )


@pytest.mark.parametrize(
    ("option", "value"), [("budget", "30 minutes"), ("budget", "-1"), ("budget", "0"), ("epochs", "0"),
                          ("language", "klingon")]
)  # fmt: skip
def test_absurd_settings_are_refused_before_anything_is_written(
    tiny_folder, library, tmp_path, option, value
):
    done = cli("adapt", tiny_folder, "--corpus", library, "--output", tmp_path / "run", f"--{option}", value)
    assert done.returncode == 2
    assert value in done.stderr
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
