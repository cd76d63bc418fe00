"""What is checked whenever a model is loaded: its weights, and what it can read."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import stzoo
from stzoo.data.beir import write_beir
from stzoo.errors import ExportError, ModelError, RecipeError
from stzoo.evaluation.bench.beir_model import BEIRModel
from stzoo.evaluation.bench.bench import bench
from stzoo.hub import verify_standalone
from stzoo.hub.card_scores import _of_other_data
from stzoo.hub.export import export
from stzoo.hub.merge import normalised
from stzoo.hub.merge.compatibility import load as load_to_merge
from stzoo.hub.merge.sources import Source
from stzoo.models import check_weights, limits, lora
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.encode import encode
from stzoo.models.encode.batches import reading_notes
from stzoo.models.loaded import open_model
from stzoo.models.loading import load_masked_lm, load_model, load_plain
from stzoo.pretraining.pretrain import load_base
from stzoo.testing import FAMILIES, sentences, tiny_cross_encoder, tiny_masked_lm, tiny_t5, tiny_tokenizer

WEIGHTS = "model.safetensors"


def edit(path, change):
    """Rewrites a JSON file, or the tensors of a safetensors file, and returns its folder."""
    if path.suffix == ".json":
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))
    else:
        found = load_file(path)
        change(found)
        save_file({name: part.contiguous() for name, part in found.items()}, path, {"format": "pt"})
    return path.parent


def with_modules(folder, base, *more, **options):
    transformer = Transformer(str(base))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), *more]
    SentenceTransformer(modules=modules, device="cpu", **options).save_pretrained(str(folder))
    return Path(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A model of four modules whose Transformer stores a pooler, so that every tensor counts."""
    folder = tmp_path_factory.mktemp("finished")
    return with_modules(folder / "model", tiny_masked_lm("bert", folder / "base"), Dense(32, 16))


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.mark.parametrize("family", [*FAMILIES, "t5"])
def test_each_missing_tensor_is_an_error_that_names_it(family, tmp_path):
    folder = tiny_t5(tmp_path) if family == "t5" else tiny_masked_lm(family, tmp_path)
    stored = load_file(folder / WEIGHTS)
    prefix = "" if family == "t5" else AutoModelForMaskedLM.from_pretrained(folder).base_model_prefix + "."
    for name in stored:
        if ".1." in name or name.startswith("decoder.") * (family == "t5"):
            continue  # the second layer is as the first; a T5's decoder is not part of the model
        rest = {other: part for other, part in stored.items() if other != name}
        save_file(rest, folder / WEIGHTS, {"format": "pt"})
        load = load_plain if name.startswith(prefix) else load_base  # which alone reads the MLM head
        with pytest.raises(ModelError, match="These weights would be random") as error:
            load(str(folder))
        assert name.removeprefix(prefix) in str(error.value)


def shard(folder):
    model = SentenceTransformer(str(folder), device="cpu")
    (folder / WEIGHTS).unlink()
    model[0].model.save_pretrained(folder, max_shard_size="20KB")
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    last.unlink()


def in_pickles(folder):
    stored = load_file(folder / WEIGHTS)
    del stored["encoder.layer.1.output.dense.bias"]
    torch.save(stored, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


FAULTS = {
    "all under another name": (
        lambda folder: edit(folder / WEIGHTS, lambda t: [t.update({f"module.{n}": t.pop(n)}) for n in [*t]]),
        "missing embeddings.LayerNorm.bias, .* and 32 more.*do not belong to the model: module.embeddings",
    ),
    "more layers than weights": (
        lambda folder: edit(folder / "config.json", lambda c: c.update(num_hidden_layers=3)),
        r"missing encoder.layer.2.attention.*11 more",
    ),
    "another shape": (
        lambda folder: edit(
            folder / WEIGHTS, lambda t: t.update({"embeddings.LayerNorm.bias": torch.zeros(8)})
        ),
        r"of another shape embeddings.LayerNorm.bias \[8\] instead of \[32\]",
    ),
    "another vocabulary": (
        lambda folder: edit(folder / "config.json", lambda c: c.update(vocab_size=301)),
        r"embeddings.word_embeddings.weight \[300, 32\] instead of \[301, 32\]",
    ),
    "a shard gone": (shard, "cannot be loaded: .*model-0000"),
    "pickled": (in_pickles, "missing encoder.layer.1.output.dense.bias"),
    "of a module": (
        lambda folder: edit(folder / "2_Dense" / WEIGHTS, lambda t: t.pop("linear.bias")),
        'Missing key.*"linear.bias"',
    ),
    "of a module, another shape": (
        lambda folder: edit(
            folder / "2_Dense" / WEIGHTS, lambda t: t.update({"linear.bias": torch.zeros(3)})
        ),
        "size mismatch for linear.bias",
    ),
    "modules that do not fit": (
        lambda folder: [
            edit(folder / "2_Dense" / WEIGHTS, lambda t: t.update({"linear.weight": torch.zeros(16, 8)})),
            edit(folder / "2_Dense" / "config.json", lambda c: c.update(in_features=8)),
        ],
        "cannot encode a text: RuntimeError",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_those_of_the_architecture_are_refused(fault, copied):
    change, words = FAULTS[fault]
    change(copied)
    with pytest.raises(ModelError, match=words):
        load_plain(str(copied))


def test_every_command_checks_the_weights(copied, tmp_path):
    edit(copied / WEIGHTS, lambda tensors: tensors.pop("encoder.layer.0.output.dense.bias"))
    teacher = tiny_cross_encoder(tmp_path / "teacher")
    edit(teacher / WEIGHTS, lambda t: [t.update({f"module.{n}": t.pop(n)}) for n in [*t]])
    for load in (
        lambda: open_model(str(copied), device="cpu"),  # bench, mine, search
        lambda: load_model(str(copied)),  # finetune
        lambda: load_base(str(copied)),  # pretrain
        lambda: load_to_merge(copied),
        lambda: export(str(copied), tmp_path / "out"),
        lambda: BEIRModel(str(copied), device="cpu"),
        lambda: open_teacher(str(teacher), device="cpu"),
    ):
        with pytest.raises(ModelError, match=r"missing .*These weights would be random"):
            load()
    assert not (tmp_path / "out").exists()


def test_tensors_that_nothing_reads_are_a_note_but_heads_are_not(copied, base, capsys):
    load_plain(str(base), device="cpu")  # with an MLM head, and a new pooler that nothing reads
    assert capsys.readouterr().err == ""
    edit(copied / "config.json", lambda config: config.update(num_hidden_layers=1))
    edit(copied / WEIGHTS, lambda tensors: tensors.update(extra=torch.zeros(1)))
    load_plain(str(copied), device="cpu")
    said = capsys.readouterr().err
    assert "contains tensors that its architecture does not have: encoder.layer.1.attention" in said
    assert "and 12 more" in said  # the layer's 16, and "extra"


def test_a_copy_of_a_loaded_model_computes_the_same_bits(base, tmp_path):
    """On some CPUs, rounding depends on the addresses of the weights, which in a mapped file may be any."""
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    for size in range(0, 64, 8):
        save_file(tensors, folder / "model.safetensors", {"format": "pt", "padding": size * "x"})
        header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
        if (8 + header) % 64 == 8:
            break
    given = SentenceTransformer(str(folder), device="cpu")
    assert any(tensor.data_ptr() % 64 for tensor in given.parameters())
    models = [load_plain(str(folder), device="cpu"), load_masked_lm(str(folder))[1], open_model(given).model]
    models += [open_teacher(str(tiny_cross_encoder(tmp_path / "teacher")), device="cpu").model]
    for model in models:
        assert not any(tensor.data_ptr() % 64 for tensor in (*model.parameters(), *model.buffers()))
    assert any(tensor.data_ptr() % 64 for tensor in given.parameters())  # the user's own is left alone
    texts = sentences(40)
    copied = pickle.loads(pickle.dumps(models[0]))
    assert np.array_equal(encode(models[0], texts, role="query"), encode(copied, texts, role="query"))
    word, head = (
        layer.weight
        for layer in (models[1].bert.embeddings.word_embeddings, models[1].cls.predictions.decoder)
    )
    assert word.data_ptr() == head.data_ptr()


def test_a_new_mlm_head_is_announced_and_part_of_one_is_refused(base, tmp_path, capsys):
    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "encoder")
    assert len(load_base(str(tmp_path / "encoder")).backbone.new) == 6
    assert (
        "has no MLM head; pre-training starts with a new one (cls.predictions.bias" in capsys.readouterr().err
    )


def test_pretraining_reads_its_base_once(base, finished):
    for folder in (base, finished):
        with check_weights.loading_reports() as reports:
            backbone = load_base(str(folder)).backbone
        assert [type(model).__name__ for model, _ in reports] == ["BertForMaskedLM"]
        assert backbone.model[0].model is backbone.masked_lm.base_model


class Forgetful(Module):
    """Has the `load` that modules inherit, which reads their configuration alone."""

    config_keys = ()

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Linear(2, 2)

    def forward(self, features, **_):
        return features

    def save(self, path, *_, **__):
        self.save_config(path)
        self.save_torch_weights(path)


def test_a_module_of_a_plugin_that_does_not_read_its_weights_is_found(base, tmp_path):
    saved = with_modules(tmp_path / "saved", base, Forgetful())
    transformer, pooling, _ = SentenceTransformer._load_with_module_classes(
        str(saved), {f"{__name__}.Forgetful": Forgetful}, device="cpu"
    )
    loaded = SentenceTransformer(modules=[transformer, pooling, Forgetful()], device="cpu")
    with pytest.raises(ModelError, match=r"does not load .*\(scale.bias, scale.weight\)"):
        check_weights.check_model(str(saved), loaded, [])
    edit(saved / "2_Forgetful" / WEIGHTS, lambda tensors: tensors.pop("scale.bias"))
    with pytest.raises(ModelError, match=r"\(Forgetful\).*missing scale.bias"):
        check_weights.check_model(str(saved), loaded, [])


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "electra"])
def test_texts_are_cut_at_the_positions_that_there_are(family, tmp_path, capsys):
    base = tiny_masked_lm(family, tmp_path / "base")
    edit(base / "tokenizer_config.json", lambda config: config.update(model_max_length=10**30))
    folder = with_modules(tmp_path / "model", base)
    edit(folder / "sentence_bert_config.json", lambda config: config.update(max_seq_length=500))
    capsys.readouterr()
    for load in (load_plain, load_model):
        model = load(str(folder), device="cpu")
        assert model.max_seq_length == 64
        assert "has positions for 64 tokens (its max_seq_length is 500)" in capsys.readouterr().err
    assert np.isfinite(encode(model, ["wing " * 200, "lift"], role="document")).all()
    with pytest.raises(ModelError, match="expected 3 to 64"):
        open_model(str(folder), max_tokens=65, device="cpu")


def test_a_base_whose_tokenizer_has_no_limit_is_pretrained_and_exported(corpus, tmp_path):
    base = tiny_masked_lm("roberta", tmp_path / "base")
    edit(base / "tokenizer_config.json", lambda config: config.update(model_max_length=10**30))
    how = dict(corpus=[str(corpus)], max_steps=1, batch_size=4, max_tokens=32)
    out = stzoo.pretrain(base=str(base), output=tmp_path / "run", **how)
    assert SentenceTransformer(str(out), device="cpu").max_seq_length == 64
    (note,) = json.loads((out / "run.json").read_text())["notes"]
    assert "has positions for 64 tokens (its max_seq_length is 66)" in note


def test_models_without_position_rows_keep_their_length(tmp_path, capsys):
    modern = tiny_masked_lm("modernbert", tmp_path / "modernbert")
    for base in (modern, tiny_t5(tmp_path / "t5")):
        folder = with_modules(tmp_path / f"{base.name}-model", base)
        edit(folder / "sentence_bert_config.json", lambda config: config.update(max_seq_length=500))
        capsys.readouterr()
        assert load_plain(str(folder), device="cpu").max_seq_length == 500
        assert capsys.readouterr().err == ""


def add_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zzznew"])
    tokenizer.save_pretrained(folder)


UNREADABLE = {
    "a token without a row": (add_token, r"ids up to 300, .* 300 rows \(0 to 299\); without a row: 'zzznew'"),
    "no padding token": (
        lambda folder: edit(folder / "tokenizer_config.json", lambda config: config.pop("pad_token")),
        "has no padding token",
    ),
    "no room": (
        lambda folder: edit(folder / "sentence_bert_config.json", lambda c: c.update(max_seq_length=2)),
        "max_seq_length of 2; expected 3 or more",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_model_that_cannot_read_its_tokens_is_refused_before_it_is_used(case, copied):
    change, words = UNREADABLE[case]
    change(copied)
    for load in (load_plain, load_model, load_base):
        with pytest.raises(ModelError, match=words):
            load(str(copied))


def test_static_embeddings_and_teachers_are_checked_too(tmp_path):
    inner = tiny_tokenizer("bert").backend_tokenizer
    static = SentenceTransformer(modules=[StaticEmbedding(inner, embedding_dim=8)], device="cpu")
    static.save_pretrained(str(tmp_path / "static"))
    change = {"embedding.weight": torch.zeros(299, 8)}
    edit(tmp_path / "static" / WEIGHTS, lambda tensors: tensors.update(change))
    with pytest.raises(ModelError, match="the word embeddings have 299 rows"):
        load_plain(str(tmp_path / "static"), device="cpu")
    teacher = tiny_cross_encoder(tmp_path / "teacher")
    edit(teacher / "tokenizer_config.json", lambda config: config.update(model_max_length=10**30))
    edit(teacher / "config.json", lambda config: config.update(type_vocab_size=1))
    kind = "bert.embeddings.token_type_embeddings.weight"
    edit(teacher / WEIGHTS, lambda tensors: tensors.update({kind: tensors[kind][:1]}))
    with pytest.raises(ModelError, match="cannot encode a text: IndexError"):
        open_teacher(str(teacher), device="cpu")


@pytest.mark.parametrize(
    ("family", "pooling", "side"),
    [
        ("bert", "cls", "right"),
        ("bert", "mean", "right"),  # its positions are counted from the left
        ("roberta", "cls", "right"),
        ("roberta", "mean", "left"),
        ("modernbert", "cls", "right"),
        ("modernbert", "lasttoken", "left"),
    ],
)
def test_a_vector_does_not_depend_on_the_padding_of_its_batch(family, pooling, side, tmp_path, capsys):
    base = tiny_masked_lm(family, tmp_path / "base")
    edit(base / "tokenizer_config.json", lambda config: config.update(padding_side="left"))
    transformer = Transformer(str(base))
    saved = SentenceTransformer(modules=[transformer, Pooling(32, pooling)], device="cpu")
    saved.save_pretrained(str(tmp_path / "model"))
    capsys.readouterr()
    model = load_plain(str(tmp_path / "model"), device="cpu")
    assert model.tokenizer.padding_side == side
    assert ("padded on the right instead" in capsys.readouterr().err) == (side == "right")
    texts = ["the wing", "sunlight and water into sugar of the cell and the treaty was signed"]
    together, single = (encode(model, some, role="document")[0] for some in (texts, texts[:1]))
    np.testing.assert_allclose(together, single, atol=1e-5)


def test_a_tokenizer_without_an_attention_mask_gets_one(copied, capsys):
    edit(copied / "tokenizer_config.json", lambda config: config.update(model_input_names=["input_ids"]))
    model = load_plain(str(copied), device="cpu")
    assert "returns no attention_mask, so padding would be read" in capsys.readouterr().err
    texts = ["the wing", "wing " * 30]
    together, single = (encode(model, some, role="document")[0] for some in (texts, texts[:1]))
    np.testing.assert_allclose(together, single, atol=1e-5)


def test_a_pooling_that_reads_padding_is_refused(copied):
    model = SentenceTransformer(str(copied), device="cpu")
    model[1].forward = lambda features, **_: (
        features | {"sentence_embedding": features["token_embeddings"].mean(1)}
    )
    with pytest.raises(ModelError, match="reads padding: the vector of a text depends on the other texts"):
        limits.prepare(model, "model")


def test_a_teacher_does_not_read_the_padding_either(tmp_path):
    base = tiny_masked_lm("roberta", tmp_path)
    config = AutoConfig.from_pretrained(base, num_labels=1, initializer_range=0.2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(base)
    edit(base / "tokenizer_config.json", lambda config: config.update(padding_side="left"))
    teacher = open_teacher(str(base), device="cpu")
    pairs = ["the wing", "wing " * 20]
    together, single = (teacher.score(some, some)[0] for some in (pairs, pairs[:1]))
    assert together == pytest.approx(single, abs=1e-5)


@pytest.fixture
def small(tmp_path):
    rows = [{"_id": f"d{n}", "text": text} for n, text in enumerate(sentences(6))]
    return write_beir(tmp_path / "small", rows, {"q": "the wing"}, {"test": {"q": {"d0": 1}}})


@pytest.mark.usefixtures("unverified")
def test_a_passage_prompt_is_put_before_documents_and_an_export_keeps_it(base, small, tmp_path, capsys):
    folder = with_modules(tmp_path / "model", base, prompts={"query": "query: ", "passage": "passage: "})
    (result,) = bench([str(folder)], data=small.parent / "small", output=tmp_path / "out", bm25=False)
    (note,) = result.details["notes"]
    assert "declares the prompt 'passage: ' as 'passage'; it is used for documents" in note
    assert note in capsys.readouterr().err
    assert not _of_other_data(result)
    assert result.details["settings"]["prompts"]["document"] == "passage: "
    model = load_plain(str(folder), device="cpu")
    found = encode(model, ["the wing"], role="document")
    np.testing.assert_allclose(found, model.encode(["passage: the wing"], prompt=""), atol=1e-6)
    assert not np.allclose(found, SentenceTransformer(str(folder), device="cpu").encode_document("the wing"))
    plain = SentenceTransformer(str(export(str(folder), tmp_path / "exported")), device="cpu")
    np.testing.assert_allclose(plain.encode_document(["the wing"]), found, atol=1e-6)


def test_a_document_prompt_wins_over_one_for_passages(base, tmp_path):
    prompts = {"document": "d: ", "passage": "p: "}
    assert load_plain(str(with_modules(tmp_path, base, prompts=prompts))).prompts["document"] == "d: "


THAI = ["กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "ช้างเป็นสัตว์บกที่ใหญ่ที่สุดในโลก"]


@pytest.mark.usefixtures("unverified")
def test_what_keeps_a_model_from_telling_texts_apart_is_noted(base, tmp_path, capsys):
    rows = [{"_id": f"d{n}", "text": text} for n, text in enumerate(THAI * 8)]
    judged = {f"q{n}": {f"d{n}": 1} for n in range(8)}
    queries = dict.fromkeys(judged, "the wing")
    write_beir(tmp_path / "data", rows, queries, {"train": judged, "test": judged})
    long = "represent this question for a search of the passages: "
    folder = with_modules(tmp_path / "model", base, prompts={"query": long})
    unknown, prompt = (
        "100% of the tokens of the {} are [UNK]",
        "and the queries are truncated to 12, so their texts are not read",
    )
    (result,) = bench(
        [str(folder)], data=tmp_path / "data", output=tmp_path / "out", bm25=False, max_tokens=12
    )
    queries_note, documents_note = result.details["notes"]
    assert prompt in queries_note
    assert unknown.format("documents") in documents_note
    how = dict(max_steps=1, batch_size=4)
    out = stzoo.finetune(
        str(folder),
        data=str(tmp_path / "data"),
        dev_queries=0,
        max_query_tokens=12,
        output=tmp_path / "tuned",
        mini_batch_size=4,
        **how,
    )
    queries_note, passages_note = json.loads((out / "run.json").read_text())["notes"]
    assert prompt in queries_note
    assert unknown.format("passages") in passages_note
    corpus = [str(tmp_path / "data" / "corpus.jsonl")]
    out = stzoo.pretrain(base=str(base), corpus=corpus, output=tmp_path / "run", **how)
    (note,) = json.loads((out / "run.json").read_text())["notes"]
    assert unknown.format("passages") in note
    assert capsys.readouterr().err.count("100% of the tokens") == 3
    assert reading_notes(load_plain(str(folder)), sentences(300), "texts", prompt="the ", max_tokens=64) == []


def test_weights_that_are_not_finite_are_neither_exported_nor_used(finished, tmp_path):
    model = SentenceTransformer(str(finished), device="cpu")
    with torch.no_grad():
        model[0].model.encoder.layer[1].output.dense.bias[3] = torch.nan
    with pytest.raises(ExportError, match=r"encoder\.layer\.1\.output\.dense\.bias has NaN or infinity"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="vector of the text 'the wing' contains NaN or infinity"):
        encode(model, ["the wing"], role="query")
    asked = verify_standalone.ask(model)
    verify_standalone.store(tmp_path / "answers.safetensors", asked, verify_standalone.answers(model, asked))
    model.save_pretrained(str(tmp_path / "broken"))
    with pytest.raises(ValueError, match="embeddings with NaN or infinity"):
        verify_standalone.compare(tmp_path / "broken", tmp_path / "answers.safetensors")
    with pytest.raises(ModelError, match=r"weights of .*broken are damaged: .*bias contains NaN or infinity"):
        load_plain(str(tmp_path / "broken"))


def test_an_export_that_cannot_read_a_long_text_says_so(finished, tmp_path):
    model = SentenceTransformer(str(finished), device="cpu")
    model.max_seq_length = 500
    with pytest.raises(ExportError, match=r"cannot encode the texts of the check, .*Set its max_seq_length"):
        export(model, tmp_path / "out")


def test_shares_of_a_merge_are_right_however_large_the_weights(tmp_path):
    sources = [Source("a", tmp_path), Source("b", tmp_path)]
    assert normalised([1e308, 1e308], sources) == [0.5, 0.5]
    with pytest.raises(RecipeError, match=r"the weight .*e-321 is too small next to 1e\+308"):
        normalised([1e-320, 1e308], sources)


def test_numbers_of_adapters_that_cannot_be_are_refused(base):
    for options, words in (
        (dict(rank=10**30), "is over 10\\^9; expected 1 to 64"),
        (dict(rank=65), "is 65; expected 1 to 64"),
        (dict(rank=2, alpha=float("inf")), "lora_alpha is inf"),
    ):
        with pytest.raises(RecipeError, match=words):
            lora.add(load_model(str(base)), **options)


@pytest.mark.usefixtures("unverified")
def test_damaged_decoders_of_a_base_are_an_error(base, corpus, tmp_path):
    how = dict(corpus=[str(corpus)], max_steps=1, batch_size=4)
    first = stzoo.pretrain(base=str(base), output=tmp_path / "first", **how)
    parts = first / "pretraining" / "objective.safetensors"
    whole = parts.read_bytes()
    for content in (b"", whole[:100], b"\xff" * 64):
        parts.write_bytes(content)
        with pytest.raises(ModelError, match="pretraining is damaged"):
            stzoo.pretrain(base=str(first), output=tmp_path / "second", **how)
