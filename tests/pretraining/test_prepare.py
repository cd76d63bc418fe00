"""`stzoo prepare`: what is whole, what a kill leaves, what is said of mistakes; all with MASTER's data."""

import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from support import processes
from support.helpers import cli, wait_for

import stzoo
from stzoo.data.corpus import load_corpus
from stzoo.plugins import builders, manager
from stzoo.pretraining import prepare
from stzoo.testing import sentences, tiny_masked_lm

COLUMNS = {"queries": list[str], "continuation": str, "neighbours": list[str]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_masked_lm("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "rows.jsonl"
    rows = [{"id": f"doc{n // 5}.{n % 5}", "text": text} for n, text in enumerate(sentences(230))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def given(base, corpus):
    return dict(
        corpus=[str(corpus)],
        tokenizer=str(base),
        queries="lexical",
        queries_per_passage=3,
        continuation="none",
        neighbours=["document", "bm25"],
        shard_rows=20,
    )


def rows_of(folder):
    return [
        row for file in sorted(folder.glob("passages-*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def test_the_hook_stzoo_preparations_brings_the_command_of_its_name():
    assert "master" in manager.all("preparation")
    shown = cli("prepare", "master", "--help").stdout
    panels = ["Options", "Data", "Queries", "Continuations", "Neighbours", "Checkpoints and logs", "Hardware"]
    panels += ["Several machines"]
    assert re.findall(r"^╭─ (.+?) ─", shown, re.M) == panels
    fields = manager.resolve(manager.find("preparation", "master")).Settings.model_fields
    assert all(re.match(r"[A-Z].*\.$", field.description) for field in fields.values())
    assert "master" in cli("prepare", "--help").stdout
    wrong = cli("prepare", "mastr", "--output", "x")
    assert wrong.returncode == 2
    assert "did you mean 'master'" in wrong.stderr


def test_the_folder_is_a_corpus_and_a_data_set(given, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "FILE_ROWS", 100)
    folder = stzoo.prepare("master", output=tmp_path / "d", **given)
    assert len(list(folder.glob("passages-*-of-00003.parquet"))) == 3
    read = load_corpus(corpus)
    rows = rows_of(folder)
    assert [row["id"] for row in rows] == read.rows["id"][:]
    assert [row["text"] for row in rows] == read.rows["text"][:]
    schema = pq.read_schema(folder / "passages-00000-of-00003.parquet")
    assert [str(kind) for kind in schema.types] == [
        "string",
        "string",
        *("string" if kind is str else "list<element: string>" for kind in COLUMNS.values()),
    ]
    again = load_corpus(folder, columns=COLUMNS)
    assert again.rows.column_names == ["id", "text", "queries", "neighbours"]
    assert again.rows["queries"][:] == [row["queries"] for row in rows]
    assert load_dataset(str(folder), cache_dir=tmp_path / "cache")["train"].num_rows == 230
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["filled"] == {"queries": 230, "continuation": 0, "neighbours": 230}
    assert not (folder / "work").exists()
    table = pq.read_table(folder / "frequencies/words.parquet")
    assert table.schema.remove_metadata() == pa.schema({"word": pa.string(), "count": pa.int64()})


@pytest.mark.usefixtures("unverified")
def test_lexical_queries_are_labelled_wherever_they_go(given, base, tmp_path):
    """In the manifest, in the card, and in the record of a model that is trained on them."""
    folder = stzoo.prepare("master", output=tmp_path / "d", **given)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["made_by"]["queries"]["generated"] is False
    assert "not questions by a model" in facts["notes"][-1]
    card = (folder / "README.md").read_text()
    assert all(note in card for note in facts["notes"])
    assert given["tokenizer"] not in card, "a path"
    settings = dict(base=str(base), corpus=[str(folder)], objective="master", options={"tasks": ["query"]})
    model = stzoo.pretrain(output=tmp_path / "m", **settings, batch_size=8, max_steps=1)
    (prepared,) = json.loads((model / "run.json").read_text())["corpus"]["prepared"]
    assert prepared["notes"] == facts["notes"]
    assert prepared["made_by"] == facts["made_by"]


def flags(given, **changes):
    for name, value in {**given, **changes}.items():
        for one in value if isinstance(value, list) else [value]:
            yield from (f"--{name.replace('_', '-')}", str(one))


def test_a_killed_run_goes_on_and_ends_the_same(given, tmp_path):
    whole = stzoo.prepare("master", output=tmp_path / "whole", **given)
    folder = tmp_path / "killed"
    words = ["prepare", "master", *flags(given, output=folder), "--resume"]
    for shards in (2, 5, 8):
        run = processes.Popen([sys.executable, "-m", "stzoo", *words], stderr=subprocess.PIPE)
        wait_for(lambda: len(list((folder / "work").glob("rows-*"))) >= shards, run)  # noqa: B023 - at once
        run.kill()
        run.communicate()
        assert json.loads((folder / "run.json").read_text())["status"] == "running"
    with pytest.raises(stzoo.DataError, match="has not finished"):
        load_corpus(folder)
    assert cli(*words).returncode == 0
    assert rows_of(folder) == rows_of(whole)
    for name in ("frequencies/words.parquet", "passages-00000-of-00001.parquet"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_kill_while_a_file_takes_its_place_leaves_what_can_be_gone_on_with(given, tmp_path):
    whole = stzoo.prepare("master", output=tmp_path / "whole", **given)
    folder = tmp_path / "killed"
    for event, name, status in (
        ("os.rename", "work/bm25", "running"),  # the index, before any shard
        ("os.rename", "frequencies/words.parquet", "running"),
        ("os.remove", "/rows-", "finished"),  # the shards, which are needed no more
    ):
        kill = f"""import os, sys
from stzoo.cli import main
sys.addaudithook(lambda event, args: event == {event!r} and {name!r} in str(args) and os._exit(9))
main()"""
        words = ["prepare", "master", *flags(given, output=folder), "--resume"]
        assert processes.run([sys.executable, "-c", kill, *words], stderr=subprocess.PIPE).returncode == 9
        assert json.loads((folder / "run.json").read_text())["status"] == status
    stzoo.prepare("master", output=folder, resume=True, **given)
    names, expected = (sorted(str(f.relative_to(at)) for f in at.rglob("*")) for at in (folder, whole))
    assert names == expected
    assert rows_of(folder) == rows_of(whole)


def test_finished_shards_are_not_made_again(given, tmp_path, monkeypatch):
    kind = builders.resolve(manager.find("preparation", "master"))
    shard, made = kind.shard, []

    def breaks(self, first, last):
        if first == 60 and not made.count(60):
            made.append(60)
            raise KeyboardInterrupt
        made.append(first)
        return shard(self, first, last)

    monkeypatch.setattr(kind, "shard", breaks)
    with pytest.raises(KeyboardInterrupt):
        stzoo.prepare("master", output=tmp_path / "d", **given)
    assert made == [0, 20, 40, 60]
    with pytest.raises(stzoo.OutputError, match="unfinished"):
        stzoo.prepare("master", output=tmp_path / "d", **given)
    with pytest.raises(stzoo.OutputError, match="queries_per_passage"):
        stzoo.prepare("master", output=tmp_path / "d", resume=True, **given | {"queries_per_passage": 4})
    stzoo.prepare("master", output=tmp_path / "d", resume=True, **given)
    assert made[4:] == list(range(60, 230, 20))


@pytest.mark.parametrize("change", [{"queries": "no/such"}, {"neighbours": ["bm25", "no/such"]}])
def test_a_run_that_fails_at_once_leaves_nothing(given, tmp_path, change):
    with pytest.raises(stzoo.ModelError):
        stzoo.prepare("master", output=tmp_path / "d", **given | {"queries": "none"} | change)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"neighbours": ["none", "bm25"]}, "none alone"),
        ({"document_pattern": "("}, "regular expression"),
        ({"frequencies": "no-such.parquet"}, "no-such.parquet"),
        ({"tokenizer": "/no/such"}, "/no/such is not a folder"),
        ({"corpus": "no-such.jsonl"}, "no-such.jsonl"),
        ({"set": "query_topk=3"}, "did you mean 'query_top_k'"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(given, tmp_path, change, told):
    done = cli("prepare", "master", *flags(given, output=tmp_path / "d", **change))
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "d").exists()


def test_json_prints_the_manifest(given, tmp_path):
    done = cli("prepare", "master", *flags(given, output=tmp_path / "d"), "--json")
    assert json.loads(done.stdout)["filled"]["queries"] == 230


OWN = '''
import stzoo

class Leads(stzoo.Preparation):
    """The first word of each passage."""

    columns = {"lead": str}

    def shard(self, first, last):
        return {"lead": [text.split()[0] for text in self.corpus.rows[first:last]["text"]]}

@stzoo.hookimpl
def stzoo_preparations():
    yield stzoo.Component(name="leads", build=Leads, summary="the first words")
'''


def test_a_preparation_of_ones_own_is_a_command_and_what_comes_next_is_told(base, corpus, tmp_path):
    told = tmp_path / "own-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[stzoo]\nown = own\n")
    (tmp_path / "own.py").write_text(OWN)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    given, environment = ("--corpus", corpus, "--tokenizer", base), os.environ | {"PYTHONPATH": path}
    for name, more in (("leads", []), ("master", ["--queries=none", "--continuation=none"])):
        done = cli("prepare", name, *given, *more, "--output", tmp_path / name, env=environment)
        objective = "--objective master " if name == "master" else ""  # there is no objective `leads`
        assert f"pretrain --base {base} {objective}--corpus {tmp_path / name} --output MODEL" in done.stderr
    assert all(row["lead"] == row["text"].split()[0] for row in rows_of(tmp_path / "leads"))
