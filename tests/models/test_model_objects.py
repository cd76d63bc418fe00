"""SentenceTransformers and CrossEncoders that are given as objects: the same results as their folders."""

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Router, StaticEmbedding
from tokenizers.normalizers import Replace

import stzoo
from stzoo.errors import DataError, ModelError
from stzoo.models.encode import encode
from stzoo.models.loaded import open_model
from stzoo.models.loading import load_model, load_plain
from stzoo.models.objects import model_path, model_revision, teacher_path
from stzoo.testing import sentences, tiny_cross_encoder

TEXTS = sentences(12, seed=3)
DATA = (
    {f"d{i}": {"text": text} for i, text in enumerate(TEXTS)},
    {f"q{i}": " ".join(text.split()[:4]) for i, text in enumerate(TEXTS)},
    {f"q{i}": {f"d{i}": 1} for i in range(12)},
)


def plain(base):
    return load_model(str(base))


def with_prompts(base):
    model = load_model(str(base))
    model.prompts = {"query": "the query ", "passage": "the passage "}
    return model


def with_adapter(base):
    model = load_model(str(base))
    model.add_adapter(LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    return model


def static(base):
    return SentenceTransformer(
        modules=[StaticEmbedding(plain(base).tokenizer, embedding_dim=16)], device="cpu"
    )


def routed(base):
    model = plain(base)
    embedding = StaticEmbedding(plain(base).tokenizer, embedding_dim=model.get_embedding_dimension())
    router = Router.for_query_document([embedding], list(model))
    return SentenceTransformer(modules=[router, Normalize()], device="cpu")


KINDS = [plain, with_prompts, with_adapter, static, routed]


@pytest.mark.parametrize("make", KINDS)
def test_an_object_is_opened_as_its_folder_is(make, base, tmp_path):
    model = make(base)
    model.save_pretrained(str(tmp_path / "bert"))
    loaded, given = (open_model(one) for one in (str(tmp_path / "bert"), model))
    assert given.settings == loaded.settings
    assert [note.split(" ", 1)[1] for note in given.notes] == [note.split(" ", 1)[1] for note in loaded.notes]
    for role in ("query", "document"):
        np.testing.assert_allclose(
            *(encode(one.model, TEXTS, role=role) for one in (given, loaded)), atol=1e-6
        )


@pytest.mark.parametrize("make", KINDS)
def test_an_object_is_not_changed_and_its_weights_are_not_copied(make, base):
    model = make(base).train()
    state = [(name, value.clone()) for name, value in model.state_dict().items()]
    before = repr((model.prompts, model.max_seq_length, [one.training for one in model.modules()]))
    opened = open_model(model)
    assert not any(module.training for module in opened.model.modules())
    own, shared = (
        {tensor.untyped_storage().data_ptr() for tensor in (*one.parameters(), *one.buffers())}
        for one in (model, opened.model)
    )
    assert shared == own
    opened.model.to("meta")
    assert model.device.type == "cpu"
    for (name, value), (now, tensor) in zip(state, model.state_dict().items(), strict=True):
        assert name == now
        assert torch.equal(value, tensor)
    assert before == repr((model.prompts, model.max_seq_length, [one.training for one in model.modules()]))


def halved(model):
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[5] *= 0.5


def misread(model):
    model.tokenizer.backend_tokenizer.normalizer = Replace("a", "b")


def hooked(model):
    model[0].register_forward_hook(lambda *_: None)


def shorter(model):
    model.max_seq_length = 8


def prompted(model):
    model.prompts["query"] = "another "


def shifted(model):
    model[0].model.embeddings.position_ids.add_(1)


@pytest.mark.parametrize("load", [SentenceTransformer, load_plain])
def test_an_unchanged_object_has_the_revision_of_its_folder(load, base, tmp_path, capfd):
    folder = tmp_path / "bert"
    with_prompts(base).save_pretrained(str(folder))
    opened = open_model(str(folder))
    capfd.readouterr()
    given = open_model(load(str(folder), device="cpu"), max_tokens=16)
    assert (given.revision, given.given, given.is_object) == (opened.revision, opened.given, False)
    assert capfd.readouterr().err.count("prompt") == 1  # the note on the prompt is not shown twice
    for edit in (halved, misread, hooked, shorter, prompted, shifted):
        model = load(str(folder), device="cpu")
        edit(model)
        assert open_model(model).revision == model_revision(model) != opened.revision, edit
    model = load(str(folder), device="cpu")
    halved(model)
    model.save_pretrained(str(tmp_path / "other"))
    (tmp_path / "other").rename(folder.rename(tmp_path / "before").with_name("bert"))
    assert open_model(load(str(tmp_path / "before"), device="cpu")).revision == opened.revision
    assert open_model(model).revision == open_model(str(folder)).revision != opened.revision


def test_bench_scores_an_object_as_its_folder(base, tmp_path):
    model = with_prompts(base)
    model.save_pretrained(str(tmp_path / "bert"))
    by_path, by_object = (
        stzoo.bench(one, data=DATA, bm25=False)[0] for one in (str(tmp_path / "bert"), model)
    )
    assert by_object.scores.per_query == by_path.scores.per_query
    loaded = SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    [result] = stzoo.bench({"mine": loaded}, data=DATA, bm25=False, output=tmp_path / "results")
    assert result.revision == by_path.revision
    assert len(by_object.details["notes"]) == len(by_path.details["notes"]) > 0


def test_commands_do_the_same_with_an_object_as_with_its_folder(base, tmp_path):
    model, folder = with_prompts(base), str(tmp_path / "bert")
    model.save_pretrained(folder)
    model.train()
    teacher = tiny_cross_encoder(tmp_path / "teacher")
    asked = dict(questions=TEXTS[:2], data=TEXTS, hybrid=True, max_tokens=8)
    assert stzoo.search(model, **asked) == stzoo.search(folder, **asked)
    given = dict(data=DATA, split="train", depth=6, mined=2, teacher_margin=-10.0)
    mined = [tmp_path / name for name in ("path.jsonl", "object.jsonl")]
    stzoo.mine(folder, output=mined[0], teacher=teacher, **given)
    stzoo.mine(model, output=mined[1], teacher=CrossEncoder(str(teacher), device="cpu"), **given)
    first, second = (file.read_text().splitlines() for file in mined)
    assert first[1:] == second[1:]  # the first line names the models
    assert model.training


def test_a_model_that_cannot_be_copied_or_saved_is_a_short_error(base):
    model = plain(base)
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"bert cannot be copied \(TypeError: .*\)\. Give the path"):
        open_model(model)
    del model.lock
    model.backend = "onnx"
    for use in (open_model, model_path):
        with pytest.raises(ModelError, match="of the backend onnx was given"):
            use(model)


def test_quantized_weights_are_part_of_the_revision(base):
    def quantized(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    first = quantized(plain(base))
    assert open_model(first).revision == model_revision(quantized(plain(base)))
    other = plain(base)
    with torch.no_grad():
        other[0].model.encoder.layer[0].output.dense.weight.mul_(-1)
    assert model_revision(quantized(other)) != model_revision(first)
    with pytest.raises(ModelError, match=r"bert-.* cannot be saved"):
        model_path(first)


def test_an_unused_pooler_that_is_drawn_at_random_does_not_change_the_revision(base):
    first, second = plain(base), plain(base)
    weights = [model[0].model.pooler.dense.weight for model in (first, second)]
    assert not torch.equal(*weights)
    assert model_revision(first) == model_revision(second)
    assert model_path(first) == model_path(second)


def test_a_damaged_copy_of_a_model_is_written_again(base):
    model = static(base)  # with weights of its own
    folder = Path(model_path(model))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-8])
    assert model_path(model) == str(folder)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_cross_encoder_is_no_retriever_but_ranks_again(base, tmp_path):
    folder = tiny_cross_encoder(tmp_path / "teacher")
    teacher, model = CrossEncoder(str(folder), device="cpu"), plain(base)
    for use in (
        lambda: stzoo.bench(teacher, data=DATA),
        lambda: stzoo.search(teacher, "a question", data=TEXTS),
        lambda: stzoo.mine(teacher, data=DATA, output=tmp_path / "mined.jsonl"),
        lambda: stzoo.finetune(teacher, data=DATA, output=tmp_path / "out"),
    ):
        with pytest.raises(ModelError, match="an object of type CrossEncoder was given as model"):
            use()
    by_path, by_object = (
        stzoo.search(model, TEXTS[0][:20], data=TEXTS, rerank=one) for one in (folder, teacher)
    )
    assert by_object == by_path
    by_path, by_object = (stzoo.bench(model, data=DATA, rerank=one)[-1] for one in (folder, teacher))
    assert by_object.scores.per_query == by_path.scores.per_query
    for use in (teacher_path, lambda one: stzoo.search(model, "a question", data=TEXTS, rerank=one)):
        with pytest.raises(
            ModelError, match="an object of type SentenceTransformer was given as cross-encoder"
        ):
            use(model)


def test_a_store_that_an_object_filled_is_found_by_the_object(base, tmp_path):
    model, root = plain(base), tmp_path / "store"
    first = stzoo.search(model, TEXTS[0], data=TEXTS, store=root)
    stzoo.bench(model, data=DATA, bm25=False, store=root, keep_store=True)
    written = {file: file.stat().st_mtime_ns for file in root.rglob("*.safetensors")}
    assert stzoo.search(model, TEXTS[0], data=TEXTS, store=root) == first
    stzoo.bench({"another name": model}, data=DATA, bm25=False, store=root, keep_store=True)
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*.safetensors")} == written
    for manifest in root.rglob("*-document-*/manifest.json"):
        with pytest.raises(DataError, match=r"was a SentenceTransformer object, .* stzoo\.search\(model, q"):
            stzoo.search(manifest.parent, TEXTS[0])
