import dataclasses
import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import processes
from support.helpers import abandoned_draft, wait_for
from support.hub_server import HubServer, Repo

import stzoo
from stzoo.data import download, registry
from stzoo.data.beir import read_beir, write_beir
from stzoo.data.find_datasets import check, find, locate
from stzoo.errors import DataError
from stzoo.evaluation.averages import Average, averages
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.scoring import Scores

CORPUS = [{"_id": f"d{i}", "title": f"title {i}", "text": f"text {i} é"} for i in range(5)]
QUERIES = {"q1": "one?", "q2": "two?", "q3": "three?"}
QRELS = {"test": {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}, "train": {"q3": {"d3": 1}}}


@pytest.fixture
def made(tmp_path):
    """A parent of one set, "scifact", that is far smaller than the official one."""
    write_beir(tmp_path / "data" / "scifact", CORPUS, QUERIES, QRELS)
    return tmp_path / "data"


@pytest.fixture
def hub(monkeypatch):
    server = HubServer()
    monkeypatch.setenv("STZOO_BEIR_URL", f"{server.url}/archives")
    yield server
    server.close()


def same(folder, other, split="test"):
    return read_beir(folder, split).fingerprint == read_beir(other, split).fingerprint


# On the disk


@pytest.mark.parametrize("name", ["scifact", "SciFact", "mteb/scifact"])
def test_a_set_under_the_folder_is_found_by_any_name(made, name):
    found = find(name, made)
    assert (found.folder, found.split, found.name) == (made / "scifact", "test", "scifact")
    assert found.entry is registry.entries()["scifact"]
    assert find(name, made, split="train").split == "train"


def test_the_folder_itself_is_taken_if_it_has_the_name(made):
    assert find("SciFact", made / "scifact").folder == made / "scifact"
    with pytest.raises(DataError, match="nfcorpus was not found"):
        find("nfcorpus", made / "scifact")


def test_a_folder_that_the_registry_does_not_know_is_found_as_it_is(made):
    (made / "scifact").rename(made / "mine")
    found = find("mine", made)
    assert (found.folder, found.split, found.entry, found.name) == (made / "mine", "test", None, None)


def test_a_task_of_a_folder_is_found(made):
    (made / "scifact").rename(made / "many")
    (made / "many" / "qrels" / "test.tsv").rename(made / "many" / "qrels" / "qa.test.tsv")
    assert find("many/qa", made).folder == made / "many" / "qa"
    assert find("qa", made / "many").folder == made / "many" / "qa"
    with pytest.raises(DataError, match=r"no data set 'many/q\*'"):
        find("many/q*", made)


def test_a_forum_is_found_where_the_archive_has_it(made):
    (made / "cqadupstack").mkdir()
    (made / "scifact").rename(made / "cqadupstack" / "android")
    found = find("cqadupstack-android", made)
    assert (found.folder, found.name) == (made / "cqadupstack" / "android", "cqadupstack-android")


def test_the_cache_comes_after_the_folder(made, tmp_path):
    cached = tmp_path / "cache" / "datasets" / "scifact"
    write_beir(cached, CORPUS[:4], QUERIES, QRELS)
    assert find("SciFact", cache=tmp_path / "cache").folder == cached
    assert find("SciFact", made, cache=tmp_path / "cache").folder == made / "scifact"


def test_ms_marco_is_scored_on_dev_and_nano_sets_on_train(made):
    for name, split in (("msmarco", "dev"), ("nano-nq", "train")):
        write_beir(made / name, CORPUS, QUERIES, QRELS)
        assert find(name, made).split == split


def test_a_folder_that_is_no_set_is_not_passed_over(made):
    (made / "nq").mkdir()
    with pytest.raises(DataError, match=r"nq exists, but is not a BEIR folder; expected corpus\.jsonl"):
        find("nq", made)
    with pytest.raises(DataError, match="nowhere does not exist"):
        find("nq", made / "nowhere")


def test_an_unknown_name_is_answered_with_the_nearest(made):
    with pytest.raises(DataError, match=r"no data set 'scifcat'.*did you mean 'scifact'.*In .*: scifact\."):
        find("scifcat", made)
    with pytest.raises(DataError, match=r"no folder was given.*did you mean 'nfcorpus'"):
        find("nfcorpsu")


def test_offline_the_error_says_where_the_files_belong_and_where_they_are(made, tmp_path):
    with pytest.raises(DataError) as error:
        find("nfcorpus", made, cache=tmp_path / "cache")
    message = str(error.value)
    assert f"no {made / 'nfcorpus'}, no {tmp_path / 'cache' / 'datasets' / 'nfcorpus'}" in message
    assert "HF_HUB_OFFLINE forbids the network" in message
    assert f"Put corpus.jsonl, queries.jsonl and qrels/test.tsv into {made / 'nfcorpus'}." in message
    assert f"`curl -O {download.ARCHIVES}/nfcorpus.zip`, and unzip it in {made}." in message
    assert "a89dba18a62ef92f7d323ec890a0d38d" in message
    assert not (tmp_path / "cache").exists()


def test_offline_a_set_without_an_archive_names_its_place_on_the_hub(made, tmp_path):
    with pytest.raises(DataError) as error:
        find("nano-nq", cache=tmp_path / "cache")
    place = tmp_path / "cache" / "datasets"
    assert f"nano-nq is not in {place}, and cannot be downloaded: HF_HUB_OFFLINE forbids" in str(error.value)
    assert f"run `stzoo fetch nano-nq`, and copy the folder that it prints to {place / 'nano-nq'}." in (
        str(error.value)
    )
    with pytest.raises(DataError) as error:
        find("nano-nq", made, cache=tmp_path / "cache")
    assert f"qrels/train.tsv into {made / 'nano-nq'}." in str(error.value)
    assert "mteb/NanoNQRetrieval at e3973b405feb9e94d07fd971d690d24d7f45264a" in str(error.value)


@pytest.mark.parametrize("name", ["bioasq", "signal1m", "trec-news", "robust04"])
def test_a_gated_set_says_how_to_get_it(made, name):
    with pytest.raises(DataError, match=rf"{name} is not public.*https?://.*Then put corpus\.jsonl"):
        find(name, made)


# Data that a user named


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """stzoo's cache with a small "scifact", and an empty folder to work in."""
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return write_beir(tmp_path / "cache" / "datasets" / "scifact", CORPUS, QUERIES, QRELS)


@pytest.mark.parametrize("name", ["scifact", "SciFact", Path("scifact")])
def test_a_name_is_the_set_in_the_cache(cached, name):
    assert locate(name) == locate(name, on_hub=True) == cached


@pytest.mark.usefixtures("cached")
def test_a_path_of_that_name_comes_first(made):
    write_beir(Path("scifact"), CORPUS[:4], QUERIES, QRELS)
    assert locate("scifact") == Path("scifact")
    assert locate(made / "scifact") == made / "scifact"
    (made / "scifact" / "qrels" / "qa.test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    assert locate(made / "scifact" / "qa") == made / "scifact" / "qa"


def test_a_name_with_a_slash_is_an_id_where_the_hub_is_read(cached, monkeypatch):
    assert locate("mteb/scifact") == cached
    with pytest.raises(DataError, match=r"mteb/scifact is not a file or folder.*Hub's cache has no such"):
        locate("mteb/scifact", on_hub=True)
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", False)
    assert locate("mteb/scifact", on_hub=True) == Path("mteb/scifact")
    assert locate("org/name:config:split", on_hub=True) == Path("org/name:config:split")
    assert locate("pydocs", on_hub=True) == Path("pydocs")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scifct", r"no file or folder scifct, and no data set of that name; did you mean 'scifact'\? "),
        (
            "nowhere",
            r"nowhere, and no data set of that name\. Expected a path or a name that `stzoo list dat",
        ),
        ("./scifact", "no file or folder ./scifact"),
        ("pydocs", "no file or folder pydocs"),
        ("beir-13", r"beir-13 is a suite of data sets; give one of them \(trec-covid, .*--datasets beir-13`"),
        (
            "nfcorpus",
            "nfcorpus is not in .*HF_HUB_OFFLINE forbids the network.*`stzoo fetch nfcorpus`.*CACHE",
        ),
        ("bioasq", r"bioasq is not public.*https?://"),
    ],
)
@pytest.mark.usefixtures("cached")
def test_a_name_without_data_is_explained(name, said):
    with pytest.raises(DataError, match=said):
        locate(name)


# Counts


def test_real_scifact_is_the_official_one(data):
    found = find("scifact", data / "beir")
    assert check(found.entry, read_beir(found.folder, found.split, name=found.name)) == ()
    assert check(found.entry, read_beir(found.folder, "train", name=found.name)) == ()


def test_counts_that_are_not_official_are_told(made):
    entry = registry.entries()["scifact"]
    assert check(entry, read_beir(made / "scifact")) == (
        "scifact has 5 documents, the official set has 5,183",
        "scifact has 2 judged queries, the official set has 300",
        "scifact has 2 relevant pairs, the official set has 339",
        "scifact has 3 judged pairs, the official set has 339",
    )
    assert len(check(entry, read_beir(made / "scifact", "train"))) == 1
    unknown = dataclasses.replace(entry, documents=5, queries=2, relevant=None, judged=None)
    assert check(unknown, read_beir(made / "scifact")) == ()


# Archives


def archive(folder="scifact", more=(), **files):
    """Bytes of a zip of the small set, and of (name, content, mode) more."""
    held = io.BytesIO()
    qrels = {
        split: "query-id\tcorpus-id\tscore\n"
        + "".join(f"{q}\t{d}\t{grade}\n" for q, grades in judged.items() for d, grade in grades.items())
        for split, judged in QRELS.items()
    }
    contents = {
        "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in CORPUS),
        "queries.jsonl": "".join(json.dumps({"_id": q, "text": text}) + "\n" for q, text in QUERIES.items()),
        **{f"qrels/{split}.tsv": text for split, text in qrels.items()},
        "README.md": "not taken",
    }
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in {**contents, **files}.items():
            if content is not None:
                written.writestr(f"{folder}/{name}", content)
        for name, content, mode in more:
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = mode << 16
            written.writestr(member, content)
    return held.getvalue()


def served(hub, content, name="scifact"):
    """The registry's entry as if this were its archive, which the server now has."""
    entry = registry.entries()[name]
    hub.files[entry.zip] = content
    digest = hashlib.md5(content).hexdigest()
    return dataclasses.replace(entry, md5=digest, zip_bytes=len(content))


def refused(hub, tmp_path, content, match, **changes):
    entry = dataclasses.replace(served(hub, content), **changes)
    with pytest.raises(DataError, match=match):
        download.from_zip(entry, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_sets_files_are_taken_from_an_archive_and_nothing_else(hub, tmp_path, made):
    stray = [
        (name, '{"_id": "stray", "text": ""}', 0o644) for name in ("corpus.jsonl", "x/scifact/corpus.jsonl")
    ]
    download.from_zip(served(hub, archive(more=stray)), tmp_path / "cache")
    assert same(tmp_path / "cache" / "scifact", made / "scifact")
    assert same(tmp_path / "cache" / "scifact", made / "scifact", "train")
    files = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert files == {"corpus.jsonl", "queries.jsonl", "test.tsv", "train.tsv"}


def test_an_archive_with_another_checksum_is_refused(hub, tmp_path):
    content = archive()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    refused(hub, tmp_path, damaged, "has the MD5 .*, not " + "0" * 32, md5="0" * 32)
    refused(hub, tmp_path, content, "larger than the expected 10 bytes", zip_bytes=10)


def test_a_cut_or_missing_archive_leaves_nothing(hub, tmp_path):
    content = archive()
    hub.stops["scifact.zip"] = None
    refused(hub, tmp_path, content, "was cut off|has the MD5")
    entry = served(hub, content)
    hub.files.clear()
    with pytest.raises(DataError, match=r"archives/scifact\.zip: HTTPError: HTTP Error 404: Not Found"):
        download.from_zip(entry, tmp_path / "cache")
    hub.close()
    with pytest.raises(DataError, match="Connection refused"):
        download.from_zip(entry, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_address_that_is_no_web_address_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("STZOO_BEIR_URL", tmp_path.as_uri())
    (tmp_path / "scifact.zip").write_bytes(archive())
    with pytest.raises(DataError, match="is not a web address"):
        download.from_zip(registry.entries()["scifact"], tmp_path / "cache")


BOMB = "0" * (4 << 20)


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (("../evil.txt", "x", 0o644), "'../evil.txt', which is outside"),
        (("scifact/../../evil.txt", "x", 0o644), "which is outside"),
        (("/etc/evil.txt", "x", 0o644), "which is outside"),
        (("C:/evil.txt", "x", 0o644), "which is outside"),
        (("..\\evil.txt", "x", 0o644), "which is outside"),
        (
            ("scifact/qrels/dev.tsv", "/etc/passwd", stat.S_IFLNK | 0o777),
            r"the link 'scifact/qrels/dev\.tsv'",
        ),
        (("scifact/link", "/etc", stat.S_IFLNK | 0o777), "the link 'scifact/link'"),
        (("scifact/qrels/dev.tsv", BOMB, 0o644), r"dev\.tsv in scifact\.zip would grow more than 100 times"),
    ],
)
def test_an_archive_that_could_do_harm_is_refused(hub, tmp_path, member, match):
    refused(hub, tmp_path, archive(more=[member]), match)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_an_archive_that_would_fill_the_disk_is_refused(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 100)
    refused(hub, tmp_path, archive(), "scifact in scifact.zip would take more than")


def test_an_archive_of_something_else_is_refused(hub, tmp_path):
    refused(hub, tmp_path, archive("other"), "has no scifact/ with corpus.jsonl")
    refused(hub, tmp_path, archive(**{"queries.jsonl": None}), "has no scifact/ with")
    refused(
        hub, tmp_path, archive(**{"qrels/test.tsv": None, "qrels/train.tsv": None}), "has no scifact/ with"
    )
    refused(hub, tmp_path, b"no zip at all", "scifact.zip cannot be unpacked")


def test_a_damaged_file_in_an_archive_leaves_nothing(hub, tmp_path):
    content = bytearray(archive())
    content[60] ^= 0xFF  # in the compressed corpus
    refused(hub, tmp_path, bytes(content), "scifact.zip cannot be unpacked")


def test_one_download_brings_all_forums(hub, tmp_path, made):
    parts = [archive(f"cqadupstack/{name.split('-')[1]}") for name in registry.suites()["cqadupstack"]]
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as whole:
        for part in parts:
            with zipfile.ZipFile(io.BytesIO(part)) as one:
                for name in one.namelist():
                    whole.writestr(name, one.read(name))
    download.from_zip(served(hub, held.getvalue(), "cqadupstack-tex"), tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == list(
        registry.suites()["cqadupstack"]
    )
    assert same(tmp_path / "cache" / "cqadupstack-wordpress", made / "scifact")
    assert hub.log == [("GET", "/archives/cqadupstack.zip")]


def run(hub, tmp_path, code, *, wait=True):
    """Runs Python in a process of its own, in which this server is the hub."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "STZOO_CACHE": str(tmp_path / "cache"),
        "STZOO_BEIR_URL": f"{hub.url}/archives",
    }
    (tmp_path / "empty").mkdir(exist_ok=True)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = processes.Popen(
        command,
        cwd=tmp_path / "empty",
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if not wait:
        return process
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


def obtaining(entry, place):
    """The code of a process that gets the data set from the archive that this server has."""
    return f"""
        import dataclasses
        from pathlib import Path
        from stzoo.data import find_datasets, registry
        entry = dataclasses.replace(
            registry.entries()["scifact"], md5={entry.md5!r}, zip_bytes={entry.zip_bytes}
        )
        find_datasets.obtain(entry, Path({str(place)!r}), "test")
    """


def test_a_killed_download_leaves_no_set_and_the_next_one_clears_up(hub, tmp_path, made):
    entry, place = served(hub, archive()), tmp_path / "place"
    hub.stops["scifact.zip"] = threading.Event()
    (place / ".scifact.mine").mkdir(parents=True)
    abandoned_draft(place, "scifact")  # as a kill during the unpacking leaves it
    process = run(hub, tmp_path, obtaining(entry, place), wait=False)
    wait_for(lambda: any(place.glob(".scifact.zip.*/new")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (place / "scifact").exists()
    hub.stops.pop("scifact.zip").set()
    run(hub, tmp_path, obtaining(entry, place))
    assert same(place / "scifact", made / "scifact")
    assert {path.name for path in place.iterdir()} == {"scifact", ".scifact.mine"}


def test_a_set_is_downloaded_by_one_process_while_others_wait(hub, tmp_path, made):
    entry, place = served(hub, archive()), tmp_path / "place"
    hub.stops["scifact.zip"] = threading.Event()
    processes = [run(hub, tmp_path, obtaining(entry, place), wait=False) for _ in range(2)]
    wait_for(lambda: any(place.glob(".scifact.zip.*/new")), processes[0])
    hub.stops.pop("scifact.zip").set()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert hub.log.count(("GET", "/archives/scifact.zip")) == 1
    assert same(place / "scifact", made / "scifact")


# The Hub

CARD = """---
configs:
- config_name: default
  data_files:
  - {split: test, path: qrels/test.jsonl}
  - {split: train, path: qrels/train.jsonl}
- config_name: corpus
  data_files: [{split: corpus, path: corpus.jsonl}]
- config_name: queries
  data_files: [{split: queries, path: queries.jsonl}]
---
"""
NANO_CARD = """---
configs:
- {config_name: corpus, data_files: [{split: train, path: corpus/train-*}]}
- {config_name: qrels, data_files: [{split: train, path: qrels/train-*}]}
- {config_name: queries, data_files: [{split: train, path: queries/train-*}]}
---
"""


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), held)
    return held.getvalue()


def pairs(split, score):
    return [
        {"query-id": query, "corpus-id": document, "score": score(grade)}
        for query, grades in QRELS[split].items()
        for document, grade in grades.items()
    ]


def old_layout(**changes):
    """As mteb/scifact is laid out."""
    return {
        "README.md": CARD.encode(),
        "corpus.jsonl": jsonl(CORPUS),
        "queries.jsonl": jsonl({"_id": query, "text": text} for query, text in QUERIES.items()),
        **{f"qrels/{split}.jsonl": jsonl(pairs(split, float)) for split in QRELS},
        "loader.py": b"raise SystemExit('code of a repository was run')",
        **changes,
    }


def new_layout():
    """As mteb/NanoSciFactRetrieval is laid out: every part has the split that is scored, and ids are "id"."""
    judged = {query: text for query, text in QUERIES.items() if query in QRELS["test"]}
    return {
        "README.md": NANO_CARD.encode(),
        "corpus/train-00000-of-00001.parquet": parquet(
            [{"id": row.pop("_id"), **row} for row in copies(CORPUS)]
        ),
        "queries/train-00000-of-00001.parquet": parquet(
            [{"id": q, "text": text} for q, text in judged.items()]
        ),
        "qrels/train-00000-of-00001.parquet": parquet(pairs("test", int)),
    }


def copies(rows):
    return [dict(row) for row in rows]


CHILD = """
    import dataclasses, json
    from pathlib import Path
    from stzoo.data import find_datasets, registry
    from stzoo.errors import DataError

    def find(name, **changes):
        known = registry.find
        registry.find = lambda _: dataclasses.replace(known(name), **changes)
        try:
            print(json.dumps(["found", str(find_datasets.find(name).folder)]))
        except DataError as error:
            print(json.dumps(["error", str(error)]))
        finally:
            registry.find = known

    find("scifact")
    find("scifact")
    find("nano-scifact")
    find("nfcorpus")
    find("fiqa", md5={md5!r}, zip_bytes=None)
    find("arguana", revision="0" * 40)
    Path("mteb/nq").mkdir(parents=True)
    find("nq")
"""


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """What seven searches found, the folder they ran in and the requests they made."""
    tmp_path, hub = tmp_path_factory.mktemp("hub"), HubServer()
    zipped = archive("fiqa")
    hub.files["fiqa.zip"] = zipped
    hub.files["nfcorpus.zip"] = archive("nfcorpus")
    layouts = {
        "scifact": old_layout(),
        "nano-scifact": new_layout(),
        "nfcorpus": old_layout(**{"corpus.jsonl": jsonl([*CORPUS, {"title": "no id", "text": "x"}])}),
        "arguana": old_layout(),
        "nq": old_layout(),
    }
    for name, files in layouts.items():
        entry = registry.entries()[name]
        hub.repos[entry.mteb] = Repo({entry.revision: files})
    out = run(hub, tmp_path, CHILD.format(md5=hashlib.md5(zipped).hexdigest()))
    hub.close()
    names = ["scifact", "again", "nano", "nfcorpus", "fiqa", "arguana", "nq"]
    return dict(zip(names, map(json.loads, out.splitlines()), strict=True)), tmp_path, hub.log


def test_a_set_is_streamed_from_the_hub_with_all_its_splits(fetched, made):
    results, tmp_path, log = fetched
    folder = tmp_path / "cache" / "datasets" / "scifact"
    assert results["scifact"] == ["found", str(folder)]
    assert same(folder, made / "scifact")
    assert same(folder, made / "scifact", "train")
    revision = registry.entries()["scifact"].revision
    asked = {path for _, path in log if "mteb/scifact" in path}
    assert asked
    assert all(revision in path for path in asked)
    assert not any(path.endswith("loader.py") for path in asked)


def test_a_set_is_fetched_once(fetched):
    results, _, log = fetched
    assert results["again"] == results["scifact"]
    assert (
        log.count(
            ("GET", f"/datasets/mteb/scifact/resolve/{registry.entries()['scifact'].revision}/README.md")
        )
        == 1
    )


def test_the_layout_of_newer_copies_is_read_as_well(fetched, made):
    results, tmp_path, _ = fetched
    folder = tmp_path / "cache" / "datasets" / "nano-scifact"
    assert results["nano"] == ["found", str(folder)]
    nano, whole = read_beir(folder, "train"), read_beir(made / "scifact")
    assert nano.fingerprint == whole.fingerprint


def test_rows_that_do_not_hold_leave_nothing_and_every_source_is_told(fetched):
    results, tmp_path, _ = fetched
    kind, message = results["nfcorpus"]
    assert kind == "error"
    assert "(mteb/nfcorpus at ec0fa4fe99da2ff19ca1214b7966684033a58814): ValueError: a row without" in message
    assert "nfcorpus.zip has" in message
    assert "run `stzoo fetch nfcorpus`" in message
    kept = {path.name for path in (tmp_path / "cache" / "datasets").iterdir()}
    assert kept == {"scifact", "nano-scifact", "fiqa"}


def test_what_the_hub_does_not_have_comes_from_the_archive(fetched, made):
    results, tmp_path, _ = fetched
    folder = tmp_path / "cache" / "datasets" / "fiqa"
    assert results["fiqa"] == ["found", str(folder)]
    assert same(folder, made / "scifact")


def test_another_revision_than_the_pinned_one_is_not_taken(fetched):
    kind, message = fetched[0]["arguana"]
    assert kind == "error"
    assert f"the Hub (mteb/arguana at {'0' * 40}): " in message


def test_a_folder_that_looks_like_the_hubs_copy_is_not_taken_for_it(fetched):
    kind, message = fetched[0]["nq"]
    assert kind == "error"
    assert "the current folder has mteb/nq" in message


FETCH = """
    import dataclasses, sys
    from stzoo.cli import main
    from stzoo.data import registry
    known = registry.find
    registry.find = lambda name: dataclasses.replace(known(name), md5={md5!r}, zip_bytes=None)
    for words in {commands!r}:
        try:
            main(words)
        except SystemExit as left:
            assert not left.code
"""


def test_fetch_downloads_a_set_once_and_says_what_is_in_it(hub, tmp_path, made):
    zipped = archive("fiqa")
    hub.files["fiqa.zip"] = zipped
    commands = [
        ["fetch", "FiQA2018"],
        ["fetch", "fiqa", "--json"],
        ["fetch", "fiqa", "--output", "data"],
        ["bench", "--data", "fiqa", "--output", "results", "--json"],
    ]
    out = run(hub, tmp_path, FETCH.format(md5=hashlib.md5(zipped).hexdigest(), commands=commands))
    folder = tmp_path / "cache" / "datasets" / "fiqa"
    lines = out.splitlines()
    assert lines[:2] == [str(folder), "5 passages, 3 queries; licence: not known"]
    assert [line.split() for line in lines[5:7]] == [["test", "2", "3"], ["train", "1", "1"]]
    first, end = json.JSONDecoder().raw_decode(out, out.index("{"))
    assert first == {
        "folder": str(folder),
        "passages": 5,
        "queries": 3,
        "splits": {
            "test": {"judged queries": 2, "judgements": 3},
            "train": {"judged queries": 1, "judgements": 1},
        },
        "licence": None,
    }
    assert same(folder, made / "scifact")
    assert same(tmp_path / "empty" / "data" / "fiqa", made / "scifact")
    assert hub.log.count(("GET", "/archives/fiqa.zip")) == 2
    scored = json.loads(out[out.index("{", end) :])
    assert [row["dataset"] for row in scored["results"]] == ["fiqa"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scifcat", "no data set 'scifcat'; did you mean 'scifact'? `stzoo list datasets` shows all."),
        ("cqadupstack", "cqadupstack is a suite of data sets; fetch them one by one: cqadupstack-android, "),
        ("scifact", "datasets, and cannot be downloaded: HF_HUB_OFFLINE forbids the network."),
    ],
)
def test_what_cannot_be_fetched_is_explained(name, said, tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError) as error:
        stzoo.fetch(name)
    assert said in str(error.value)


def test_without_a_network_a_known_name_fails_at_once(tmp_path):
    class Nowhere:
        url = "http://hub.invalid"

    code = """
        import sys
        from stzoo.data.find_datasets import locate
        from stzoo.errors import DataError
        try:
            locate("scifact")
        except DataError as error:
            print(error)
        assert "datasets" not in sys.modules
    """
    said = run(Nowhere, tmp_path, code)
    assert "cannot be downloaded: hub.invalid cannot be reached; hub.invalid cannot be reached. On" in said


# Averages


def result(dataset, value, split=None, model="m", notes=(), measure="nDCG@10"):
    entry = registry.find(dataset)
    return Result(
        model=model,
        revision="r",
        dataset=dataset,
        split=split or (entry.split if entry else "test"),
        documents=1,
        queries=1,
        judgements=1,
        seconds=0.0,
        scores=Scores({measure: value}, {measure: {"q": value}}),
        path=None,
        reused=False,
        details={"notes": list(notes)},
        corpus="",
    )


def of(suite, **more):
    """Results on all sets of a suite: 0, 0.001, 0.002 …"""
    return [result(name, place / 1000, **more) for place, name in enumerate(registry.expand([suite]))]


def test_a_suite_is_averaged_under_its_name_and_its_sets():
    assert averages(of("beir-13")) == [
        Average("m", "r", "beir-13", registry.suites()["beir-13"], "nDCG@10", pytest.approx(0.006))
    ]


def test_a_suite_with_a_gap_has_no_average():
    for gap in range(13):
        assert averages([each for place, each in enumerate(of("beir-13")) if place != gap]) == []
    wrong_split = [*of("beir-13")[1:], result("trec-covid", 0.1, split="train")]
    assert averages(wrong_split) == []
    assert averages(of("beir-13"), "R@100") == []
    assert averages([result("mine", 0.5), result("cranfield", 0.5)]) == []


def test_the_forums_of_cqadupstack_count_as_one_set():
    scores = {each.dataset: each.scores.mean["nDCG@10"] for each in of("beir-14")}
    means = {average.suite: average for average in averages(of("beir-14"))}
    assert set(means) == {"cqadupstack", "beir-13", "beir-14"}
    forums = fmean(scores[name] for name in registry.suites()["cqadupstack"])
    assert means["cqadupstack"].value == pytest.approx(forums)
    others = [scores[name] for name in registry.suites()["beir-13"]]
    assert means["beir-14"].value == pytest.approx(fmean([*others, forums]))


def test_a_model_is_averaged_over_its_own_results_alone():
    mixed = [*of("beir-13", model="a")[:6], *of("beir-13", model="b")[6:], *of("nano-beir", model="b")]
    assert [(average.model, average.suite) for average in averages(mixed)] == [("b", "nano-beir")]


def test_a_set_that_is_there_twice_counts_once_or_not_at_all():
    twice = [*of("beir-13"), result("SciFact", 0.012)]
    assert [average.value for average in averages(twice)] == [pytest.approx(0.006)]
    assert averages([*of("beir-13"), result("SciFact", 0.9)]) == []


def test_an_average_carries_the_notes_of_its_results():
    noted = [*of("beir-13")[:-1], result("scifact", 0.5, notes=["scifact has 3 documents"])]
    assert averages(noted)[0].notes == ("scifact has 3 documents",)


@given(
    suites=st.sets(st.sampled_from([*registry.suites()])),
    more=st.sets(st.sampled_from([*registry.entries()])),
    without=st.sets(st.sampled_from([*registry.entries()]), max_size=3),
    random=st.randoms(use_true_random=False),
)
def test_the_suites_that_are_averaged_are_those_that_are_whole(suites, more, without, random):
    there = sorted((set(registry.expand(sorted(suites))) | more) - without)
    scores = {name: random.random() for name in there}
    results = [result(name, value) for name, value in scores.items()]
    random.shuffle(results)

    def mean(name):
        members = registry.suites().get(name)
        return fmean(map(mean, members)) if members else scores[name]

    whole = {suite for suite in registry.suites() if set(registry.expand([suite])) <= set(there)}
    found = averages(results)
    assert {average.suite: average.value for average in found} == {
        suite: pytest.approx(mean(suite)) for suite in whole
    }
    assert len(found) == len(whole)
