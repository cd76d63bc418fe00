import contextlib
import http.client
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import processes
from support.helpers import cli, wait_for

from stzoo import judge
from stzoo.data.beir import read_beir, write_beir
from stzoo.data.ranking import rank
from stzoo.data.trec import write_run
from stzoo.errors import DataError, OutputError, RecipeError
from stzoo.evaluation.bench import result_files, results
from stzoo.evaluation.bench.datasets import evaluate
from stzoo.evaluation.judge.answers import Answers
from stzoo.evaluation.judge.pool import make_pool
from stzoo.evaluation.judge.server import JudgeServer
from stzoo.evaluation.measures import MEASURES

QUERIES, DEPTH = 12, 2
NASTY = "<script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\"> &amp; \x1b[31m"
LONG = "word " * 400 + "https://example.org/" + "x" * 300


def file_system(folder, model, data, run):
    """Files a system's results and run file as `stzoo bench` does."""
    path = result_files.result_file(folder, model, "r1", data.name)
    path.parent.mkdir(parents=True)
    path.with_name("model_meta.json").write_text(json.dumps({"name": model, "revision": "r1"}))
    scores = evaluate(data, rank(run), MEASURES)
    found = results.store(path, (model, "r1"), data, {"k": 1000}, scores, MEASURES, 1.0, {})
    write_run(result_files.run_file(path, data.split), run, "tag")
    return found


@pytest.fixture
def run_folder(tmp_path):
    """A run as `stzoo adapt` leaves it: `held_out`, and the `results` of a good, an equal and a bad system.

    Query i asks for documents i-a and i-b. The good system finds them first, the bad one last.
    """
    rows = [
        {"_id": f"{i}-{part}", "title": f"Title {i}", "text": f"text {part} of {i}"}
        for i in range(QUERIES)
        for part in "abcdef"
    ]
    queries = {f"q{i}": f"what is {i}?" for i in range(QUERIES)}
    qrels = {f"q{i}": {f"{i}-a": 1} for i in range(QUERIES)}
    write_beir(tmp_path / "run" / "held_out", rows, queries, {"test": qrels})
    data = read_beir(tmp_path / "run" / "held_out")
    for model, order in (("makers/good", "abcdef"), ("equal", "bacdef"), ("bm25s", "efcdab")):
        run = {
            f"q{i}": {f"{i}-{part}": float(9 - place) for place, part in enumerate(order)}
            for i in range(QUERIES)
        }
        file_system(tmp_path / "run" / "results", model, data, run)
    return tmp_path / "run"


def judged_in_terminal(monkeypatch, run, keys, **options):
    """judge(terminal=True) with lines as input; returns its result and what it printed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key}\n" for key in keys)))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        found = judge(run, terminal=True, **options)
    return found, out.getvalue()


# The pool

best = st.dictionaries(
    st.sampled_from([f"q{i}" for i in range(9)]),
    st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True).map(tuple),
    max_size=9,
)
systems = st.dictionaries(st.sampled_from(["bm25s", "base", "tuned", "fused"]), best, min_size=1, max_size=4)


@settings(max_examples=200)
@given(systems, st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_a_pool_has_whole_queries_of_all_systems_once(systems, pairs, more, seed):
    pool = make_pool(systems, pairs=pairs, seed=seed)
    assert len(set(pool.pairs)) == len(pool.pairs)
    of_query = {}
    for query, document in pool.pairs:
        of_query.setdefault(query, []).append(document)
    for query, documents in of_query.items():
        assert set(documents) == {one for found in systems.values() for one in found.get(query, ())}
    assert [query for query, documents in of_query.items() for _ in documents] == [q for q, _ in pool.pairs]
    first = next(iter(of_query.values()), [])
    assert len(pool.pairs) <= max(pairs, len(first))
    differ = [len({found.get(query, ()) for found in systems.values()}) > 1 for query in of_query]
    assert differ == sorted(differ, reverse=True)
    assert pool == make_pool(systems, pairs=pairs, seed=seed)
    larger = make_pool(systems, pairs=pairs + more, seed=seed)
    assert larger.pairs[: len(pool.pairs)] == pool.pairs


@settings(max_examples=100)
@given(systems, st.integers(0, 5))
def test_the_order_says_nothing_about_systems_and_ranks(systems, seed):
    pool = make_pool(systems, pairs=1000, seed=seed)
    renamed = {f"x{i}": found for i, found in enumerate(reversed(systems.values()))}
    turned = {
        name: {query: documents[::-1] for query, documents in found.items()}
        for name, found in renamed.items()
    }
    assert make_pool(renamed, pairs=1000, seed=seed) == pool
    assert make_pool(turned, pairs=1000, seed=seed) == pool


def test_another_seed_draws_other_queries_in_another_order():
    lists = {"one": {f"q{i}": ("a", "b") for i in range(50)}, "two": {f"q{i}": ("c",) for i in range(50)}}
    pools = {make_pool(lists, pairs=30, seed=seed).pairs for seed in range(5)}
    assert len(pools) == 5
    assert {len(pool) for pool in pools} == {30}


# The answers


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0, 1, 2, None, "undo", "reopen"]), max_size=30))
def test_a_journal_read_again_has_the_same_answers(tmp_path_factory, actions):
    path = tmp_path_factory.mktemp("journal") / "answers.jsonl"
    pairs = [("q1", "é\u2028d"), ("q1", "d2"), ("q2", "d1"), ("q3", "d1")]
    answers, expected = Answers(path, pairs), []
    for action in actions:
        if action == "undo":
            assert answers.undo() == bool(expected)
            expected = expected[:-1]
        elif action == "reopen":
            answers = Answers(path, pairs)
        elif len(expected) < len(pairs):
            answers.give(action)
            expected.append(action)
        for one in (answers, Answers(path, pairs)):
            assert one.position == one.answered == len(expected)
            assert one.counts == [expected.count(grade) for grade in (0, 1, 2, None)]
            grades = {pair: grade for pair, grade in zip(pairs, expected, strict=False) if grade is not None}
            assert {(q, d): grade for q, found in one.qrels.items() for d, grade in found.items()} == grades


def test_half_a_line_at_the_end_of_a_journal_is_dropped(tmp_path):
    path, pairs = tmp_path / "answers.jsonl", [("q1", "d1"), ("q1", "d2"), ("q1", "d3")]
    first = Answers(path, pairs)
    first.give(2)
    first.give(1)
    path.write_bytes(path.read_bytes()[:-20])
    again = Answers(path, pairs)
    assert again.position == 1
    again.give(0)
    assert Answers(path, pairs).qrels == {"q1": {"d1": 2, "d2": 0}}


@pytest.mark.parametrize("line", ["[]", "{", '{"query": "q", "document": "d", "grade": 3}', '{"undo": true}'])
def test_a_damaged_journal_is_refused_by_line(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"query": "q", "document": "d0", "grade": 1}\n' + line + "\n")
    with pytest.raises(OutputError, match=r"answers\.jsonl:2 is not an answer"):
        Answers(path, [("q", "d")])


# In the terminal, and what is written


def test_all_is_written_and_the_better_system_is_found(run_folder, monkeypatch):
    dry, _ = judged_in_terminal(monkeypatch, run_folder, ["q"], output=run_folder / "dry")
    keys = ["2" if document[-1] in "ab" else "0" for _, document in dry.pool.pairs]
    found, printed = judged_in_terminal(monkeypatch, run_folder, keys)
    folder = run_folder / "judged"
    assert found.folder == folder
    assert len(found.pool.pairs) == 40  # of each query, the two best of three systems: a, b, e, f
    assert found.grades == {0: 20, 1: 0, 2: 20}
    assert (found.skipped, found.left) == (0, 0)
    assert "good" not in printed
    assert "bm25s" not in printed
    judged = read_beir(folder)
    assert judged.qrels == {
        query: {f"{query[1:]}-{part}": 2 if part in "ab" else 0 for part in "abef"} for query in judged.qrels
    }
    assert len(judged.queries) == 10
    assert all(text == f"what is {query[1:]}?" for query, text in judged.queries.items())
    assert (folder / "corpus.jsonl").samefile(run_folder / "held_out" / "corpus.jsonl")
    record = json.loads((folder / "judge.json").read_text())
    assert (record["seed"], record["depth"], record["pairs"]) == (0, 2, 40)
    assert record["pool"] == [list(pair) for pair in found.pool.pairs]
    assert set(record["systems"]) == {"bm25s", "equal", "makers/good"}
    assert str(run_folder) not in (folder / "judge.json").read_text()
    means = {result.model: result.scores.mean for result in found.results}
    name = "nDCG(judged_only=True)@2"
    assert {model: round(mean[name], 4) for model, mean in means.items()} == {
        "bm25s": 0.0,
        "equal": 1.0,
        "makers/good": 1.0,
    }
    assert {mean["Judged@2"] for mean in means.values()} == {1.0}
    assert found.comparison.baseline == "bm25s"
    assert [pair.differ for pair in found.comparison.pairs] == [True, True]
    text = "\n".join(found.summary())
    assert "40 pairs judged: 20 not relevant, 0 partly relevant, 20 relevant; 0 skipped, 0 left." in text
    assert text.count(" is better.") == 2
    assert "cannot tell" not in text
    assert "passages: bm25s 100%, equal 100%, makers/good 100%." in text
    assert "That is little" not in text
    assert "differ on" not in text  # all queries do


def test_systems_that_are_alike_cannot_be_told_apart(run_folder, monkeypatch):
    shutil.rmtree(run_folder / "results" / "bm25s")
    found, _ = judged_in_terminal(monkeypatch, run_folder, "2222", baseline="makers/good")
    assert found.comparison.baseline == "makers/good"
    text = "\n".join(found.summary())
    assert "They do not differ beyond chance." in text
    assert "4 pairs on 2 queries cannot tell equal from makers/good. Judge more (--pairs 48 " in text


def test_the_baseline_of_an_adapted_model_is_its_base(run_folder, monkeypatch):
    data = read_beir(run_folder / "held_out")
    run = {f"q{i}": {f"{i}-c": 2.0, f"{i}-d": 1.0} for i in range(QUERIES)}
    file_system(run_folder / "results", "base", data, run)
    found, _ = judged_in_terminal(monkeypatch, run_folder, "2" * 20)
    assert found.comparison.baseline == "base"
    assert found.comparison.systems == ("bm25s", "equal", "makers/good")


def test_the_commands_of_the_summary_work(run_folder, monkeypatch):
    found, _ = judged_in_terminal(monkeypatch, run_folder, "20" * 10)
    commands = [line.strip() for line in found.summary() if line.startswith("  stzoo ")]
    assert len(commands) == 2
    compared, scored = (shlex.split(command)[1:] for command in commands)
    done = cli(*compared)
    assert done.returncode == 0, done.stderr
    assert "equal against bm25s on judged (test)" in done.stdout
    runs = run_folder / "results" / "equal" / "r1" / "held_out.test.run"
    done = cli(*(word.replace("NAME=FILE.run", f"new={runs}") for word in scored), "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["results"]
    mean = next(result.scores.mean for result in found.results if result.model == "equal")
    assert row["nDCG(judged_only=True)@2"] == mean["nDCG(judged_only=True)@2"]
    assert "only a shallow pool is judged" in done.stderr
    into = ("--output", run_folder / "judged" / "results")
    assert cli(*(word.replace("NAME=FILE.run", f"new={runs}") for word in scored), *into).returncode == 0
    assert cli("compare", "new", "equal", *compared[4:]).returncode == 0


def test_keys_undo_skip_and_continue(run_folder, monkeypatch):
    found, printed = judged_in_terminal(monkeypatch, run_folder, ["u", "x", "2", "1", "u", "s", "0"])
    assert "There is nothing to undo." in printed
    assert printed.count("\nKeys: ") == 1
    assert "That is little: the scores leave out what was not judged" in "\n".join(found.summary())
    first, second, third = found.pool.pairs[:3]
    assert [found.grades, found.skipped, found.left] == [{0: 1, 1: 0, 2: 1}, 1, 37]
    assert read_beir(run_folder / "judged").qrels == {
        query: {d: g for (q, d), g in ((first, 2), (third, 0)) if q == query}
        for query in sorted({first[0], third[0]})
    }
    again, printed = judged_in_terminal(monkeypatch, run_folder, ["q"])
    assert "Pair 4 of 40" in printed
    assert "Pair 3 of 40" not in printed
    assert second not in [
        (q, d) for q, found in read_beir(run_folder / "judged").qrels.items() for d in found
    ]
    assert again.grades == found.grades
    more, _ = judged_in_terminal(monkeypatch, run_folder, "2" * 45, pairs=48)
    assert (more.left, sum(more.grades.values())) == (0, 47)
    assert more.pool.pairs[:40] == found.pool.pairs


def test_nothing_judged_writes_no_judgements(run_folder, monkeypatch):
    found, _ = judged_in_terminal(monkeypatch, run_folder, ["s", "s"])
    assert (found.skipped, found.results, found.comparison) == (2, (), None)
    assert not (run_folder / "judged" / "qrels" / "test.tsv").exists()
    assert found.summary()[-1] == "There is nothing to score yet."
    one, _ = judged_in_terminal(monkeypatch, run_folder, ["2"])
    assert one.comparison is None
    assert one.summary()[-1] == "A comparison needs two systems and two judged queries."
    undone, _ = judged_in_terminal(monkeypatch, run_folder, ["u"])
    assert undone.results == ()
    assert not (run_folder / "judged" / "qrels" / "test.tsv").exists()


def test_control_characters_do_not_reach_the_terminal(run_folder, monkeypatch):
    file = run_folder / "held_out" / "corpus.jsonl"
    rows = [json.loads(line) | {"text": f"{NASTY}\nline two"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, printed = judged_in_terminal(monkeypatch, run_folder, ["q"])
    assert "\x1b" not in printed
    assert "<script>" in printed
    assert "\nline two\n" in printed


def test_single_keys_work_on_a_real_terminal(run_folder):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "stzoo", "judge", str(run_folder), "--terminal"]
    process = subprocess.Popen(command, stdin=child, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal = run_folder / "judged" / "answers.jsonl"
    wait_for(lambda: not termios.tcgetattr(child)[3] & termios.ICANON, process)
    for count, key in enumerate((b"2", b"0", b"\x7f", b"1"), 1):
        os.write(parent, key)
        wait_for(lambda count=count: journal.exists() and journal.read_bytes().count(b"\n") == count, process)
    os.write(parent, b"q")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert termios.tcgetattr(child)[3] & termios.ICANON  # as before
    assert b"2 pairs judged: 0 not relevant, 1 partly relevant, 1 relevant; 0 skipped, 38 left." in out
    os.close(parent)
    os.close(child)


def test_on_another_disk_the_corpus_is_a_symbolic_link(run_folder, monkeypatch):
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == run_folder.stat().st_dev:
        pytest.skip("there is no other disk here")
    output = shm / f"stzoo-test-{os.getpid()}"
    try:
        judged_in_terminal(monkeypatch, run_folder, "2222", output=output)
        assert (output / "corpus.jsonl").is_symlink()
        assert len(read_beir(output).corpus_ids) == 6 * QUERIES
    finally:
        shutil.rmtree(output, ignore_errors=True)


def test_only_the_texts_of_the_pool_are_read(run_folder, monkeypatch):
    pool = judged_in_terminal(monkeypatch, run_folder, ["q"], pairs=4)[0].pool
    file = run_folder / "held_out" / "corpus.jsonl"
    rows = {json.loads(line)["_id"]: line for line in file.read_text().splitlines()}
    needed = [rows.pop(document) for _, document in pool.pairs]
    file.write_text("\n".join([*needed, "not even JSON"]))
    judged_in_terminal(monkeypatch, run_folder, ["q"], pairs=4)


def test_what_cannot_be_judged_is_refused(run_folder, monkeypatch, tmp_path):
    def refused(error, match, *arguments, **options):
        with pytest.raises(error, match=match):
            judged_in_terminal(monkeypatch, *(arguments or [run_folder]), ["2", "2"], **options)

    plain = tmp_path / "plain"
    shutil.copytree(run_folder / "results", plain)
    refused(RecipeError, "no data is given", plain)
    refused(DataError, "has no results", tmp_path / "nothing", data=run_folder / "held_out")
    refused(DataError, "no file or folder", plain, data=tmp_path / "nothing")
    refused(OutputError, "is inside", plain, data=run_folder / "held_out", output=plain / "judged")
    refused(
        RecipeError, "there is no system 'makers/goood'; did you mean 'makers/good'", baseline="makers/goood"
    )
    refused(DataError, "no results on the split 'dev' of held_out; choose by --split: test", split="dev")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    refused(OutputError, r"has no judge\.json, but notes\.txt", output=tmp_path / "mine")
    assert not (run_folder / "judged").exists()
    judged_in_terminal(monkeypatch, run_folder, ["2", "2"])
    for options in ({"seed": 1}, {"depth": 3}):
        refused(
            OutputError, r"judgements of another pool \((seed: 0 then, 1|depth: 2 then, 3) now\)", **options
        )
    shutil.rmtree(run_folder / "results" / "equal")
    refused(OutputError, r"judgements of another pool \(systems\.equal")
    for file in run_folder.glob("results/*/*/*.run"):
        file.unlink()
    refused(DataError, "has no run file next to it")


def test_the_data_must_have_what_the_results_name(run_folder, monkeypatch):
    file = run_folder / "held_out" / "corpus.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if '"3-e"' not in line))
    with pytest.raises(DataError, match=r"corpus\.jsonl lacks 1 id of the results, e\.g\. '3-e'"):
        judged_in_terminal(monkeypatch, run_folder, ["q"], pairs=1000)


def test_a_system_without_a_run_file_is_left_out_with_a_note(run_folder, monkeypatch, capsys):
    (run_folder / "results" / "equal" / "r1" / "held_out.test.run").unlink()
    found, _ = judged_in_terminal(monkeypatch, run_folder, "22222222")
    assert [result.model for result in found.results] == ["bm25s", "makers/good"]
    assert "equal left out of the pool: no run file" in capsys.readouterr().err


def test_of_several_data_sets_that_of_the_folder_is_judged(run_folder, monkeypatch):
    data = read_beir(run_folder / "held_out", name="other")
    run = {query: {"0-a": 1.0} for query in data.queries}
    file_system(run_folder / "results", "third", data, run)
    found, _ = judged_in_terminal(monkeypatch, run_folder, ["2"])
    assert [result.model for result in found.results] == ["bm25s", "equal", "makers/good"]
    elsewhere = run_folder.parent / "elsewhere"
    shutil.copytree(run_folder / "held_out", elsewhere)
    with pytest.raises(DataError, match="has results on held_out, other, but not on elsewhere"):
        judged_in_terminal(monkeypatch, run_folder, ["2"], data=elsewhere)


# The server


def serving(answers, texts=None):
    """A server in a thread, and a function that asks it; the server ends with the block."""
    texts = texts or [(f"question {q}", f"title {d}", f"text {d}") for q, d in answers.pairs]
    server = JudgeServer(answers, texts, lambda: None)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    return server, thread


@pytest.fixture
def served(tmp_path):
    pairs = [("q1", "d1"), ("q1", "d2"), ("q2", "d3")]
    server, thread = serving(Answers(tmp_path / "answers.jsonl", pairs))
    yield server
    if thread.is_alive():
        server.shutdown()
        thread.join(10)


def ask(server, path="", body=None, token=None, kind="application/json", **headers):
    """The status, headers and JSON (or text) of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    method, content = ("GET", None) if body is None else ("POST", body)
    if isinstance(content, dict):
        content = json.dumps(content)
    headers = ({"Content-Type": kind} if content is not None else {}) | headers
    connection.request(method, f"/{token or server.token}/{path}", content, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    is_json = response.headers["Content-Type"] == "application/json"
    return response.status, response.headers, json.loads(text) if is_json else text


def test_the_server_answers_the_page_alone(served):
    status, headers, text = ask(served)
    assert (status, text[:15]) == (200, "<!doctype html>")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert not [name for name in headers if name.lower().startswith("access-control")]
    port = served.server_port
    assert served.server_address[0] == "127.0.0.1"
    assert ask(served, "state", Host=f"localhost:{port}")[0] == 200
    assert ask(served, "state", Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert ask(served, "state", token="wrong")[0] == 404
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
        assert ask(served, "state", Host=host)[0] == 403
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}"):
        assert ask(served, "state", Origin=origin)[0] == 403
        assert ask(served, "answer", {"place": 0, "grade": 2}, Origin=origin)[0] == 403
    assert ask(served, "answer", {"place": 0, "grade": 2}, token="wrong")[0] == 404
    for path in ("judge.py", "../server.py", "..%2fserver.py", "answer", "state/", "judge.json"):
        assert ask(served, path)[0] == 404
    assert ask(served, "state", {})[0] == 404
    assert not served.answers.path.exists()


def test_only_answers_to_the_pair_on_the_page_count(served):
    for body in ("{", "[]", "null", "2", "[" * 4000):
        assert ask(served, "answer", body)[0] == 400
    for grade in (3, -1, True, "2", 1.0, [], {}):
        assert ask(served, "answer", {"place": 0, "grade": grade})[0] == 400
    assert ask(served, "answer", {"place": 0})[0] == 400
    for place in (1, -1, None, "0", 9):
        assert ask(served, "answer", {"place": place, "grade": 2})[0] == 409
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert ask(served, "answer", {"place": 0, "grade": 2}, kind=kind)[0] == 415
    assert ask(served, "answer", " " * 5000 + "{}")[0] == 413
    assert not served.answers.path.exists()
    status, _, state = ask(served, "answer", {"place": 0, "grade": 2})
    assert (status, state["place"], state["answered"]) == (200, 1, 1)
    assert ask(served, "answer", {"place": 0, "grade": 0})[0] == 409  # a second click
    assert ask(served, "answer", {"place": 1, "grade": None})[2]["counts"] == [0, 0, 1, 1]
    assert ask(served, "undo", {})[2]["place"] == 1
    assert ask(served, "answer", {"place": 1, "grade": 0})[2]["counts"] == [1, 0, 1, 0]
    assert ask(served, "answer", {"place": 2, "grade": 1})[2]["place"] == 3
    assert ask(served, "answer", {"place": 3, "grade": 1})[0] == 409
    assert ask(served, "finish", {})[2]["finished"] is True
    assert Answers(served.answers.path, served.answers.pairs).qrels == {
        "q1": {"d1": 2, "d2": 0},
        "q2": {"d3": 1},
    }


def test_the_page_is_shown_nothing_but_texts_and_counts(served):
    state = ask(served, "state")[2]
    assert state.keys() == {
        *("place", "pairs", "answered", "counts", "finished"),
        *("question", "title", "text", "passage", "passages"),
    }
    assert (state["passage"], state["passages"]) == (1, 2)


def test_a_full_disk_ends_the_command_with_its_message(tmp_path):
    answers = Answers(tmp_path / "no such folder" / "answers.jsonl", [("q1", "d1")])
    server = JudgeServer(answers, [("q", "t", "p")], lambda: None)
    failures = []

    def serve():
        try:
            server.serve()
        except OutputError as error:
            failures.append(str(error))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ask(server, "answer", {"place": 0, "grade": 1})[0] == 500
    thread.join(10)
    assert re.search("could not be written", failures[0])


def test_a_port_in_use_is_refused(served):
    with pytest.raises(OutputError, match=r"port \d+ cannot be used: .*Choose another --port"):
        JudgeServer(served.answers, served.texts, lambda: None, served.server_port)


def start(run, *options):
    """The command in a process of its own, and the address of its page."""
    command = [sys.executable, "-m", "stzoo", "judge", str(run), "--no-browser", *options]
    process = processes.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", line):
            page = type("Page", (), {"server_port": int(found[1]), "token": found[2], "url": found[0]})
            return process, page
    raise AssertionError(process.communicate())


def test_killed_or_interrupted_it_continues_with_the_next_pair(run_folder):
    place = 0
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process, page = start(run_folder)
        assert ask(page, "state")[2]["place"] == place
        for _ in range(3):
            assert ask(page, "answer", {"place": place, "grade": place % 3})[0] == 200
            place += 1
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == code
        assert ("To continue, run the same command again." in err) == (code > 0)
    process, page = start(run_folder)
    assert ask(page, "state")[2]["counts"] == [3, 3, 3, 0]
    second = cli("judge", run_folder, "--no-browser")
    assert (second.returncode, "is in use by another run" in second.stderr) == (2, True)
    assert ask(page, "finish", {})[2]["finished"] is True
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "9 pairs judged: 3 not relevant, 3 partly relevant, 3 relevant; 0 skipped, 31 left." in out
    assert sum(map(len, read_beir(run_folder / "judged").qrels.values())) == 9


# In a browser


@pytest.fixture
def opened(browser):
    """Opens pages; what goes wrong in one, or is loaded from elsewhere, makes the test fail at its end.

    `open_page.expected` is for what the test itself makes go wrong.
    """
    contexts, faults = [], []

    def open_page(url, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("request", lambda r: r.url.startswith((url, "data:,")) or faults.append(f"request: {r.url}"))
        page.goto(url)
        page.locator("main > :not([hidden])").wait_for()
        return page

    open_page.expected = ()
    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in faults if not fault.endswith(tuple(open_page.expected))] == []


def at(page, text):
    """Waits until the count in the page's head is this text."""
    page.locator("#count", has_text=re.compile(f"^{text}$")).wait_for()


def test_keys_buttons_undo_and_reload(opened, served):
    page = opened(served.url)
    at(page, "Pair 1 of 3")
    assert page.locator("#question").text_content() == "question q1"
    assert page.locator("#which").text_content() == "Passage 1 of 2 for this question"
    assert page.locator("#undo").is_disabled()
    page.keyboard.press("2")
    at(page, "Pair 2 of 3")
    assert page.locator("#title").text_content() == "title d2"
    assert page.locator("#said").text_content() == "Saved. Pair 2 of 3."
    assert page.evaluate("document.activeElement.id") == "question"
    page.get_by_role("button", name="Partly").click()
    at(page, "Pair 3 of 3")
    page.keyboard.press("Backspace")
    at(page, "Pair 2 of 3")
    assert page.locator("#said").text_content() == "Undone. Pair 2 of 3."
    page.keyboard.press("Control+0")  # the browser's own
    page.keyboard.press("9")
    page.reload()
    at(page, "Pair 2 of 3")
    page.keyboard.press("0")
    at(page, "Pair 3 of 3")
    opened.expected = ["status of 409 (Conflict)"]
    other = opened(served.url)
    page.keyboard.press("s")
    page.get_by_role("heading", name="All pairs are judged.").wait_for()
    other.keyboard.press("2")  # its page is out of date
    other.get_by_role("heading", name="All pairs are judged.").wait_for()
    assert served.answers.counts == [1, 0, 1, 1]
    page.keyboard.press("u")
    at(page, "Pair 3 of 3")
    page.keyboard.press("1")
    page.get_by_role("heading", name="All pairs are judged.").wait_for()
    counts = " ".join(page.locator("#counts").inner_text().split())
    assert counts == "Not relevant 1 Partly 1 Relevant 1 Skipped 0"
    page.get_by_role("button", name="Finish").click()
    page.get_by_role("heading", name="Saved. You can close this page.").wait_for()
    assert page.locator("button:visible").count() == 0


def test_a_server_that_has_ended_is_said(opened, tmp_path):
    server, thread = serving(Answers(tmp_path / "answers.jsonl", [("q1", "d1"), ("q1", "d2")]))
    page = opened(server.url)
    opened.expected = ["net::ERR_CONNECTION_REFUSED"]
    server.shutdown()
    thread.join(10)
    page.keyboard.press("2")
    page.get_by_role("alert").wait_for()
    assert "All answers so far are saved" in page.get_by_role("alert").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_texts_stay_texts_at_any_width(opened, tmp_path, width, scheme):
    answers = Answers(tmp_path / "answers.jsonl", [("q1", "d1"), ("q1", "d2")])
    texts = [(NASTY, NASTY, f"{NASTY}\n{LONG}"), ("", "", "")]
    server, thread = serving(answers, texts)
    page = opened(server.url, width, scheme)
    assert page.locator("#text").text_content() == texts[0][2]
    assert page.locator("#question").text_content() == page.locator("#title").text_content() == NASTY
    assert page.locator("main script, main img").count() == 0
    assert page.title() == "Judge passages - stzoo"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= 800  # in sight while a long passage is read
        assert box["height"] >= 44
    dark_page = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 24)"
    assert dark_page == (scheme == "dark")
    page.keyboard.press("1")
    at(page, "Pair 2 of 2")
    server.shutdown()
    thread.join(10)


def test_the_whole_way_in_a_browser(opened, run_folder):
    process, address = start(run_folder, "--pairs", "8")
    page = opened(address.url)
    assert "good" not in page.content()
    assert str(run_folder) not in page.content()
    for number in range(1, 9):
        at(page, f"Pair {number} of 8")
        relevant = re.match("text [ab] ", page.locator("#text").text_content())
        page.keyboard.press("2" if relevant else "0")
    page.get_by_role("button", name="Finish").click()
    page.get_by_role("heading", name="Saved. You can close this page.").wait_for()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "8 pairs judged: 4 not relevant, 0 partly relevant, 4 relevant; 0 skipped, 0 left." in out
    assert "makers/good against bm25s on judged (test): +1.0000 nDCG(judged_only=True)@2" in out
    assert "8 pairs on 2 queries cannot tell equal, makers/good from bm25s. Judge more (--pairs 16 " in out
