"""Servers that do not answer, break off, redirect in circles or are not a hub: an error in finite time."""

import dataclasses
import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from huggingface_hub import HfApi, close_session, constants
from huggingface_hub.errors import OfflineModeIsEnabled
from support.hub_server import HubServer, Repo
from support.models import sentence_transformer

from stzoo.data import download, registry
from stzoo.data.corpus_sources import load_hub
from stzoo.errors import DataError, ModelError, PublishError, RecipeError
from stzoo.hub.publish import publish
from stzoo.hub.published import fetch as fetch_model
from stzoo.models.loaded import open_model
from stzoo.models.loading import load_model
from stzoo.models.names import check_source
from stzoo.utils.network import interruptible, is_cut_off, limit_waits, retry

# what the server does: answers with these bytes, or
SILENT, HALF, LOOP = object(), object(), object()
ANSWERS = {
    "silent": SILENT,
    "half": HALF,
    "loop": LOOP,
    "a list": b"[]",
    "null": b"null",
    "text": b'"a"',
    "html": b"<!DOCTYPE html><title>Log in</title>",
    "garbage": b"\xff\x00{",
    "other keys": b'{"ok": true}',
}


class Server:
    """Answers every request alike; `asked` are the requests, `slow` how many of them get no answer first."""

    def __init__(self):
        self.answer, self.asked, self.slow, self.stop = SILENT, [], 0, threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits for 40 ms

            def log_message(self, *_):
                pass

            def do(self):
                server.asked.append(f"{self.command} {self.path}")
                self.close_connection = True
                if server.answer is SILENT or len(server.asked) <= server.slow:
                    server.stop.wait(60)
                elif server.answer is LOOP:
                    self.send_response(302)
                    self.send_header("Location", self.path)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    half = server.answer is HALF
                    body = b'{"sha": "' if half else server.answer
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body) * (1 + half)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)
                    if half:
                        self.wfile.flush()
                        server.stop.wait(60)

            do_GET = do_HEAD = do_POST = do  # noqa: N815 - the base class calls these

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    """A server that this process takes for the Hub and for BEIR's archives, with short time limits."""
    made = Server()
    at = {"ENDPOINT": made.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    at |= {"HF_HUB_ETAG_TIMEOUT": 10, "HF_HUB_DOWNLOAD_TIMEOUT": 10}
    at["HUGGINGFACE_CO_URL_TEMPLATE"] = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in at.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setenv("STZOO_TIMEOUT", "0.1")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", made.url)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("STZOO_BEIR_URL", f"{made.url}/archives")
    close_session()
    yield made
    made.stop.set()
    made.server.shutdown()
    made.server.server_close()
    close_session()


@pytest.mark.parametrize("answer", ANSWERS)
def test_publish_ends_with_an_error_whatever_the_hub_answers(server, answer, tmp_path):
    server.answer = ANSWERS[answer]
    with pytest.raises(
        PublishError, match=r"cannot be reached, or the connection broke|did not answer as the Hub does"
    ) as error:
        publish(tmp_path, "lab/tiny", license="mit", say=lambda _: None)
    assert server.url in str(error.value)
    assert "while checking your token" in str(error.value)


@pytest.mark.parametrize("answer", ANSWERS)
def test_import_ends_with_an_error_whatever_the_hub_answers(server, answer, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    server.answer = ANSWERS[answer]
    with pytest.raises(ModelError, match=r"while downloading the files of lab/tiny at main"):
        fetch_model("lab/tiny", "main")


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_data_set_ends_with_an_error_whatever_the_hub_answers(server, answer, tmp_path):
    server.answer = ANSWERS[answer]
    with pytest.raises(DataError, match=r"the Hub \(mteb/scifact at "):
        download.from_hub(registry.entries()["scifact"], tmp_path, progress=False)
    assert server.asked
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_corpus_ends_with_an_error_whatever_the_hub_answers(server, answer):
    server.answer = ANSWERS[answer]
    with pytest.raises(DataError, match="lab/texts is not a file or folder, and cannot be loaded"):
        load_hub("lab/texts")
    assert server.asked


@pytest.mark.parametrize("answer", ["silent", "half", "loop", "html"])
def test_an_archive_ends_with_an_error_whatever_the_server_answers(server, answer, tmp_path):
    server.answer = ANSWERS[answer]
    entry = dataclasses.replace(registry.entries()["scifact"], zip="x.zip", zip_bytes=1000)
    with pytest.raises(DataError, match=r"/archives/x\.zip"):
        download.from_zip(entry, tmp_path, progress=False)
    assert server.asked
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["corpus.jsonl", "data.parquet"])
def test_a_data_set_whose_file_is_cut_midway_is_an_error(monkeypatch, tmp_path, name):
    hub = HubServer()
    try:
        hub.stand_in(monkeypatch, HF_HUB_CACHE=str(tmp_path / "hub"))
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setenv("STZOO_TIMEOUT", "0.1")
        monkeypatch.setattr("time.sleep", lambda _: None)  # of the client between its tries
        hub.repos["lab/texts"] = Repo()
        hub.repos["lab/texts"].commit({name: b'{"text": "some words"}\n' * 1000})
        hub.stops[name] = None
        with pytest.raises(DataError, match="lab/texts is not a file or folder, and cannot be loaded"):
            load_hub("lab/texts")
        assert any(name in path for path in hub.asked("GET"))
    finally:
        hub.close()
        close_session()


def test_a_hub_that_does_not_answer_is_asked_again_with_a_word_on_the_screen(server, capsys):
    server.answer, server.slow = json.dumps({"name": "tester"}).encode(), 1
    limit_waits()
    assert HfApi(endpoint=server.url).whoami()["name"] == "tester"
    assert server.asked == ["GET /api/whoami-v2"] * 2
    said = capsys.readouterr().err
    assert f"GET {server.url}/api/whoami-v2 failed (timed out). Retrying (2 of 3)" in said


def test_a_name_that_nobody_knows_is_asked_for_once(capsys, monkeypatch):
    """`.invalid` is never given to a server (RFC 2606)."""
    assert is_cut_off("https://hub.invalid")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert not is_cut_off("https://hub.invalid")
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    limit_waits()
    close_session()
    with pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint="https://hub.invalid").model_info("org/name")
    assert "Retrying" not in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"https://hub\.invalid cannot be reached"):
        check_source("org/name")
    assert not is_cut_off("http://127.0.0.1:1")


def test_a_local_model_asks_no_hub(server, tmp_path, base, monkeypatch):
    """Its card would ask for a model of the name of its folder."""
    sentence_transformer(base).save_pretrained(str(tmp_path / "minilm"))
    monkeypatch.chdir(tmp_path)
    open_model("minilm")
    load_model("./minilm")
    assert server.asked == []


def test_what_changes_something_is_asked_once(server):
    limit_waits()
    with pytest.raises(httpx2.TimeoutException):
        HfApi(endpoint=server.url).create_repo("lab/tiny")
    assert server.asked == ["POST /api/repos/create"]


def test_a_hub_that_failed_three_times_is_left_alone_for_a_while(server):
    """So that libraries which ask on and on, with pauses, end soon."""
    limit_waits()
    with pytest.raises(OfflineModeIsEnabled, match="did not answer 3 times in a row: timed out"):
        list(HfApi(endpoint=server.url).list_repo_tree("lab/tiny"))
    with pytest.raises(OfflineModeIsEnabled, match="did not answer 3 times in a row"):
        HfApi(endpoint=server.url).whoami()
    assert len(server.asked) == 3


def test_other_errors_are_not_tried_again():
    calls = []
    with pytest.raises(KeyError):
        retry(lambda: calls.append(1) or {}["x"], "x", (TimeoutError,))
    assert calls == [1]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e300"])
def test_a_time_limit_is_a_positive_number(value, monkeypatch):
    monkeypatch.setenv("STZOO_TIMEOUT", value)
    with pytest.raises(RecipeError, match="expected a number of seconds"):
        limit_waits()


def test_ctrl_c_does_not_wait_for_threads():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    begun, stop = threading.Event(), threading.Event()

    def wait():
        begun.set()
        stop.wait(60)

    # a signal wakes a main thread that already waits; `_thread.interrupt_main` does not
    main = threading.main_thread().ident
    threading.Thread(
        target=lambda: begun.wait() and signal.pthread_kill(main, signal.SIGINT), daemon=True
    ).start()
    with pytest.raises(KeyboardInterrupt):
        interruptible(wait)
    assert not stop.is_set()
    stop.set()
