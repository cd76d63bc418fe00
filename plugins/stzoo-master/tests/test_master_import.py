"""MASTER's checkpoints in their published forms, with tiny random weights, give its code's vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel
from transformers.models.bert.modeling_bert import BertLayer

import stzoo
from stzoo import ModelError
from stzoo.plugins import manager
from stzoo.pretraining.pretrain import load_base, load_parts, make_objective
from stzoo.testing import sentences, tiny_tokenizer
from stzoo.training.pretrain_settings import PretrainSettings

TEXTS = ["wing lift", "", *sentences(4), " ".join(sentences(40))]
THEIRS = ("c_head", "query_head", "gpt_head", "next_head", "overlap_head")
TUNED = "master-base.msmarco-finetune"


def tiny_config():
    tokenizer = tiny_tokenizer("bert")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)


def pretrained(folder):
    """What `CondenserForPretraining.save_pretrained` writes, args.pt too, which would run code."""
    config = tiny_config()
    torch.manual_seed(0)
    lm = BertForMaskedLM(config)
    layer = tiny_config()
    layer._attn_implementation = "eager"  # which a layer by itself does not find out
    heads = torch.nn.ModuleDict(
        {name: torch.nn.ModuleList(BertLayer(layer) for _ in range(2)) for name in THEIRS}
    )
    tiny_tokenizer("bert").save_pretrained(folder)
    config.save_pretrained(folder)
    torch.save(lm.state_dict(), Path(folder) / "pytorch_model.bin")
    torch.save(heads.state_dict(), Path(folder) / "model.pt")
    (Path(folder) / "args.pt").write_bytes(b"opened by nobody")
    return Path(folder), lm.eval(), heads.eval()


def archive(folder, **more):
    """What `_save_checkpoint` writes of a `BiBertEncoder`; configuration and tokenizer are laid beside it."""
    config = tiny_config()
    torch.manual_seed(1)
    towers = torch.nn.ModuleDict({name: BertModel(config).eval() for name in ("question_model", "ctx_model")})
    optimiser = torch.optim.AdamW(towers.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    tiny_tokenizer("bert").save_pretrained(folder)
    config.save_pretrained(folder)
    tensors = towers.state_dict() | {
        f"{name}.embeddings.position_ids": torch.arange(512)[None] for name in towers
    }
    state = dict(model_dict=tensors | more, optimizer_dict=optimiser.state_dict(), offset=25000, epoch=0)
    state |= dict(scheduler_dict=schedule.state_dict(), encoder_params={})
    torch.save(state, Path(folder) / "checkpoint-25000")
    return Path(folder), towers


@pytest.fixture
def unverified(monkeypatch):
    """Exports are not checked by a process of their own, which takes seconds; other tests see to it."""
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)


def vectors(model, read):
    with torch.no_grad():  # as `HFBertEncoder.forward`: no token types are given
        return (
            model(input_ids=read["input_ids"], attention_mask=read["attention_mask"])
            .last_hidden_state[:, 0]
            .numpy()
        )


@pytest.mark.parametrize("name", ["master-base.msmarco", "master-base.wiki"])
@pytest.mark.usefixtures("unverified")
def test_the_pretrained_encoder_gives_its_cls_vectors(name, tmp_path):
    source, lm, _ = pretrained(tmp_path / "source")
    out = stzoo.import_checkpoint(source, output=tmp_path / "out", like=name)
    read = AutoTokenizer.from_pretrained(source)(
        TEXTS, padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    model = SentenceTransformer(str(out))
    np.testing.assert_allclose(model.encode(TEXTS), vectors(lm.bert, read), atol=1e-6, rtol=0)
    assert model.similarity_fn_name == "dot"
    assert "args.pt" not in json.loads((out / "import.json").read_text())["imported"]["files"]


@pytest.mark.usefixtures("unverified")
def test_pre_training_goes_on_with_the_published_decoders(tmp_path):
    source, lm, theirs = pretrained(tmp_path / "source")
    out = stzoo.import_checkpoint(source, output=tmp_path / "out", like="master-base.msmarco")
    settings = PretrainSettings(base=str(out), corpus=["unread"], objective="master")
    base = load_base(str(out))
    objective = make_objective(base, settings)
    assert load_parts(objective, base, settings) == frozenset()
    names = dict(zip(("passage", "query", "continuation", "neighbour", "complement"), THEIRS, strict=True))
    hidden, seen = torch.randn(2, 5, 32), torch.ones(2, 1, 5, dtype=torch.bool)
    for name, head in objective.heads.items():
        expected = hidden
        for layer in theirs[names[name]]:
            expected = layer(expected)
            expected = expected[0] if isinstance(expected, tuple) else expected
        with torch.no_grad():
            torch.testing.assert_close(head.eval()(hidden, hidden, seen), expected, atol=1e-5, rtol=0)
    mlm = base.backbone.masked_lm.cls.predictions
    assert torch.equal(mlm.transform.dense.weight, lm.cls.predictions.transform.dense.weight)


def test_decoders_that_are_not_masters_are_refused(tmp_path):
    source, _, heads = pretrained(tmp_path / "source")
    tensors = heads.state_dict()
    torch.save(tensors | {"r_head.0.output.dense.weight": torch.ones(1)}, source / "model.pt")
    with pytest.raises(ModelError, match=r"Unexpected: r_head\.0\.output\.dense\.weight"):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like="master-base.msmarco")
    del tensors["gpt_head.1.output.dense.weight"]
    torch.save(tensors, source / "model.pt")
    with pytest.raises(ModelError, match=r"heads\.continuation\.layers\.1\.output\.dense\.weight"):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like="master-base.msmarco")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_fine_tuned_archive_becomes_two_towers(tmp_path):
    source, towers = archive(tmp_path / "source")
    out = stzoo.import_checkpoint(source, output=tmp_path / "out", like=TUNED)
    tokenizer, model = AutoTokenizer.from_pretrained(source), SentenceTransformer(str(out))
    given = dict(padding=True, truncation=True, return_tensors="pt")
    queries = vectors(towers["question_model"], tokenizer(TEXTS, max_length=32, **given))
    passages = vectors(towers["ctx_model"], tokenizer(["-"] * len(TEXTS), TEXTS, max_length=128, **given))
    np.testing.assert_allclose(model.encode_query(TEXTS), queries, atol=1e-6, rtol=0)
    np.testing.assert_allclose(model.encode_document(TEXTS), passages, atol=1e-6, rtol=0)
    assert model.similarity_fn_name == "dot"
    titled = vectors(towers["ctx_model"], tokenizer(["apoptosis"], TEXTS[2:3], max_length=128, **given))
    ours = model.encode_document([f"apoptosis [SEP] {TEXTS[2]}"], prompt="")
    np.testing.assert_allclose(ours, titled, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"binary.weight": torch.ones(2)}, r"Unexpected: binary\.weight"),
        (
            {"question_model.c_head.0.weight": torch.ones(2)},
            r"question_model in .*Unexpected: c_head\.0\.weight",
        ),
    ],
)
def test_an_archive_of_another_model_is_refused(more, told, tmp_path):
    source, _ = archive(tmp_path / "source", **more)
    with pytest.raises(ModelError, match=told):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like=TUNED)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_without_one_archive_is_refused(tmp_path):
    source, _ = archive(tmp_path / "source")
    (source / "checkpoint-30000").write_bytes((source / "checkpoint-25000").read_bytes())
    with pytest.raises(ModelError, match="contains checkpoint-25000, checkpoint-30000; expected one file"):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like=TUNED)
    torch.save({"state": {}}, source / "checkpoint-25000")
    (source / "checkpoint-30000").unlink()
    with pytest.raises(ModelError, match="is not an archive of MASTER's fine-tuning"):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like=TUNED)
    assert {
        row.importer.split(":")[1]
        for name, row in manager.all("checkpoint").items()
        if name.startswith("master")
    } == {
        "pretrained",
        "towers",
    }
