import html
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from support import processes
from support.helpers import UNVERIFIED, cli
from support.models import sentence_transformer

import stzoo
from stzoo import DataError, ModelError, OutputError
from stzoo.adaptation.hold_out import DEV, TEST, TRAIN, Question, documents_of, split_questions
from stzoo.adaptation.lessons import Lessons, make_lessons, rate_by_teacher
from stzoo.adaptation.query_map import (
    LEAST_WEIGHT,
    adapted_model,
    apply,
    divergence,
    learn_query_map,
    part_way,
    rarity,
    weighs_tokens,
)
from stzoo.adaptation.stages.train import MOST_GENERAL_LOSS, SHARES, choose_share
from stzoo.adaptation.vectors import ndcg, unit
from stzoo.data.beir import read_beir
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.encode import encode
from stzoo.retrieval.bm25 import Lexical
from stzoo.testing import sentences, tiny_cross_encoder


@pytest.fixture(scope="module")
def tiny(base):
    return sentence_transformer(base)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    return tiny_cross_encoder(tmp_path_factory.mktemp("teachers") / "judge")


def random_unit(shape, seed):
    return unit(np.random.default_rng(seed).normal(size=shape))


# -- the model


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_only_queries_are_mapped(base, tmp_path, weighted, normalised):
    model = sentence_transformer(base, unit=normalised, similarity_fn_name="cosine")
    texts = sentences(6)
    size = model.get_embedding_dimension()
    query_map = np.eye(size, dtype=np.float32) + 0.1 * random_unit((size, size), 1)
    weights = rarity(model.tokenizer, texts, len(texts)) if weighted else None
    adapted = adapted_model(model, query_map=query_map, weights=weights)
    assert np.array_equal(adapted.encode_document(texts), model.encode_document(texts))
    assert np.array_equal(adapted.encode(texts), model.encode(texts))
    tokens = model.encode(texts, output_value="token_embeddings")
    for text, states, vector in zip(texts, tokens, adapted.encode_query(texts), strict=True):
        ids = model.tokenizer(text)["input_ids"]
        share = np.ones(len(ids)) if weights is None else weights[ids]
        mean = (states.numpy() * share[:, None]).sum(0) / share.sum()
        assert np.allclose(unit((query_map @ mean)[None]), unit(vector[None]), atol=1e-5)
    # the check compares it with plain sentence-transformers, in a process that takes some seconds
    stzoo.export(adapted, tmp_path / "model", verify=weighted and normalised)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.allclose(loaded.encode_query(texts), adapted.encode_query(texts), atol=1e-6)
    assert np.allclose(encode(loaded, texts, role="query"), loaded.encode_query(texts), atol=1e-5)


def test_weights_survive_a_vocabulary_with_upper_case(tmp_path):
    """sentence-transformers looks up a missing token by its lower case."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Wing", "wing", "lift", "Drag"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).save_pretrained(tmp_path / "bert")
    fast.save_pretrained(tmp_path / "bert")
    model = sentence_transformer(tmp_path / "bert")
    weights = rarity(model.tokenizer, ["wing lift", "wing lift lift", "lift"], 3)
    assert weights[words.index("Wing")] == weights.max() > weights[words.index("wing")]
    module = next(m for m in adapted_model(model, weights=weights).modules() if hasattr(m, "emb_layer"))
    assert np.array_equal(module.emb_layer.weight[:, 0].detach().numpy(), weights)


def test_which_models_weight_tokens(base, tiny):
    assert weighs_tokens(tiny)
    assert not weighs_tokens(sentence_transformer(base, "cls"))
    assert not weighs_tokens(sentence_transformer(base, ("cls", "mean")))
    assert not weighs_tokens(sentence_transformer(base, prompts={"query": "query: ", "document": ""}))


def test_models_that_cannot_be_adapted_are_refused(base, tiny):
    routed = SentenceTransformer(modules=[Router({"query": list(tiny), "document": list(tiny)})])
    with pytest.raises(ModelError, match="has a Router"):
        adapted_model(routed, query_map=np.eye(3))
    far = sentence_transformer(base, similarity_fn_name="euclidean")
    with pytest.raises(ModelError, match="by euclidean; adapt needs cosine or dot"):
        adapted_model(far)


def test_rare_tokens_weigh_more(tiny):
    texts = sentences(40)
    weights = rarity(tiny.tokenizer, iter(texts), len(texts))
    seen = [set(tiny.tokenizer(text)["input_ids"]) for text in texts]
    for token in range(len(tiny.tokenizer)):
        count = sum(token in one for one in seen)
        assert weights[token] == pytest.approx(max(np.log(41 / (count + 0.5)), LEAST_WEIGHT), rel=1e-5)
    assert weights[tiny.tokenizer.cls_token_id] == np.float32(LEAST_WEIGHT)


# -- learning


@given(st.integers(0, 10**6), st.floats(-5, 5))
def test_the_divergence_is_zero_for_equal_rankings_only(seed, shift):
    draw = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, 3, 6, generator=draw)
    assert divergence(teacher + shift, teacher).item() == pytest.approx(0, abs=1e-5)
    found = divergence(student, teacher).item()
    p, q = torch.softmax(teacher, 1), torch.softmax(student, 1)
    assert found == pytest.approx((p * (p / q).log()).sum(1).mean().item(), abs=1e-5)
    assert found > 0
    teacher[:, 2] = -torch.inf  # left out on both sides
    without = [0, 1, 3, 4, 5]
    assert divergence(student, teacher).item() == pytest.approx(
        divergence(student[:, without], teacher[:, without]).item(), abs=1e-5
    )


def lessons_of(vectors, documents, teacher, size=30):
    candidates = np.argsort(-teacher, axis=1)[:, :size]
    count = len(vectors)
    return Lessons(
        vectors,
        candidates,
        np.take_along_axis(teacher, candidates, 1).astype(np.float32),
        np.zeros(count, np.int64),
        np.ones(count, np.int64),
        float((vectors @ documents.T).std()),
    )


def test_a_map_is_recovered_from_its_rankings():
    """The teacher ranks by a map that the student does not know; new queries are then ranked alike."""
    documents, vectors = random_unit((300, 16), 1), random_unit((800, 16), 2)
    hidden = np.eye(16) + 0.3 * np.random.default_rng(3).normal(size=(16, 16))
    teacher = apply(hidden, vectors) @ documents.T
    spread = (vectors @ documents.T).std()
    train = lessons_of(vectors[:600], documents, 2.5 * 0.3 * teacher[:600] / spread)
    options = dict(epochs=30, batch_size=64, temperature=0.3, seed=1)
    learnt = learn_query_map(train, documents, learning_rate=5e-3, **options)
    best = teacher[600:].argmax(1)
    before = ndcg(vectors[600:], documents, best)
    assert ndcg(apply(learnt, vectors[600:]), documents, best) > before + 0.5 * (1 - before)
    assert np.array_equal(learnt, learn_query_map(train, documents, learning_rate=5e-3, **options))
    assert np.array_equal(part_way(learnt, 1.0), learnt)
    assert np.array_equal(part_way(learnt, 0.0), np.eye(16, dtype=np.float32))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=5, max_size=5), st.floats(0, 1))
def test_the_best_share_that_does_not_forget_is_chosen(scores, general):
    curve = {share: {"dev": dev, "general": kept} for share, (dev, kept) in zip(SHARES, scores, strict=True)}
    chosen = choose_share(curve, general)
    allowed = [share for share in SHARES if curve[share]["general"] >= general - MOST_GENERAL_LOSS]
    if not allowed:
        assert chosen == 0
    else:
        assert chosen in allowed
        assert all(curve[share]["dev"] <= curve[chosen]["dev"] for share in allowed)
        assert all(curve[share]["dev"] < curve[chosen]["dev"] for share in allowed if share < chosen)


def test_the_teacher_is_the_fusion_of_exact_scores_without_the_source():
    texts = sentences(60, seed=4)
    questions = [" ".join(text.split()[:4]) for text in texts[:20]]
    documents, vectors = random_unit((60, 8), 1), random_unit((20, 8), 2)
    sources, hidden = np.arange(20), np.zeros(60, bool)
    hidden[30:35] = True
    bm25 = Lexical([str(i) for i in range(60)], texts, language="en")
    made = make_lessons(
        questions, vectors, sources, documents, bm25,
        bm25_weight=0.3, candidates=10, hidden=hidden, seed=0,
    )  # fmt: skip
    for query, question in enumerate(questions):
        lexical, dense = bm25.scores(question, np.arange(60)), documents @ vectors[query]
        fused = 0.3 * (lexical - lexical.mean()) / (lexical.std() or 1)
        fused = fused + 0.7 * (dense - dense.mean()) / dense.std()
        assert made.source_ranks[query] == 1 + (fused > fused[query]).sum()
        allowed = [i for i in range(60) if i != query and not hidden[i]]
        best = sorted(allowed, key=lambda i: -fused[i])[:10]
        rated = np.isfinite(made.scores[query])
        found = made.candidates[query][rated]
        assert len(set(found)) == len(found)
        assert list(found[:10]) == best
        assert query not in found
        assert not hidden[found].any()
        assert np.allclose(made.scores[query][rated], fused[found], atol=1e-4)


def test_a_cross_encoder_may_be_the_teacher(cross_encoder, tmp_path, monkeypatch):
    texts = sentences(60, seed=4)
    questions = [" ".join(text.split()[:4]) for text in texts[:20]]
    lessons = make_lessons(
        questions, random_unit((20, 8), 2), np.arange(20), random_unit((60, 8), 1),
        Lexical([str(i) for i in range(60)], texts, language="en"),
        bm25_weight=0.5, candidates=10, hidden=np.zeros(60, bool), seed=0,
    )  # fmt: skip
    teacher, chosen = open_teacher(str(cross_encoder), device="cpu"), np.arange(20) % 2 == 0
    given = (lessons, chosen, questions, texts, teacher, tmp_path / "scores")
    made = rate_by_teacher(*given)
    assert np.array_equal(made.candidates, lessons.candidates)
    assert np.array_equal(made.scores[~chosen], lessons.scores[~chosen])
    for query in np.flatnonzero(chosen):
        rated = np.isfinite(lessons.scores[query])
        assert np.array_equal(rated, np.isfinite(made.scores[query]))
        found = [texts[i] for i in lessons.candidates[query][rated]]
        *logits, own = teacher.score([questions[query]] * (len(found) + 1), [*found, texts[query]])
        expected = (logits - np.mean(logits)) / np.std(logits)
        assert np.allclose(made.scores[query][rated], expected, atol=1e-3)
        assert made.source_ranks[query] == 1 + (np.array(logits) > own).sum()
    monkeypatch.setattr(type(teacher), "__call__", None)  # what is scored is not scored again
    assert np.array_equal(rate_by_teacher(*given).scores, made.scores)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=80), st.integers(0, 60), st.integers(0, 99))
def test_documents_are_held_out_whole(documents, held_out, seed):
    """`documents` has the document of each passage; each passage has two questions."""
    ids = [f"p{i}" for i in range(len(documents))]
    questions = [Question(f"q{i}", "text", f"p{i // 2}") for i in range(2 * len(documents))]
    of = np.array(documents)
    split = split_questions(questions, ids, of, held_out=held_out, seed=seed)
    parts = {name: set(split.documents[split.part == name].tolist()) for name in (TRAIN, DEV, TEST)}
    assert not parts[TRAIN] & (parts[DEV] | parts[TEST])
    assert not parts[DEV] & parts[TEST]
    assert (split.part != TRAIN).sum() <= min(held_out, 0.3 * len(questions))
    assert set(of[split.held_out_passages].tolist()) == parts[DEV] | parts[TEST]
    assert split.held_out_documents == len(parts[DEV] | parts[TEST])
    # no document that fits, and leaves room for a second one, is left in training
    target = min(held_out, int(0.3 * len(questions)))
    sizes = [2 * documents.count(one) for one in parts[TRAIN] if 4 * documents.count(one) <= target]
    assert not sizes or min(sizes) + (split.part != TRAIN).sum() > target


def test_the_document_of_a_passage_is_named_or_its_title(tmp_path, capsys):
    rows = [
        {"_id": "1", "text": "a b", "metadata": {"document": "x.md"}},
        {"_id": "2", "text": "c d", "title": "Y", "metadata": {"document": "x.md"}},
        {"_id": "3", "text": "e f", "title": "Y"},
        {"_id": "4", "text": "g h", "title": "Y"},
        {"_id": "5", "text": "i j"},
        *({"_id": str(number), "text": "k l"} for number in range(6, 60)),
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = documents_of(tmp_path / "corpus.jsonl", [row["_id"] for row in rows])
    assert found.tolist() == [0, 0, 1, 1, 2, *range(3, 57)]
    assert not capsys.readouterr().err
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "corpus.jsonl").write_text(
        '{"_id": "1", "text": "a b"}\n{"_id": "2", "text": "c d"}\n'
    )
    assert documents_of(tmp_path / "single" / "corpus.jsonl", ["1", "2"]).tolist() == [0, 1]
    assert "single passages are held out" in capsys.readouterr().err


def test_a_question_about_a_missing_passage_is_refused():
    with pytest.raises(DataError, match="about the passage p9, which is not in the corpus"):
        split_questions([Question("q", "text", "p9")], ["p1"], np.array([0]), held_out=1, seed=0)


# -- the whole


@pytest.fixture(scope="module")
def adapted(tiny_folder, library, tmp_path_factory):
    lines = []
    output = tmp_path_factory.mktemp("adapted") / "run"
    made = stzoo.adapt(tiny_folder, corpus=library, output=output, on_stage=lines.append, progress=False)
    return made, lines


def test_a_run_says_what_it_did(adapted, library):
    made, lines = adapted
    assert [line.split()[0] for line in lines] == [f"{number}/6" for number in range(1, 7)]
    record = json.loads((made.path / "adapt.json").read_text())
    assert record["passages"] == 350
    assert record["weighted_tokens"] is True
    lost = record["left_out"]["the teacher does not find its passage"]
    assert f"{lost:,} dropped, whose passage is not among the best 20" in lines[3]
    assert set(made.scores) == {"bm25s", "base", "adapted", "BM25 + base", "BM25 + adapted"}
    difference = made.scores["adapted"] - made.scores["base"]
    assert made.gain.difference == pytest.approx(difference, abs=0.02)  # of documents, not of questions
    assert made.decision == ("adapted" if made.gain.low > 0 and made.gain.p_value < 0.05 else "base")
    held_out = made.path / "held_out"
    assert (held_out / "corpus.jsonl").read_bytes() == (library / "corpus.jsonl").read_bytes()
    card = (made.path / "adapted" / "README.md").read_text()
    assert str(Path.home()) not in card
    assert "## Adaptation" in card
    assert f"{made.scores['base']:.3f} before and {made.scores['adapted']:.3f} after" in card
    kept = made.model
    assert kept.encode_document("a text").shape == (32,)
    left_out = sum(record["left_out"].values())
    asked = json.loads((made.path / "questions" / "questions.json").read_text())["counts"]["asked"]
    assert sum(record["questions"][part] for part in ("train", "dev", "test")) + left_out == asked
    assert len(made.questions) == record["questions"]["generated"]
    assert f"KEEP {made.decision}" in str(made) == repr(made)
    assert [row["System"] for row in made.rows()] == list(made.scores.to_pandas()["System"])
    assert f"KEEP {made.decision}" in made._repr_html_()
    assert "<th>nDCG@10</th>" in made._repr_html_()
    assert made.history[0]["share"] == "base"
    assert json.loads(made.save(made.path.with_suffix(".json")).read_text()) == made.record


def test_the_dicts_of_beir_are_a_corpus(adapted, tiny_folder, library, tmp_path):
    corpus = {row["_id"]: row for row in map(json.loads, (library / "corpus.jsonl").read_text().splitlines())}
    dicts = (corpus, {"q": "a query"}, {"q": {next(iter(corpus)): 1}})
    assert stzoo.read_documents(dicts, split_rows=False, copies="keep").passages == len(corpus)
    with pytest.raises(OutputError, match=r"settings.corpus: .*/library0/docs' then, .*/tuple-of-350-texts"):
        stzoo.adapt(tiny_folder, corpus=dicts, output=adapted[0].path, progress=False)
    few = (dict(list(corpus.items())[:3]), *dicts[1:])
    with pytest.raises(DataError, match="questions are left"):
        stzoo.adapt(tiny_folder, corpus=few, output=tmp_path / "run", progress=False)


def test_a_mistake_does_not_block_its_correction(tiny_folder, library, tmp_path):
    """The settings of a run count from its first query on."""
    given = dict(corpus=library, output=tmp_path / "run", progress=False)
    with pytest.raises(ModelError):
        stzoo.adapt(tiny_folder, **given, queries="local", queries_model=str(tmp_path / "mistyped"))
    with pytest.raises(DataError, match="there is no file or folder"):
        stzoo.adapt(tiny_folder, **given | {"corpus": tmp_path / "mistyped"})
    assert not (tmp_path / "run" / "settings.json").exists()
    with pytest.raises(DataError, match="questions"):
        stzoo.adapt(tiny_folder, **given, count=20)
    with pytest.raises(OutputError, match=r"settings\.seed"):
        stzoo.adapt(tiny_folder, **given, count=20, seed=7)


def test_a_mistake_with_documents_does_not_block_its_correction_either(tiny_folder, library, tmp_path):
    rows = [json.loads(line) for line in (library / "corpus.jsonl").read_text().splitlines()]
    (tmp_path / "docs").mkdir()
    for row in rows[:20]:
        (tmp_path / "docs" / f"{row['_id']}.txt").write_text(row["text"])
    given = dict(corpus=tmp_path / "docs", output=tmp_path / "run", progress=False)
    with pytest.raises(ModelError):
        stzoo.adapt(tiny_folder, **given, queries="local", queries_model=str(tmp_path / "mistyped"))
    assert (tmp_path / "run" / "corpus" / "corpus.jsonl").is_file()
    with pytest.raises(DataError, match="questions"):
        stzoo.adapt(tiny_folder, **given)


def test_settings_of_someone_else_stay(tiny_folder, library, tmp_path):
    (tmp_path / "settings.json").write_text('{"mine": true}')
    with pytest.raises(OutputError):
        stzoo.adapt(tiny_folder, corpus=library, output=tmp_path, progress=False)
    assert (tmp_path / "settings.json").read_text() == '{"mine": true}'


def test_scores_are_a_table(adapted):
    scores = adapted[0].scores
    assert dict(scores) == adapted[0].record["scores"]
    head, _, *rows = str(scores).splitlines()
    assert head.split() == ["System", "nDCG@10"]
    assert [row.strip().rsplit(maxsplit=1) for row in rows] == [
        [name, f"{score:.4f}"] for name, score in scores.items()
    ]
    frame = scores.to_pandas()
    assert dict(zip(frame["System"], frame["nDCG@10"], strict=True)) == scores
    assert f"<td>BM25 + base</td><td>{scores['BM25 + base']:.4f}</td>" in scores._repr_html_()


@pytest.mark.usefixtures("unverified")
def test_a_run_with_a_cross_encoder_names_it(tiny_folder, library, cross_encoder, tmp_path, monkeypatch):
    # what is learnt from random weights helps by chance only
    monkeypatch.setattr("stzoo.adaptation.stages.train.choose_share", lambda *_: 1.0)
    given = dict(corpus=library, output=tmp_path / "run", teacher=cross_encoder, candidates=5)
    made = stzoo.adapt(tiny_folder, progress=False, **given)
    assert "follows the ranking of judge" in (made.path / "adapted" / "README.md").read_text()
    assert list((made.path / "teacher").glob("*/*.safetensors"))
    with pytest.raises(ModelError, match="without a trained head that scores pairs"):
        stzoo.adapt(tiny_folder, corpus=library, output=tmp_path / "other", teacher=tiny_folder)
    assert not (tmp_path / "other" / "questions").exists()


def test_passages_keep_their_vectors(adapted, tiny_folder):
    made, _ = adapted
    model, base = SentenceTransformer(str(made.path / "adapted")), SentenceTransformer(str(tiny_folder))
    texts = sentences(5)
    assert np.allclose(model.encode_document(texts), base.encode_document(texts), atol=1e-6)
    assert not np.allclose(model.encode_query(texts), base.encode_query(texts), atol=1e-3)


def test_the_report_has_a_section_on_the_run(adapted, tmp_path):
    made, _ = adapted
    for path in stzoo.report(made.path, output=tmp_path / "r.html", formats="html,txt", progress=False):
        shown = " ".join(html.unescape(path.read_text()).split())
        assert f"{made.gain.difference:+.3f} nDCG@10 against the base" in shown
        assert f"KEEP {made.decision}" in shown
        assert "100%" in shown
        for system, score in made.scores.items():
            assert f"{system}</bdi></th>" in shown or f"{system} " in shown
            assert f"{score:.4f}" in shown
        questions = (made.path / "questions/questions.jsonl").read_text().splitlines()
        assert " ".join(json.loads(questions[0])["text"].split()) in shown
        assert str(made.path) not in shown


def test_the_scores_are_those_of_bench(adapted, tmp_path):
    """Which encodes the passages by the adapted model itself; adapt copies the base's vectors."""
    made, _ = adapted
    found = stzoo.bench(
        f"again={made.path / 'adapted'}", data=made.path / "held_out", output=tmp_path,
        store=tmp_path / "store", bm25=False, progress=False,
    )  # fmt: skip
    assert found[0].scores.mean["nDCG@10"] == pytest.approx(made.scores["adapted"], abs=1e-3)


def test_a_run_that_is_stopped_continues_and_gives_a_verdict(tiny_folder, library, tmp_path):
    code = f"{UNVERIFIED}\nfrom stzoo.cli import main; main()"
    command = [sys.executable, "-c", code, "adapt", str(tiny_folder), "--corpus", str(library)]
    command += ["--output", "run"]
    stopped = processes.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for line in stopped.stderr:
        if "2/6 encode" in line:
            stopped.send_signal(signal.SIGINT)
            break
    stopped.stderr.read()
    assert stopped.wait(timeout=600) == 130
    done = processes.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    decision = json.loads((tmp_path / "run" / "adapt.json").read_text())["decision"]
    assert f"KEEP {decision}" in done.stdout
    assert "stzoo report run --output run.html" in done.stdout
    assert "words of the passages" in done.stdout


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ["Leave is granted by the manager of the team, who is asked two weeks before."],
            "questions are left",
        ),
        ([], "docs"),
    ],
)
def test_a_corpus_that_is_too_small_is_refused(tiny_folder, tmp_path, texts, message):
    (tmp_path / "docs").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "docs" / f"{number}.txt").write_text(text)
    done = cli("adapt", tiny_folder, "--corpus", tmp_path / "docs", "--output", tmp_path / "run")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr


@pytest.mark.usefixtures("unverified")
def test_documents_of_a_folder_are_read_first(tiny_folder, tmp_path, library):
    rows = [json.loads(line) for line in (library / "corpus.jsonl").read_text().splitlines()]
    (tmp_path / "docs").mkdir()
    for number in range(0, 300, 10):
        parts = [f"# Part {row['_id']}\n\n{row['text']}\n" for row in rows[number : number + 10]]
        (tmp_path / "docs" / f"{number}.md").write_text("\n".join(parts))
    made = stzoo.adapt(tiny_folder, corpus=tmp_path / "docs", output=tmp_path / "run", progress=False)
    lines = (tmp_path / "run" / "corpus" / "corpus.jsonl").read_text().splitlines()
    of = {row["_id"]: row["metadata"]["document"] for row in map(json.loads, lines)}
    assert set(of.values()) == {f"{number}.md" for number in range(0, 300, 10)}
    assert made.record["passages"] == len(of)
    judged = read_beir(tmp_path / "run" / "held_out", "test")
    held_out = {of[passage] for grades in judged.qrels.values() for passage in grades}
    assert len(held_out) < 10  # whole documents
