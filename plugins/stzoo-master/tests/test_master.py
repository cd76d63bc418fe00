"""MASTER as an author tests it: what each view holds, which losses train, what the corpus decides."""

import itertools
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stzoo_master.master import NAMES, TASKS
from stzoo_master.words import write_table

import stzoo
from stzoo.data.corpus import load_corpus
from stzoo.plugins import manager
from stzoo.pretraining.pretrain import load_base, load_parts, make_objective
from stzoo.pretraining.token_cache import load_tokens
from stzoo.testing import check_objective, sentences, tiny_backbone, tiny_masked_lm
from stzoo.training.batches import split_views
from stzoo.training.pretrain_settings import PretrainSettings

ENCODERS = {task.name: task.encoder for task in TASKS}
BACKBONE = tiny_backbone()


def master(**options):
    torch.manual_seed(0)
    return manager.build("objective", "master", BACKBONE, **options).eval()


def row(number=0, *, queries=3, neighbours=2):
    return {
        "text": sentences(1, number)[0],
        "queries": sentences(queries, 100 + number),
        "continuation": sentences(1, 200 + number)[0],
        "neighbours": sentences(neighbours, 300 + number),
    }


def views_of(objective, rows):
    return split_views(objective.collate(rows))


def drawn(objective, rows, seed=0):
    torch.manual_seed(seed)
    return objective.make_views(views_of(objective, rows))


def restored(view, place=0):
    """The ids of a row's text as they were before they were corrupted, without padding."""
    ids = torch.where(view.labels == -100, view.ids, view.labels)
    return ids[place][view.attention[place]].tolist()


def ids_of(text, most=10_000):
    return BACKBONE.tokenizer(text, truncation=True, max_length=most)["input_ids"]


@pytest.mark.parametrize("tasks", [["passage"], ["neighbour", "complement"]])
def test_some_of_the_tasks_are_a_sound_objective_too(tasks):
    # test_contract.py trains all four on random words
    check_objective(manager.find("objective", "master"), options={"tasks": tasks, "layers": 1}, steps=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_subset_of_the_tasks_trains(count):
    for tasks in itertools.combinations(NAMES, count):
        objective = master(tasks=list(tasks), layers=1)
        losses = objective(views_of(objective, [row(n) for n in range(3)]))
        assert set(losses) == {*tasks, *(ENCODERS[task] for task in tasks)} == set(objective.weights)
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in objective.heads.parameters())


def test_a_loss_of_weight_0_is_not_computed():
    objective = master()
    objective.set_weights({"query": 0, "encoder-neighbour": 0, "neighbour": 0})
    passes = []
    encode = objective.encode
    objective.encode = lambda ids, attention: passes.append(ids) or encode(ids, attention)
    losses = objective(views_of(objective, [row()]))
    assert set(losses) == set(objective.weights) - {"query", "encoder-neighbour", "neighbour"}
    assert len(passes) == 2


def test_cached_tokens_of_all_views_are_those_of_the_text(tmp_path):
    rows = [row(n, queries=n % 3, neighbours=n % 4) for n in range(12)]
    rows[4]["queries"] = sentences(40, 4)  # more tokens than any other view may have
    del rows[5]["continuation"]
    lines = "".join(json.dumps({key: value for key, value in one.items() if value}) + "\n" for one in rows)
    (tmp_path / "corpus.jsonl").write_text(lines)
    objective = master()
    corpus = load_corpus(tmp_path / "corpus.jsonl", cache=tmp_path, columns=objective.columns)
    objective.configure_for(corpus)
    tokens = load_tokens(objective, corpus, cache=tmp_path)
    assert tokens.views == ["passage", "query", "continuation", "related"]
    places = [4, 0, 5, 3]
    cached = objective.pad(tokens.__getitems__(places))
    batch = objective.collate([corpus.rows[place] for place in places])
    assert cached.keys() == batch.keys()
    assert all(torch.equal(cached[name], batch[name]) for name in batch)
    assert batch["related_input_ids"].shape[:2] == (4, 3)
    assert batch["query_input_ids"].shape[1] == 4 * BACKBONE.max_tokens


def test_unknown_tasks_are_told_with_the_nearest_one():
    with pytest.raises(stzoo.UnknownNameError, match="did you mean 'neighbour'"):
        master(tasks=["neighbor"])


def test_tasks_that_are_no_list_are_told():
    with pytest.raises(stzoo.RecipeError, match="the option tasks is 'query': input should be a valid list"):
        master(tasks="query")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_what_the_complement_hides_is_just_what_the_encoder_saw(numbers, seed):
    objective = master()
    rows = [row(n) for n in numbers]
    view = drawn(objective, rows, seed)
    seen, rebuilt = (view[name].labels != -100 for name in ("encoder-complement", "complement"))
    ordinary = objective.collate(rows)["passage_words"] >= 0
    assert torch.equal(seen ^ rebuilt, ordinary)
    assert not (seen & rebuilt).any()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_two_halves_are_the_passage_and_no_wider_than_it_needs(numbers, seed):
    objective = master(neighbours=False)
    rows = [row(n) for n in numbers]
    view = drawn(objective, rows, seed)
    first, second = view["encoder-neighbour"], view["neighbour"]
    longest = max(len(ids_of(r["text"])) for r in rows) - 2
    assert first.ids.shape[1] == longest // 2 + 2
    assert second.ids.shape[1] == longest - longest // 2 + 2
    for place, r in enumerate(rows):
        cls, *body, sep = ids_of(r["text"])
        half = len(body) // 2
        assert restored(first, place) == [cls, *body[:half], sep]
        assert restored(second, place) == [cls, *body[half:], sep]


def test_a_neighbour_of_the_corpus_is_rebuilt_from_the_whole_passage():
    objective = master(neighbours=True)
    rows = [row(1, neighbours=3), row(2, neighbours=1), row(3, neighbours=0)]
    seen = set()
    for seed in range(40):
        view = drawn(objective, rows, seed)
        assert restored(view["encoder-neighbour"], 0) == ids_of(rows[0]["text"])
        seen.add(tuple(restored(view["neighbour"], 0)))
        assert restored(view["neighbour"], 1) == ids_of(rows[1]["neighbours"][0])
        cls, *body, sep = ids_of(rows[2]["text"])  # it brings none, and so is halved
        assert restored(view["encoder-neighbour"], 2) == [cls, *body[: len(body) // 2], sep]
        assert restored(view["neighbour"], 2) == [cls, *body[len(body) // 2 :], sep]
    assert seen == {tuple(ids_of(text)) for text in rows[0]["neighbours"]}


def test_queries_are_joined_and_of_long_ones_a_window_is_read():
    objective = master()
    rows = [row(4, queries=2), row(5, queries=20), row(6, queries=0)]
    objective.backbone.max_tokens, before = 64, objective.backbone.max_tokens
    try:
        joined = [ids_of(" [SEP] ".join(r["queries"]), 4 * 64) for r in rows]
        starts = set()
        for seed in range(60):
            view = drawn(objective, rows, seed)["query"]
            assert view.ids.shape[1] == 64
            assert restored(view, 2) == joined[2]
            window = restored(view, 1)[1:-1]
            assert len(window) == 62
            at = [n for n in range(1, 4 * 64 - 62) if joined[1][n : n + 62] == window]
            assert at
            starts.update(at)
        assert min(starts) < 30
        assert max(starts) > 4 * 64 - 62 - 30
    finally:
        objective.backbone.max_tokens = before


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_joined_queries_are_the_tokens_of_each_and_separators(family):
    backbone = tiny_backbone(family)
    tokenizer = backbone.tokenizer
    queries = ["what is a wing", "a wing is what"]
    joined = manager.build("objective", "master", backbone).collate([{"text": "a wing", "queries": queries}])
    ids = joined["query_input_ids"][0].tolist()
    place = ids.index(tokenizer.sep_token_id)
    assert ids[: place + 1] == tokenizer(queries[0])["input_ids"]
    assert tokenizer.decode(ids[place + 1 : -1]).strip() == queries[1]


def test_a_passage_without_a_continuation_continues_itself():
    objective = master()
    view = drawn(objective, [row(1) | {"continuation": None}, row(2)])["continuation"]
    assert restored(view, 0) == ids_of(row(1)["text"])
    assert restored(view, 1) == ids_of(row(2)["continuation"])


def test_a_batch_in_which_a_task_has_nothing_to_find_trains_the_others():
    objective = master(neighbours=True)
    losses = objective(views_of(objective, [row(n, queries=0, neighbours=0) for n in range(2)]))
    assert losses["query"] == 0
    assert all(loss > 0 for name, loss in losses.items() if name != "query")
    sum(losses.values()).backward()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": "two"}, "the option layers is 'two'"),
        ({"neighbours": "maybe"}, "the option neighbours is 'maybe'"),
        ({"encoder_rate": "high"}, "the option encoder_rate is 'high'"),
        ({"encoder_rate": 2}, "encoder_rate is 2"),
        ({"complement_rate": 0}, "complement_rate is 0"),
        ({"layers": 0}, "at least 1 layer"),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_read(options, told):
    with pytest.raises(stzoo.RecipeError, match=told):
        master(**options)


def test_budgets_leave_the_two_special_tokens_out():
    objective = master()
    rows = [row(n) for n in range(6)]
    view = drawn(objective, rows)
    tokens = view["encoder"].attention.sum(1) - 2
    for name, rate in (("encoder", 0.3), ("encoder-complement", 0.5)):
        hidden = (view[name].labels != -100).sum(1)
        budget = torch.tensor([max(1, round(int(n) * rate)) for n in tokens])
        assert (hidden <= budget).all()
        assert (hidden >= budget - 3).all()  # no word that is left is so long


def test_each_decoder_hangs_on_its_bottleneck():
    objective = master()
    view = drawn(objective, [row(n) for n in range(3)])
    for name in NAMES:
        h = torch.randn(3, BACKBONE.width, requires_grad=True)
        rebuilt = objective.rebuild(name, h, view[name])
        rebuilt[view[name].labels != -100].square().sum().backward()
        assert (h.grad.abs().sum(1) > 0).all(), name


# what the corpus decides


@pytest.fixture
def corpus(tmp_path):
    def make(*columns, table=None):
        folder = tmp_path / f"corpus-{'-'.join(columns)}"
        folder.mkdir(exist_ok=True)
        rows = [
            {"id": str(n), **{c: v for c, v in row(n).items() if c in ("text", *columns)}} for n in range(8)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        if table:
            (folder / "frequencies").mkdir()
            write_table(folder / "frequencies/words.parquet", *table)
        return load_corpus(folder, columns=master().columns, cache=tmp_path / "cache")

    return make


def test_tasks_without_their_columns_are_left_out_and_told(corpus):
    objective = master()
    notes = objective.configure_for(corpus("continuation"))
    assert set(objective.heads) == {"passage", "continuation", "neighbour", "complement"}
    assert "No task query: the corpus has no column queries." in notes
    assert "Neighbours are the halves of each passage." in notes
    assert set(objective(views_of(objective, [row()]))) == set(objective.weights)


def test_a_corpus_that_leaves_no_loss_of_any_weight_is_told(corpus):
    objective = master()
    objective.set_weights({name: 0 for name in objective.weights if name != "query"})
    with pytest.raises(stzoo.RecipeError, match="weight 0: encoder"):
        objective.configure_for(corpus())


def test_neighbours_of_the_corpus_are_taken_unless_halves_are_asked_for(corpus):
    brought = corpus("neighbours")
    for asked, found in ((None, True), (False, False), (True, True)):
        objective = master(neighbours=asked)
        objective.configure_for(brought)
        assert objective.neighbours is found


@pytest.mark.parametrize(
    ("options", "told"),
    [({"tasks": ["passage", "query"]}, "task query: queries"), ({"neighbours": True}, "neighbours=true")],
)
def test_a_task_asked_for_needs_its_column(corpus, options, told):
    with pytest.raises(stzoo.DataError, match=told):
        master(**options).configure_for(corpus())


def test_a_table_beside_the_corpus_tells_its_keywords(corpus):
    text = row(0)["text"]
    words = list(dict.fromkeys(text.lower().split()))
    rare = words[0]
    counts = {word: 1 if word == rare else 10**6 for word in words}
    objective = master()
    notes = objective.configure_for(corpus(table=(counts, BACKBONE.tokenizer)))
    assert any("frequencies/words.parquet" in note for note in notes)
    numbers = objective.collate([{"text": text}])["passage_words"][0]
    first = numbers == numbers[1]
    hidden = [drawn(objective, [{"text": text}], seed)["passage"].labels[0] != -100 for seed in range(30)]
    assert all(h[first].all() for h in hidden)


def test_the_table_is_found_in_a_folder_under_home(corpus, tmp_path, monkeypatch):
    corpus(table=({"the": 3}, BACKBONE.tokenizer))
    monkeypatch.setenv("HOME", str(tmp_path))
    notes = master().configure_for(load_corpus("~/corpus-", cache=tmp_path / "cache"))
    assert any("frequencies/words.parquet" in note for note in notes)


def test_without_a_table_the_words_of_the_corpus_are_counted(corpus):
    objective = master()
    notes = objective.configure_for(corpus())
    assert any("counted in the corpus" in note for note in notes)
    batch = objective.collate([row()])
    weights = objective.keywords(batch["passage_input_ids"], batch["passage_words"])
    assert weights.min() < 0.5


def test_a_table_of_another_tokenizer_is_refused(corpus):
    other = tiny_backbone("roberta").tokenizer
    with pytest.raises(stzoo.DataError, match="another tokenizer"):
        master().configure_for(corpus(table=({"the": 3}, other)))


def test_a_run_resumes_to_the_same_bits_and_goes_on_later(tmp_path, monkeypatch):
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)  # takes seconds
    base = tiny_masked_lm("bert", tmp_path / "base")
    lines = [json.dumps({"id": str(n), **row(n)}) + "\n" for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    given = dict(
        base=str(base),
        corpus=[str(tmp_path / "rows.jsonl")],
        objective="master",
        options={"layers": 1},
        batch_size=4,
        max_steps=4,
        save_steps=2,
        keep_checkpoints=2,
        log_steps=2,
    )
    whole = stzoo.pretrain(output=tmp_path / "whole", **given)
    killed = tmp_path / "killed"  # what a kill between the two checkpoints leaves
    shutil.copytree(whole / "checkpoints/checkpoint-2", killed / "checkpoints/checkpoint-2")
    facts = json.loads((whole / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    stzoo.pretrain(output=killed, resume=True, **given)
    for name in ("model.safetensors", "pretraining/objective.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert facts["notes"][0] == "Neighbours are those in the corpus."
    assert {"encoder-complement", "continuation", "query_accuracy"} <= facts["log"][0].keys()

    wanted = PretrainSettings.read(None, given)
    later = load_base(str(whole))
    assert not load_parts(make_objective(later, wanted), later, wanted)
