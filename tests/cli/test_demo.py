"""The demo's whole way, on a tiny model and a small judged set."""

import hashlib
import json

import pytest
from support.helpers import cli

import stzoo
from stzoo.cli import demo


def test_the_demo_goes_the_whole_way_and_a_second_call_keeps_it(base, judged, tmp_path):
    words = ("demo", "--base", base, "--corpus", judged, "--output", tmp_path / "demo")
    first = cli(*words, "--json")
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)
    names = [row["model"] for row in made["results"]]
    assert names == ["bm25s", "bert", "bert, fine-tuned", "bert, pre-trained, fine-tuned"]
    assert [(test["baseline"], test["pairs"][0]["system"]) for test in made["tests"]] == [
        (names[1], names[2]),
        (names[2], names[3]),
    ]
    assert all("differ" in test["pairs"][0]["verdict"] for test in made["tests"])
    assert len(made["answers"]) == 3
    assert all(len(answer["found"]) == 3 for answer in made["answers"])

    weights = tmp_path / "demo/pretrained-finetuned/model.safetensors"
    before = weights.stat().st_mtime_ns
    second = cli(*words)
    assert second.returncode == 0, second.stderr
    assert weights.stat().st_mtime_ns == before
    assert "They" in second.stdout  # a verdict in words
    assert made["answers"][0]["question"] in second.stdout


def test_the_base_is_checked_before_it_is_loaded(monkeypatch):
    folder = demo.find_base()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == demo.SHA256
    monkeypatch.setattr(demo, "SHA256", "0" * 64)
    with pytest.raises(stzoo.ModelError, match="not the published"):
        demo.find_base()
