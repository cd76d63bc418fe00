import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import processes

from stzoo.data.corpus import load_corpus
from stzoo.data.corpus_rows import read_row
from stzoo.data.corpus_sources import hub_ids
from stzoo.errors import DataError, OutputError, RecipeError
from stzoo.utils.cache import cache_folder

ROWS = [
    {"_id": "a", "title": "Wings", "text": "The lift of a wing grows."},
    {"_id": "b", "title": "", "text": "Mitochondria release cytochrome."},
    {"_id": "c", "text": "Interest rates rose, Ελλάδα and 日本."},
]
TEXTS = [
    "Wings The lift of a wing grows.",
    "Mitochondria release cytochrome.",
    "Interest rates rose, Ελλάδα and 日本.",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpora"


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def python(code, *args, start=subprocess.Popen, **options):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return start([sys.executable, "-c", code, *map(str, args)], env=env, text=True, **options)


LOAD = "import sys; from stzoo.data.corpus import load_corpus; print(load_corpus(sys.argv[1]).fingerprint)"


def test_the_ids_of_sources_on_the_hub(tmp_path, monkeypatch):
    """A folder of the user's may be called like a data set by chance."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    downloaded = tmp_path / "cache/datasets/nfcorpus"
    for folder in (tmp_path / "SciFact", tmp_path / "nq", downloaded):
        for name in ("corpus.jsonl", "qrels/test.tsv"):
            write(folder / name, b"")
    sources = ["org/a:en:train", "scifact", "msmarco", str(downloaded)]
    assert hub_ids(sources) == ["org/a", "mteb/scifact", "mteb/msmarco", "mteb/nfcorpus"]
    none = ["SciFact", "./nq", "nq/corpus.jsonl", "pairs.jsonl", "bioasq", "list", "pydocs"]
    assert hub_ids([*none, "https://example.org/scifact/corpus.jsonl", "~/scifact"]) == []


# What can be read


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.jsonl.gz",
        "A.JSONL",
        "a.tsv.json",
        "a.json.gz",
        "beir/corpus.jsonl",
        "beir/corpus.jsonl.gz",
    ],
)
def test_json_lines_become_rows_with_the_title_in_front(tmp_path, name):
    path = write(tmp_path / name, lines(*ROWS))
    corpus = load_corpus(path.parent if path.parent != tmp_path else path)
    assert corpus.rows["text"][:] == TEXTS
    assert corpus.rows["id"][:] == ["a", "b", "c"]
    assert (corpus.dropped, corpus.bad_lines) == (0, 0)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_gives_the_same_rows_as_json_lines(tmp_path, kind):
    columns = {name: [row.get(name) for row in ROWS] for name in ("_id", "title", "text")}
    table = pa.table({name: pa.array(values, pa.string()).cast(kind) for name, values in columns.items()})
    pq.write_table(table.append_column("grade", [[1, 2, 3]]), tmp_path / "a.parquet", row_group_size=2)
    write(tmp_path / "a.jsonl", lines(*ROWS))
    ours, theirs = load_corpus(tmp_path / "a.parquet"), load_corpus(tmp_path / "a.jsonl")
    assert ours.rows["text"][:] == TEXTS
    assert ours.fingerprint == theirs.fingerprint


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_plain_text_is_one_passage_a_non_empty_line(tmp_path, name):
    path = write(tmp_path / name, "\ufeffone two three\r\n\r\n   \nfour five sìx".encode())
    corpus = load_corpus(path)
    assert corpus.rows["text"][:] == ["one two three", "four five sìx"]
    assert corpus.rows["id"][:] == [f"{name}:1", f"{name}:4"]


def test_sources_keep_the_order_given_and_a_folder_that_of_its_names(tmp_path):
    write(tmp_path / "many" / "2.txt", b"from file two")
    write(tmp_path / "many" / "1.jsonl", lines({"text": "from file one"}))
    write(tmp_path / "many" / ".hidden.txt", b"from hidden file")
    write(tmp_path / "many" / "deep" / "3.txt", b"from deep file")
    write(tmp_path / "many" / "LICENCE", b"has an unknown type")
    last = write(tmp_path / "0.txt", b"from file zero")
    corpus = load_corpus([tmp_path / "many", last])
    assert corpus.rows["text"][:] == ["from file one", "from file two", "from file zero"]
    assert corpus.sources == (str(tmp_path / "many"), str(last))


def test_many_files_of_a_folder_are_read_in_name_order(tmp_path):
    for name in "dibhcgajfe":
        write(tmp_path / f"{name}.txt", f"passage number {name}".encode())
    assert load_corpus(tmp_path).rows["text"][:] == [f"passage number {name}" for name in "abcdefghij"]


def test_a_beir_folder_is_its_corpus_and_not_its_queries(tmp_path):
    write(tmp_path / "corpus.jsonl", lines(*ROWS))
    write(tmp_path / "queries.jsonl", lines({"_id": "q", "text": "what makes a wing lift"}))
    assert load_corpus(tmp_path).rows["text"][:] == TEXTS


def test_ids_may_be_numbers_or_missing_or_repeated(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        lines({"id": 7, "text": "a b c"}, {"text": "d e f"}, {"id": "7", "_id": None, "text": "g h i"}),
    )
    assert load_corpus(path).rows["id"][:] == ["7", "a.jsonl:2", "7"]


def test_the_word_pydocs_is_the_built_in_corpus():
    from stzoo.data import pydocs

    corpus, rows = load_corpus("pydocs"), pydocs.passages()
    assert corpus.rows["text"][:5] == [f"{row['title']} {row['text']}" for row in rows[:5]]
    assert len(corpus.rows) == len(rows)


def test_a_data_set_of_the_hub_is_read_from_its_cache(tmp_path):
    # The Hub's client keeps a data set as a folder of Arrow files; here such a folder is made from a file.
    write(tmp_path / "in" / "some.jsonl", lines(*ROWS[:2], ROWS[2] | {"queries": ["rates"]}))
    code = (
        "import sys, shutil, pathlib, datasets; from stzoo.data.corpus import load_corpus\n"
        "made = datasets.load_dataset('json', data_files=sys.argv[1])['train']\n"
        "folder = pathlib.Path(made.cache_files[0]['filename']).parent\n"
        "cache = pathlib.Path(datasets.config.HF_DATASETS_CACHE)\n"
        "wanted = cache / 'some___texts' / 'default' / '0.0.0' / 'abc'\n"
        "wanted.parent.mkdir(parents=True); shutil.copytree(folder, wanted)\n"
        "(wanted / 'json-train.arrow').rename(wanted / 'texts-train.arrow')\n"
        "for source in 'some/texts', 'some/texts:default:train':\n"
        "    rows = load_corpus(source, columns={'queries': list[str]}).rows\n"
        "    print(rows['text'][:], rows['queries'][:])"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    env.pop("HF_DATASETS_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "in" / "some.jsonl"], env=env, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f"{TEXTS} {[None, None, ['rates']]}"] * 2, done.stderr


def test_real_sets_are_read_whole():
    data = os.environ.get("STZOO_DATA")
    if not data:
        pytest.skip("STZOO_DATA names no folder of real data")
    corpus = load_corpus([f"{data}/beir/cranfield", f"{data}/text/nltk-public.jsonl.gz"])
    # Two documents of cranfield are empty.
    assert corpus.dropped >= 2
    assert len(corpus.rows) + corpus.dropped == 1400 + 2563


# What is left out


def test_near_empty_passages_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "a.txt", "one two\none, two; three\n— — — —\n東京都\n東京\nกขค\n1\n".encode())
    corpus = load_corpus(path)
    assert corpus.rows["text"][:] == ["one, two; three", "東京都", "กขค"]
    assert corpus.dropped == 4
    assert load_corpus(path, min_words=1).dropped == 1


def test_min_words_are_counted_in_every_script(tmp_path):
    kept = ["ｶﾅﾃｷｽﾄ", "ㄅㄆㄇㄈ", "😀👍🏽🎉", "हिन्दी भाषा है", "cafe\u0301 de\u0301ja\u0300 vu"]
    path = write(tmp_path / "a.txt", "\n".join([*kept, "हिन्दी", "👩‍👩‍👧", "a\u0301e\u0301o\u0301"]).encode())
    corpus = load_corpus(path)
    assert corpus.rows["text"][:] == kept
    assert corpus.dropped == 3


BAD = [
    (b"{\n", "invalid JSON"),
    (b"[1]\n", "a JSON list"),
    (b'{"contents": "x"}\n', "keys contents"),
    (b"{}\n", "keys none"),
    (b'{"text": null}\n', '"text" of type NoneType'),
    (b'{"text": 3}\n', '"text" of type int'),
    (b'{"text": "x", "title": []}\n', '"title" of type list'),
    (b'{"text": "x", "_id": 1.5}\n', '"id" of type float'),
    (b'{"text": "\xff"}\n', "byte 11 of the line is not UTF-8"),
    (b'{"text": "a \\ud800 b"}\n', "surrogate"),
    (b'{"text": "x", "_id": ' + b"9" * 5000 + b"}\n", "invalid JSON (Exceeds the limit"),
    (b"[" * 100_000 + b"\n", "invalid JSON (nested more than 64 deep)"),
]


@pytest.mark.parametrize(("bad", "found"), BAD, ids=[found for _, found in BAD])
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, cache, bad, found):
    path = write(tmp_path / "a.jsonl", lines(*ROWS[:2]) + b"\n" + bad + lines(ROWS[2]))
    with pytest.raises(DataError) as caught:
        load_corpus(path)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert found in str(caught.value)
    assert "expected" in str(caught.value)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    corpus = load_corpus(path, skip_bad_lines=True)
    assert corpus.rows["text"][:] == TEXTS
    assert corpus.bad_lines == 1


def test_bad_rows_of_parquet_are_bad_lines(tmp_path):
    texts = pa.array([b"one two three", None, b"\xff\xfe", b"four five six"], pa.binary())
    strings = pa.StringArray.from_buffers(4, texts.buffers()[1], texts.buffers()[2], texts.buffers()[0])
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:2: a \"text\" of type NoneType"):
        load_corpus(tmp_path / "a.parquet")
    corpus = load_corpus(tmp_path / "a.parquet", skip_bad_lines=True)
    assert corpus.rows["text"][:] == ["one two three", "four five six"]
    assert corpus.rows["id"][:] == ["a.parquet:1", "a.parquet:4"]
    assert corpus.bad_lines == 2


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1))
def test_every_line_is_kept_dropped_or_bad(tmp_path, texts):
    path = write(tmp_path / "a.jsonl", lines({"text": "to be kept"}, *({"text": text} for text in texts), 1))
    corpus = load_corpus(path, skip_bad_lines=True)
    assert len(corpus.rows) + corpus.dropped + corpus.bad_lines == len(texts) + 2
    kept = iter(["to be kept", *texts])
    assert all(any(row == text.strip() for text in kept) for row in corpus.rows["text"])


# What cannot be read


def test_a_missing_source_is_named(tmp_path):
    for source in (
        tmp_path / "none.jsonl",
        "data/corpus.jsonl",
        "./corpus",
        "pydoc",
        "~/none",
        "a/b/c",
        "a/b:c",
    ):
        with pytest.raises(DataError, match="there is no file or folder"):
            load_corpus(source)


def test_a_data_set_that_the_hub_does_not_give_is_explained():
    code = LOAD.replace("sys.argv[1]", "'org/none-such'").replace("print(", "\ntry: (")
    code += "\nexcept Exception as error: print(type(error).__name__, error)"
    child = python("import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + code, stdout=subprocess.PIPE)
    said = child.communicate()[0]
    assert said.startswith(
        "DataError org/none-such is not a file or folder, and cannot be loaded from the Hub"
    )


def test_json_files_are_read_only_when_they_are_named(tmp_path):
    path = write(tmp_path / "in" / "a.json", lines(*ROWS))
    with pytest.raises(DataError, match=r"no file of a known type.*name a \.json file itself"):
        load_corpus(tmp_path / "in")
    write(tmp_path / "in" / "b.txt", b"one two three")
    assert len(load_corpus(tmp_path / "in").rows) == 1
    assert len(load_corpus(path).rows) == 3


@pytest.mark.parametrize("document", [{"text": "one two three"}, ROWS, {"rows": ROWS}])
def test_a_json_document_over_many_lines_is_refused(tmp_path, document):
    path = write(tmp_path / "a.json", json.dumps(document, indent=2).encode())
    with pytest.raises(DataError, match=r"a\.json:1: invalid JSON .*not a document over several lines"):
        load_corpus(path)
    with pytest.raises(DataError, match="There is no passage"):
        load_corpus(path, skip_bad_lines=True)


def test_folders_and_files_of_no_known_kind_are_refused(tmp_path):
    write(tmp_path / "in" / "a.csv", b"one two three")
    with pytest.raises(DataError, match="no file of a known type"):
        load_corpus(tmp_path / "in")
    write(tmp_path / "in" / "a.xml", b"one two three")
    with pytest.raises(DataError, match="has an unknown type"):
        load_corpus(tmp_path / "in" / "a.xml")


def test_csv_and_tsv_files_are_read_when_they_are_named(tmp_path):
    write(tmp_path / "a.csv", b'id,title,text\n7,T,"one, two three"\n')
    write(tmp_path / "b.tsv", b"text\tid\none two three\t8\n")
    rows = load_corpus([tmp_path / "a.csv", tmp_path / "b.tsv"]).rows
    assert list(zip(rows["id"], rows["text"], strict=True)) == [
        ("7", "T one, two three"),
        ("8", "one two three"),
    ]


def test_a_cut_or_false_gzip_file_is_damaged_even_where_bad_lines_are_skipped(tmp_path):
    whole = gzip.compress(os.urandom(100_000).hex().encode())
    for content in (whole[:5000], b"one two three\n", whole[:3000] + b"\0" * 2000 + whole[5000:]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(DataError, match="damaged after line"):
            load_corpus(tmp_path / "a.txt.gz", skip_bad_lines=True)


def test_parquet_that_is_empty_or_cut_or_without_text_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.touch()
    with pytest.raises(DataError, match="expected a whole Parquet file"):
        load_corpus(path)
    pq.write_table(pa.table({"text": ["one two three"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="expected a whole Parquet file"):
        load_corpus(path)
    pq.write_table(pa.table({"body": ["one two three"]}), path)
    with pytest.raises(DataError, match='has the columns body; expected one named "text"'):
        load_corpus(path)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="There is no passage"):
        load_corpus(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", lines({"text": ""}, {"text": "one two"})])
def test_a_corpus_without_passages_is_refused(tmp_path, cache, content):
    with pytest.raises(DataError, match="There is no passage"):
        load_corpus(write(tmp_path / "a.jsonl", content))
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_no_source_and_no_words_are_refused(tmp_path):
    with pytest.raises(DataError, match="No corpus was given"):
        load_corpus([])
    with pytest.raises(RecipeError, match="min_words is 0"):
        load_corpus(tmp_path, min_words=0)


# The cache


def test_unchanged_sources_are_read_from_the_cache(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.jsonl", lines(*ROWS))
    first = load_corpus(path)
    made = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    monkeypatch.chdir(tmp_path)
    again = load_corpus(["a.jsonl"])
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*")} == made
    assert again.rows[:] == first.rows[:]
    assert (again.fingerprint, again.dropped, again.bad_lines) == (first.fingerprint, 0, 0)
    assert again.sources == ("a.jsonl",)


def test_a_changed_file_is_read_again_even_with_its_old_size_and_modification_time(tmp_path):
    path = write(tmp_path / "a.txt", b"one two three")
    old, before = load_corpus(path), path.stat()
    time.sleep(0.02)
    path.write_bytes(b"one two eight")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    new = load_corpus(path)
    assert new.rows["text"][:] == ["one two eight"]
    assert new.fingerprint != old.fingerprint


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.jsonl", lines(*ROWS))

    def read_row_and_change(*row):
        with path.open("ab") as opened:
            opened.write(b"\n")
        return read_row(*row)

    monkeypatch.setattr("stzoo.data.corpus_rows.read_row", read_row_and_change)
    with pytest.raises(DataError, match="changed while it was read"):
        load_corpus(path)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_other_settings_are_other_rows(tmp_path):
    path = write(tmp_path / "a.txt", b"one two\none two three")
    assert len(load_corpus(path).rows) == 1
    assert len(load_corpus(path, min_words=2).rows) == 2


def test_the_fingerprint_is_of_the_rows_and_their_order_wherever_they_lie(tmp_path):
    here = load_corpus(write(tmp_path / "here" / "a.jsonl", lines(*ROWS)))
    there = load_corpus(write(tmp_path / "there" / "b.jsonl.gz", lines(*ROWS)))
    turned = load_corpus(write(tmp_path / "turned.jsonl", lines(*ROWS[::-1])))
    assert here.fingerprint == there.fingerprint
    assert here.fingerprint != turned.fingerprint


def test_rows_that_were_cut_are_made_again(tmp_path, cache):
    path = write(tmp_path / "a.jsonl", lines(*ROWS))
    load_corpus(path)
    (arrow,) = cache.rglob("rows.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-100])
    assert load_corpus(path).rows["text"][:] == TEXTS


def test_rows_are_mapped_from_the_file(tmp_path, cache):
    rows = load_corpus(write(tmp_path / "a.jsonl", lines(*ROWS))).rows
    assert [file["filename"] for file in rows.cache_files] == [
        str(file) for file in cache.rglob("rows.arrow")
    ]


def test_several_batches_are_one_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr("stzoo.data.corpus._BATCH_BYTES", 1000)
    texts = [f"passage number {i}" for i in range(500)]
    corpus = load_corpus(write(tmp_path / "a.txt", "\n".join(texts).encode()))
    assert corpus.rows.data.column("text").num_chunks > 5
    assert corpus.rows["text"][:] == texts


def test_processes_that_start_at_once_make_one_and_the_same_corpus(tmp_path, cache):
    path = write(tmp_path / "a.jsonl", lines(*({"text": f"passage number {i}"} for i in range(20_000))))
    children = [python(LOAD, path, start=processes.Popen, stdout=subprocess.PIPE) for _ in range(3)]
    assert len({child.communicate()[0] for child in children}) == 1
    assert [child.returncode for child in children] == [0, 0, 0]
    assert sorted(file.suffix for file in cache.iterdir()) == ["", ".lock"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path, cache):
    path = write(tmp_path / "a.jsonl", lines(*ROWS) * 30_000)
    child = python(LOAD, path, start=processes.Popen, stdout=subprocess.DEVNULL)
    while not list(cache.glob(".*/new/rows.arrow")):
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(cache.glob(".*"))
    assert len(load_corpus(path).rows) == 90_000
    assert sorted(file.suffix for file in cache.iterdir()) == ["", ".lock"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, cache):
    path = write(tmp_path / "a.jsonl", lines(*ROWS) * 5000)
    child = python(
        LOAD,
        path,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    said = child.communicate()[1]
    assert "OutputError" in said
    assert "could not be written" in said
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_a_cache_that_is_no_folder_is_refused(tmp_path):
    write(tmp_path / "file", b"")
    with pytest.raises(OutputError, match="STZOO_CACHE"):
        load_corpus(write(tmp_path / "a.jsonl", lines(*ROWS)), cache=tmp_path / "file")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("STZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/stzoo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "stzoo"


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system has no /proc to read memory from"
)
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, suffix):
    code = (
        "import re, sys; from stzoo.data.corpus import load_corpus\n"
        "rows = load_corpus(sys.argv[1]).rows\n"
        "assert len(rows[len(rows) - 1]['text']) > 900\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    peak = {}
    for megabytes in (5, 105):
        path = tmp_path / f"{megabytes}{suffix}"
        texts = [f"{i} " + f"some words {i % 977} " * 64 for i in range(megabytes * 1000)]
        if suffix == ".parquet":
            pq.write_table(pa.table({"text": texts}), path)
        else:
            write(path, lines(*({"text": text} for text in texts)))
        peak[megabytes] = int(python(code, path, stdout=subprocess.PIPE).communicate()[0]) / 1024
    assert peak[105] - peak[5] < 40  # of 100 MB more text
