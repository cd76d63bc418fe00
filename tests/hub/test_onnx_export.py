"""`stzoo export --onnx`."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, WeightedLayerPooling
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, T5Config, T5EncoderModel

from stzoo.adaptation.query_map import adapted_model
from stzoo.cli import main
from stzoo.errors import ExportError, MissingExtraError, RecipeError
from stzoo.hub import onnx_export, upload_files
from stzoo.hub.export import export
from stzoo.models.loaded import folder_revision
from stzoo.testing import TEXTS, tiny_masked_lm, tiny_tokenizer
from stzoo.utils.files import check_replaceable
from stzoo.utils.outputs import files_of

FAMILIES = ("bert", "mpnet", "distilbert", "modernbert")
PROMPTS = {"query": "query: ", "document": ""}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd name")
    return {family: tiny_masked_lm(family, root / family) for family in FAMILIES}


def one_layer(folder):
    """A model of one layer, as the time of the export grows with the layers."""
    name = "n_layers" if folder.name == "distilbert" else "num_hidden_layers"
    return Transformer(str(folder), config_kwargs={name: 1})


def model_of(*modules, **options):
    return SentenceTransformer(modules=list(modules), device="cpu", **options).eval()


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """Models of several families and forms, with ONNX."""
    for package in onnx_export.PACKAGES:
        pytest.importorskip(package, reason="the extra stzoo[onnx] is not installed")
    root = tmp_path_factory.mktemp("exports")
    bert = Transformer(str(tiny["bert"]))
    masked_lm = AutoModelForMaskedLM.from_pretrained(tiny["bert"]).eval()  # without a pooler
    bert.model = masked_lm.base_model
    bert.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    models = {
        "bert": model_of(bert, Pooling(32), Dense(32, 16), Normalize(), prompts=PROMPTS),
        "mpnet": model_of(Transformer(str(tiny["mpnet"])), Pooling(32, "cls")),
        "distilbert": model_of(one_layer(tiny["distilbert"]), Pooling(32, ("cls", "max"))),
    }
    modernbert = model_of(Transformer(str(tiny["modernbert"])), Pooling(32), Normalize(), prompts=PROMPTS)
    query_map = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    models["modernbert"] = adapted_model(modernbert, query_map=query_map)
    routes = {"query": [one_layer(tiny["distilbert"]), Pooling(32, "cls")]}
    routes["document"] = [one_layer(tiny["distilbert"]), Pooling(32)]
    models["router"] = model_of(Router(routes, default_route="document"))
    folders = {}
    for name, model in models.items():
        with pytest.MonkeyPatch.context() as patch:
            if name == "distilbert":
                patch.setattr(onnx_export, "LARGEST", 0)
            head, precision = (masked_lm, "int8") if name == "bert" else (None, "float32")
            folders[name] = export(model, root / name, masked_lm=head, onnx=precision, verify=False)
    return folders, models


@pytest.fixture
def folders(exported):
    return exported[0]


def token_embeddings(folder, file, features):
    """What onnxruntime makes of the file, without any of our code."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "onnx" / file, providers=["CPUExecutionProvider"])
    inputs = {one.name: features[one.name].numpy() for one in session.get_inputs()}
    return torch.from_numpy(session.run(["last_hidden_state"], inputs)[0]), session


@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_gives_the_token_embeddings_of_torch(folders, family):
    folder = folders[family]
    model = SentenceTransformer(str(folder), device="cpu")
    for texts in (["lift"], [""], TEXTS, [TEXTS[0], "lift " * 50, "", "Ωmega 東京"]):
        features = model.preprocess(texts)
        features.setdefault("token_type_ids", torch.zeros_like(features["input_ids"]))
        with torch.no_grad():
            expected = model[0](dict(features))["token_embeddings"]
        found, session = token_embeddings(folder, "model.onnx", features)
        real = features["attention_mask"].bool()
        assert torch.cosine_similarity(found[real], expected[real]).min() >= 0.99999
    names = ["input_ids", "attention_mask", *["token_type_ids"] * (family == "bert")]
    assert [(one.name, one.shape) for one in session.get_inputs()] == [
        (name, ["batch", "sequence"]) for name in names
    ]
    assert [(one.name, one.shape[:2]) for one in session.get_outputs()] == [
        ("last_hidden_state", ["batch", "sequence"])
    ]


def test_the_record_has_the_cosines_and_int8_has_a_graph_of_its_own(folders):
    folder = folders["bert"]
    assert left(folder / "onnx") == ["export.json", "model.onnx", "model_quantized.onnx"]
    record = json.loads((folder / "onnx" / "export.json").read_text())
    full, small = record["files"]["model.onnx"], record["files"]["model_quantized.onnx"]
    assert full["precision"] == "float32"
    assert full["lowest_cosine"] >= 0.99999
    assert small["precision"] == "int8"
    assert 0.9 <= small["lowest_cosine"] <= small["mean_cosine"] < 0.99999
    features = SentenceTransformer(str(folder), device="cpu").preprocess(TEXTS)
    one, other = (token_embeddings(folder, name, features)[0] for name in record["files"])
    assert 0 < (one - other).abs().max() < 1
    assert left(folders["mpnet"] / "onnx") == ["export.json", "model.onnx"]


def test_no_file_has_a_local_path(folders):
    for folder in folders.values():
        for path in folder.rglob("onnx/*"):
            found = path.read_bytes()
            assert not [
                word for word in (b"site-packages", b"odd name", b".py", b"stack_trace") if word in found
            ]


def test_the_folder_without_onnx_is_the_same(exported, tmp_path):
    folder, plain = exported[0]["mpnet"], export(exported[1]["mpnet"], tmp_path / "mpnet", verify=False)
    for path in [path.relative_to(plain) for path in plain.rglob("*") if path.is_file()]:
        assert (folder / path).read_bytes() == (plain / path).read_bytes(), path
    assert folder_revision(folder) == folder_revision(plain)


def test_the_graphs_are_published_and_searched_for_secrets(folders):
    files, stays = upload_files.pack(folders["bert"])
    names = {"onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/export.json"}
    assert names <= files.keys()
    assert "onnx/" not in stays
    assert upload_files.findings("onnx/model.onnx", b"\x08\x00" + b"\x01" * 9 + b"/home/ann/x.py\x00") == [
        "onnx/model.onnx:1: an absolute path"
    ]


def test_large_weights_are_in_a_file_of_the_name_that_servers_fetch(folders):
    assert left(folders["distilbert"] / "onnx") == ["export.json", "model.onnx", "model.onnx_data"]
    for folder in folders.values():
        check_replaceable(folder, files_of(folder))  # as --overwrite does


def test_each_encoder_of_a_router_has_a_graph_in_its_own_folder(folders):
    places = sorted(path.parent.parent.name for path in folders["router"].rglob("model.onnx"))
    assert places == ["document_0_Transformer", "query_0_Transformer"]
    assert not (folders["router"] / "onnx").exists()


def test_a_graph_that_answers_otherwise_is_not_kept(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(onnx_export.LEAST_COSINE, "int8", 0.999999)
    with pytest.raises(ExportError, match=r"ONNX in int8 .* lowest cosine is 0\.9\d+"):
        export(exported[1]["mpnet"], tmp_path / "out", onnx="int8", verify=False)
    assert left(tmp_path) == []


def decoder(bert):
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    config = AutoConfig.for_model(
        "llama", vocab_size=400, pad_token_id=1, max_position_embeddings=64, **sizes
    )
    return of_config(AutoModel.from_config(config), bert.with_name("llama"))


def t5(bert):
    config = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    return of_config(T5EncoderModel(config), bert.with_name("t5"))


def of_config(model, folder):
    tiny_tokenizer("modernbert").save_pretrained(folder)
    model.save_pretrained(folder)
    return [Transformer(str(folder)), Pooling(32)]


def several_layers(bert):
    layers = Transformer(str(bert), config_kwargs={"output_hidden_states": True})
    return [layers, WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1), Pooling(32)]


def no_encoder(bert):
    return [StaticEmbedding(Tokenizer.from_file(str(bert / "tokenizer.json")), embedding_dim=32)]


def half_precision(bert):
    return [Transformer(str(bert), model_kwargs={"dtype": torch.bfloat16}), Pooling(32)]


def remote_code(bert):
    module = Transformer(str(bert))
    module.model.__class__ = type("Own", (type(module.model),), {"__module__": "transformers_modules.own"})
    return [module, Pooling(32)]


REFUSED = {
    decoder: "a llama",
    t5: "a t5",
    several_layers: "several layers",
    no_encoder: "has no Transformer",
    half_precision: "weights in bfloat16",
    remote_code: "Own, which is remote code",
}


@pytest.mark.parametrize("make", REFUSED)
def test_what_servers_cannot_run_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch, make):
    monkeypatch.setattr(onnx_export, "PACKAGES", ())
    model = model_of(*make(tiny["bert"]))
    with pytest.raises(ExportError, match=REFUSED[make]):
        export(model, tmp_path / "out", onnx="float32", extra=lambda _: pytest.fail("written"))
    assert left(tmp_path) == []


def test_code_of_other_packages_has_no_onnx(tiny, tmp_path):
    with pytest.raises(RecipeError, match="leave out --onnx or --no-portable"):
        export(tiny["bert"], tmp_path / "out", onnx="float32", portable=False)
    with pytest.raises(RecipeError, match="expected one of float32, int8"):
        export(tiny["bert"], tmp_path / "out", onnx="int4")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(tiny, tmp_path, monkeypatch, capsys):
    model = export(model_of(Transformer(str(tiny["bert"])), Pooling(32)), tmp_path / "model", verify=False)
    monkeypatch.setattr(onnx_export, "PACKAGES", ("not_installed",))
    with pytest.raises(MissingExtraError, match=r"pip install 'stzoo\[onnx\]'"):
        export(model, tmp_path / "out", onnx="float32")
    with pytest.raises(SystemExit):
        main(["export", str(model), "--output", str(tmp_path / "out"), "--onnx", "int8"])
    assert "pip install 'stzoo[onnx]'" in capsys.readouterr().err.replace("\n", " ")
    assert left(tmp_path) == ["model"]
