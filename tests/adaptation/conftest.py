import json

import pytest
from support.models import sentence_transformer

from stzoo.data import pydocs


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """350 docstrings, whose summaries are their judged queries, which adapt never reads."""
    folder = tmp_path_factory.mktemp("library") / "docs"
    pairs = {pair.passage_id: pair for pair in pydocs.pairs()}
    rows = [{"_id": one.passage_id, "text": one.passage} for one in list(pairs.values())[:350]]
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    sentence_transformer(base).save_pretrained(str(folder))
    return folder
