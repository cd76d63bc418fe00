import gc
import os

# before any test imports the libraries that read them
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import random
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from support.processes import run_check

from stzoo.data.beir import write_beir
from stzoo.testing import sentences, tiny_masked_lm

# a shell that starts the tests in the background has Ctrl-C ignored, by them and by all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files whose few tests take long. They come first, or one worker would end minutes after the others.
SLOW = ("test_ray", "test_ranks", "test_examples", "test_demo", "test_adapt", "test_packaging")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in SLOW)


settings.register_profile("untimed", deadline=None)  # no test depends on the speed of the machine
settings.load_profile("untimed")


def pytest_collection_finish():
    """Saves time in all tests, also in those of plugins, which do not have the fixtures below.

    The process that checks an export starts in milliseconds, and the garbage collector, which otherwise takes
    a tenth of the time, runs less often.
    """
    if export := sys.modules.get("stzoo.hub.export"):
        export.subprocess = SimpleNamespace(run=run_check)
    gc.set_threshold(10_000, 20, 50)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Freezes what the libraries have made, or each training would begin with a look for garbage in it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keeps the corpus cache of the tests out of the user's."""
    os.environ["STZOO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny BERT masked LM with its tokenizer."""
    return tiny_masked_lm("bert", tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """48 passages as jsonl."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(48)))
    return path


@pytest.fixture
def unverified(monkeypatch):
    """Exports are not checked by a process of their own, and runs are not drawn: both take seconds."""
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed


@pytest.fixture(scope="session")
def data():
    """The folder of real data, which STZOO_DATA names."""
    folder = os.environ.get("STZOO_DATA")
    if not folder:
        pytest.skip("STZOO_DATA is not set: no real data here")
    return Path(folder)


@pytest.fixture(scope="session")
def judged(tmp_path_factory):
    """60 passages, each asked for by a shuffle of six of its words."""
    folder = tmp_path_factory.mktemp("judged") / "small"
    draw = random.Random(0)
    texts = sentences(60, seed=5)
    rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    queries = {f"q{i}": " ".join(draw.sample(text.split(), 5)) for i, text in enumerate(texts)}
    qrels = {
        split: {f"q{i}": {f"d{i}": 1} for i in places}
        for split, places in {"train": range(40), "dev": range(40, 50), "test": range(50, 60)}.items()
    }
    write_beir(folder, rows, queries, qrels)
    return folder


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, whose version matters little: nothing newer than 2023 is used."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium here")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()
