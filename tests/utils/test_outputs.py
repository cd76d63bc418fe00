"""Where commands may write: one check for all of them, made before anything is read."""

from pathlib import Path

import pytest

import stzoo
from stzoo.data.beir import write_beir
from stzoo.models.names import parse_name
from stzoo.training.history import read_history
from stzoo.utils.outputs import check_output


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "model", "data/set"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("model/config.json", "model/modules.json", "corpus.jsonl", "file", "notes.txt", "data.csv"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/corpus.jsonl").write_text("mine")
    return tmp_path


REFUSED = {  # output, kind, inputs, words of the error
    "empty": ("", "run", [], "is empty"),
    "here": (".", "run", [], "is empty"),
    "the root": ("/", "results", [], "root of a file system"),
    "home": ("home", "run", [], "home folder"),
    "an input": ("model", "run", ["model"], "read by this command"),
    "an input by a link": ("link", "model", ["model"], "read by this command"),
    "an input with a name": ("model", "results", ["mine=model"], "read by this command"),
    "around an input": ("data", "run", ["data/set"], "contains"),
    "in an input": ("model/new", "run", ["model"], "is inside"),
    "results in a model": ("model/new", "results", ["model"], "is inside"),
    "an input file": ("corpus.jsonl", "file", [Path("corpus.jsonl")], "read by this command"),
    "results in a model that is not read": ("model", "results", [], "is a model or a data set"),
    "results in a data set that is not read": ("set", "results", [], "is a model or a data set"),
    "a file for a folder": ("file", "results", [], "is a file"),
    "a folder for a file": ("data", "file", [], "is a folder"),
    "a device": ("/dev/null", "file", [], "not a regular file"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("here")
def test_an_output_that_would_damage_something_is_refused(case):
    output, kind, inputs, words = REFUSED[case]
    with pytest.raises(stzoo.OutputError, match=words):
        check_output(output, kind=kind, inputs=inputs)


@pytest.mark.parametrize(
    ("output", "kind", "inputs"),
    [
        ("new/run", "run", ["model", None, "org/name", "~nobody/x", 3]),
        ("data/results", "results", ["data/set"]),
        ("data/set/results", "results", ["data/set"]),
        ("data/negatives.jsonl", "file", ["data"]),
    ],
)
@pytest.mark.usefixtures("here")
def test_another_output_is_taken(output, kind, inputs):
    assert check_output(output, kind=kind, inputs=inputs) == Path(output)


@pytest.mark.parametrize("output", ["~no-such-user/run", "x" * 300, "a\0b", "\udcff"])
def test_an_output_that_cannot_be_a_path_is_refused(output):
    with pytest.raises(stzoo.OutputError, match=r"home folder of a user|as a path|not valid UTF-8"):
        check_output(output, kind="run")


def test_a_tilde_is_the_home_folder_in_paths_of_bench_and_what_follows(here, monkeypatch):
    monkeypatch.setattr("stzoo.training.history.as_history", lambda facts, folder: (facts, folder))
    home = here / "home"
    (home / "run.json").write_text("{}")
    documents = [{"_id": name, "text": f"the text of {name}"} for name in ("d1", "d2")]
    judged = {"q": {"d1": 1}}
    write_beir(home / "set", documents, {"q": "text of d1"}, {"train": judged, "test": judged})
    (scored,) = stzoo.bench([], data="~/set", output="~/results", language="en", progress=False)
    assert scored.path.is_relative_to(home / "results")
    (again,) = stzoo.score("t=~/results/bm25s/" + scored.revision + "/set.test.run", data="~/set")
    assert again.scores.mean == scored.scores.mean
    page, *_ = stzoo.report("~/results", output="~/page.txt", formats="txt")
    assert page == home / "page.txt"
    stzoo.contamination("~/set", data="~/set", output="~/found", results="~/results", minhash=False)
    assert (home / "found").is_dir()
    assert read_history("~")[1] == home
    assert not (here / "~").exists()


@pytest.mark.parametrize(
    "read",
    [
        lambda path: stzoo.bench([], data=path, output="o"),
        lambda path: stzoo.bench([], data=".", datasets=path, output="o"),
        parse_name,
        lambda path: stzoo.score(path, data="data"),
        lambda path: stzoo.score("file", data=path),
        lambda path: stzoo.compare([path, path]),
        lambda path: stzoo.compare(["a", "b"], data=path),
        lambda path: stzoo.report(path, output="page.html"),
        lambda path: stzoo.search(path, "a question"),
        lambda path: stzoo.card(path),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_name_too_long_for_a_file_is_refused_by_bench_and_what_follows(read):
    with pytest.raises(stzoo.StzooError, match="File name too long"):
        read("x" * 300)


MINE = dict(model="bm25s", data="data/set", overwrite=True)


COMMANDS = {
    "mine over its data": lambda: stzoo.mine(output="corpus.jsonl", **MINE | {"data": "corpus.jsonl"}),
    "mine over its corpus": lambda: stzoo.mine(output="corpus.jsonl", corpus="corpus.jsonl", **MINE),
    "mine over another file": lambda: stzoo.mine(output="corpus.jsonl", **MINE),
    "export over its model": lambda: stzoo.export("model", "model", overwrite=True),
    "export around its model": lambda: stzoo.export("data/set", "data", overwrite=True),
    "merge over a source": lambda: stzoo.merge(["model", "model"], output="model", overwrite=True),
    "card over another file": lambda: stzoo.card("model", output="model/modules.json", overwrite=True),
    "report over notes": lambda: stzoo.report("data", output="notes", formats="txt", overwrite=True),
    "report over a table": lambda: stzoo.report("data", output="data.html", formats="csv", overwrite=True),
    "contamination into its data": lambda: stzoo.contamination(
        "corpus.jsonl", data="data/set", output="data/set", minhash=False
    ),
    "bench into a model": lambda: stzoo.bench(["model"], data="data/set", output="model"),
    "bench with its store in a model": lambda: stzoo.bench(
        ["model"], data="data/set", output="new", store="model/store"
    ),
    "search with its store in its model": lambda: stzoo.search(
        "model", "a question", data="data/set", store="model/store"
    ),
    "mine with its store in its model": lambda: stzoo.mine(
        "model", data="data/set", output="new.jsonl", store="model/store"
    ),
    "score into its data": lambda: stzoo.score("file", data="data/set", output="data/set"),
    "pretrain over its base": lambda: stzoo.pretrain(base="model", corpus=["pydocs"], output="model"),
    "finetune in its model": lambda: stzoo.finetune("model", data="data/set", output="model/new"),
    "prepare around its corpus": lambda: stzoo.prepare(
        "master", corpus=["data/set"], output="data", overwrite=True
    ),
    "demo into its corpus": lambda: stzoo.demo(output="data/set", base="model", corpus="data/set"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_checks_its_output_and_leaves_all_as_it_was(command, here):
    before = {path: path.is_file() and path.read_text() for path in here.rglob("*")}
    with pytest.raises(stzoo.OutputError):
        COMMANDS[command]()
    assert {path: path.is_file() and path.read_text() for path in here.rglob("*")} == before


@pytest.mark.parametrize(
    "command",
    [
        lambda **how: stzoo.pretrain(base="x", corpus=["pydocs"], output="out", **how),
        lambda **how: stzoo.finetune("x", data="data/set", output="out", **how),
        lambda **how: stzoo.prepare("master", corpus=["x"], output="out", **how),
        lambda **how: stzoo.mine("bm25s", data="x", output="out.jsonl", **how),
    ],
)
@pytest.mark.usefixtures("here")
def test_resume_and_overwrite_together_are_refused(command):
    with pytest.raises(stzoo.RecipeError, match="only one of them"):
        command(resume=True, overwrite=True)
