"""The demo's whole way, on a tiny model and a small judged set."""

import hashlib
import json
import subprocess
from types import SimpleNamespace

import pytest
from support import processes
from support.helpers import cli

import stzoo
from stzoo.cli import demo
from stzoo.data.beir import read_corpus
from stzoo.data.pydocs import write_documented


@pytest.mark.usefixtures("unverified")  # its answers come from processes without stzoo
def test_the_demo_goes_the_whole_way_and_a_second_call_keeps_it(base, judged, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=processes.run, PIPE=subprocess.PIPE))
    words = ("demo", "--base", base, "--corpus", judged, "--output", tmp_path / "demo")
    first = cli(*words, "--json")
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)
    names = ["bert", "adapted", "fine-tuned", "RetroMAE, fine-tuned"]
    systems = [one for name in names for one in (name, f"BM25 + {name}")]
    assert [row["model"] for row in made["results"]] == ["bm25s", *systems]
    assert all(f"{row['ndcg_at_10']:.4f}  {row['model']}\n" in first.stderr for row in made["results"])
    assert [(test["baseline"], test["system"]) for test in made["tests"]] == [
        *(("bert", system) for system in ("adapted", "BM25 + bert", "fine-tuned")),
        (names[2], names[3]),
    ]
    for one in made["questions"]:
        assert all(len(found) == 3 for found in one["found"].values())
    assert made["answered"] == {
        system: sum(
            any(passage["id"] in one["right"] for passage in one["found"][system])
            for one in made["questions"]
        )
        for system in (names[0], names[2])
    }
    page = (tmp_path / "demo/report.html").read_text()
    assert all(row["model"] in page for row in made["results"])
    assert "http" not in page  # it needs nothing from elsewhere

    made_files = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
    second = cli(*words)
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in made_files} == made_files
    for line in (*made["summary"], made["page"]):
        assert line in second.stdout


def test_every_plain_question_has_an_answer_in_the_texts(tmp_path):
    searched = read_corpus(write_documented(tmp_path / "documented") / "corpus.jsonl", progress=False)
    ids = set(searched[0])
    assert len(demo.QUESTIONS) >= 8
    assert all(ids & set(right) for right in demo.QUESTIONS.values())


def test_the_base_is_checked_before_it_is_loaded(monkeypatch):
    folder = demo.find_base()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == demo.SHA256
    monkeypatch.setattr(demo, "SHA256", "0" * 64)
    with pytest.raises(stzoo.ModelError, match="not the published"):
        demo.find_base()
