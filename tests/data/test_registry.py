import re
from importlib.metadata import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stzoo.data import registry
from stzoo.data.beir import read_beir

ENTRIES, SUITES = registry.entries(), registry.suites()


def test_no_name_means_two_sets_or_a_set_and_a_suite():
    keys = [key for entry in ENTRIES.values() for key in {registry._key(name) for name in entry.names}]
    keys += map(registry._key, SUITES)
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_set_is_either_pinned_or_says_how_to_get_it(entry):
    assert entry.documents
    assert entry.queries
    assert bool(entry.mteb) is bool(entry.task) is not bool(entry.get)
    if entry.mteb:
        assert re.fullmatch("[0-9a-f]{40}", entry.revision)
    if entry.zip:
        assert re.fullmatch("[0-9a-f]{32}", entry.md5)
        assert entry.zip_bytes > 0
        assert entry.folder
    if entry.relevant and entry.judged:
        assert entry.queries <= entry.relevant <= entry.judged


def test_the_suites_hold_as_many_sets_as_their_names_say():
    sizes = {"cqadupstack": 12, "nano-beir": 13, "decontaminated-beir": 8}
    assert {name: len(sets) for name, sets in SUITES.items()} == sizes | {
        f"beir-{size}": size for size in (13, 14, 15, 18)
    }
    assert set(SUITES["beir-14"]) == {*SUITES["beir-13"], "cqadupstack"}
    assert set(SUITES["beir-15"]) == {*SUITES["beir-14"], "msmarco"}
    gated = {name for name, entry in ENTRIES.items() if entry.get}
    assert set(SUITES["beir-18"]) == {*SUITES["beir-14"], *gated}
    assert len(gated) == 4
    assert {member for sets in SUITES.values() for member in sets} <= {*ENTRIES, *SUITES}


def test_counts_and_checksums_are_those_of_beirs_readme():
    rows = re.findall(
        r"^\|[^|]+\|[^|]+\| ``([\w-]+)``\s*\|(.*)$", metadata("beir").get_payload(), re.MULTILINE
    )
    assert len(rows) == 19
    for name, rest in rows:
        _, _, queries, documents, relevant, link, checksum, *_ = (cell.strip() for cell in rest.split("|"))
        sets = [ENTRIES[each] for each in registry.expand([name])]
        assert sum(entry.queries for entry in sets) == int(queries.replace(",", "")), name
        unit = {"M": 1e6, "K": 1e3}[documents[-1]]
        # SCIDOCS' 25 657 and DBPedia's 4 635 922 are cut there, not rounded
        assert sum(entry.documents for entry in sets) == pytest.approx(float(documents[:-1]) * unit, rel=0.04)
        if link == "No":
            assert sets[0].get
            continue
        assert {entry.md5 for entry in sets} == {checksum.strip("`")}
        assert link.endswith(f"/{sets[0].zip})")
        pairs = sum(entry.relevant for entry in sets) / sum(entry.queries for entry in sets)
        if name != "cqadupstack":  # 1.8 by ir_datasets' and mteb's counts, which agree; 1.4 in the README
            assert pairs == pytest.approx(float(relevant), abs=0.06), name


def test_ids_revisions_splits_and_counts_are_those_of_mteb():
    mteb = pytest.importorskip("mteb")
    for entry in ENTRIES.values():
        if entry.get:
            continue
        task = mteb.get_task(entry.task).metadata
        assert task.dataset == {"path": entry.mteb, "revision": entry.revision}
        assert task.eval_splits == [entry.split]
        stated = task.descriptive_stats[entry.split]
        for key, count in (("num_documents", entry.documents), ("num_queries", entry.queries)):
            assert stated.get(key, count) == count, entry.name  # of Touché v1 it states neither
        pairs = stated["relevant_docs_statistics"]["num_relevant_docs"]  # grades other than 0
        assert entry.relevant in (None, pairs - 2 if entry.name == "trec-covid" else pairs), entry.name


def test_real_scifact_has_the_registrys_counts(data):
    judged, entry = read_beir(data / "beir" / "scifact"), ENTRIES["scifact"]
    assert (len(judged.corpus_ids), len(judged.queries), judged.judgements) == (5183, 300, 339)
    assert (entry.documents, entry.queries, entry.judged) == (5183, 300, 339)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("scifact", "scifact"),
        ("SciFact", "scifact"),
        ("mteb/scifact", "scifact"),
        ("BeIR/scifact", "scifact"),
        ("Quora", "quora"),
        ("QuoraRetrieval", "quora"),
        ("dbpedia", "dbpedia-entity"),
        ("Touche2020", "webis-touche2020"),
        ("touche2020-v3", "touche2020-v3"),
        ("Signal-1M", "signal1m"),
        ("NanoSciFact", "nano-scifact"),
        ("cqadupstack/android", "cqadupstack-android"),
        ("lightonai/quora-decontaminated", "quora-decontaminated"),
        ("mine/scifact", None),
        ("beir-13", None),
        ("", None),
    ],
)
def test_a_set_is_found_by_any_of_its_names(name, found):
    entry = registry.find(name)
    assert (entry and entry.name) == found


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        *((name, True) for name in ("arguana", "ArguAna", "quora", "QuoraRetrieval", "NanoArguAna")),
        *(
            (name, True)
            for name in ("nano_quora_retrieval", "arguana-decontaminated", "Quora Decontaminated")
        ),
        *((name, False) for name in ("scifact", "cranfield", "quora-like", "set-qa", "fiqa", "msmarco")),
    ],
)
def test_only_arguana_and_quora_share_ids(name, shares):
    assert registry.shares_ids(name) is shares


def test_five_judged_documents_of_arguana_are_nowhere():
    assert [registry.missing(name) for name in ("ArguAna", "scifact", "mine")] == [5, 0, 0]


def test_a_suite_is_replaced_by_its_sets():
    expanded = registry.expand(["mine", "BEIR-14", "scifact", "minikilt/qa-squad"])
    assert expanded[0] == "mine"
    assert expanded[-1] == "minikilt/qa-squad"
    assert len(expanded) == 2 + 13 + 12
    assert registry.expand(["CQADupStack"]) == list(SUITES["cqadupstack"])
    assert registry.expand(["SciFact", "mine"]) == ["SciFact", "mine"]


@given(st.lists(st.sampled_from([*ENTRIES, *SUITES, "mine", "a/b"])))
def test_what_is_expanded_holds_no_suite_and_nothing_twice(names):
    expanded = registry.expand(names)
    assert registry.expand(expanded) == expanded
    assert len(set(expanded)) == len(expanded)
    assert not set(expanded) & set(SUITES)
    assert set(expanded) == {each for name in names for each in registry.expand([name])}
