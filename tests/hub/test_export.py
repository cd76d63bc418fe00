import json
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    Dropout,
    LayerNorm,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
)
from transformers import AutoModelForMaskedLM, AutoTokenizer

from stzoo.errors import ExportError, ModelError, OutputError
from stzoo.hub import layout, verify_standalone
from stzoo.hub.export import check, export
from stzoo.testing import FAMILIES, TEXTS, tiny_masked_lm, tiny_tokenizer

PROMPTS = {"query": "query: ", "document": "", "other": "Größe: "}
CUSTOM = """
import torch
from sentence_transformers.base.modules import Module

class Scaled(Module):
    config_keys = ["by"]
    def __init__(self, by):
        super().__init__()
        self.by = by
    def forward(self, features, **kwargs):
        features["sentence_embedding"] = features["sentence_embedding"] * self.by
        return features
    def save(self, output_path, *args, **kwargs):
        self.save_config(output_path)
"""


class Halved(Module):
    """A part with a built-in form: half of what came in."""

    def __init__(self, form=0.5):
        super().__init__()
        self.form = form

    def forward(self, features, **_):
        features["sentence_embedding"] = features["sentence_embedding"] * 0.5
        return features

    def save(self, *_, **__):
        raise AssertionError("a module of another package is not saved")

    def to_builtin_modules(self):
        if self.form is None:
            return None
        dense = Dense(32, 32, bias=False, activation_function=None)
        dense.linear.weight.data = torch.eye(32) * self.form
        return [dense, Dropout(0.0)]


class Odd(torch.nn.Module):
    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a source with an odd name")
    return {family: tiny_masked_lm(family, folder / family) for family in FAMILIES}


def transformer(tiny, family="bert", **options):
    return Transformer(str(tiny[family]), **options)


def model_of(*modules, **options):
    return SentenceTransformer(modules=list(modules), device="cpu", **options).eval()


def with_head(tiny, family, *modules):
    masked_lm = AutoModelForMaskedLM.from_pretrained(tiny[family]).eval()
    start = transformer(tiny, family)
    start.model = masked_lm.base_model
    return model_of(start, *(modules or [Pooling(32)]), prompts=PROMPTS), masked_lm


def variants(tiny):
    """Models whose modules or settings have a form of their own."""
    torch.manual_seed(1)
    dense = Dense(32, 16, bias=False, activation_function=torch.nn.GELU())
    yield "cls", model_of(transformer(tiny), Pooling(32, "cls"), similarity_fn_name="dot")
    distilbert = transformer(tiny, "distilbert")  # whose model takes no token_type_ids, which this gives
    distilbert.processor = AutoTokenizer.from_pretrained(tiny["distilbert"], tokenizer_type="bert")
    yield "max", model_of(distilbert, Pooling(32, "max"))
    yield "poolings", model_of(transformer(tiny), Pooling(32, ("cls", "mean", "lasttoken")))
    yield "no prompt", model_of(transformer(tiny), Pooling(32, include_prompt=False), prompts=PROMPTS)
    yield "dense", model_of(transformer(tiny), Pooling(32), dense, Normalize())
    yield "norm", model_of(transformer(tiny), Pooling(32), LayerNorm(32), Dropout(0.5))
    layers = transformer(tiny, config_kwargs={"output_hidden_states": True}, do_lower_case=True)
    weighted = WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1)
    weighted.layer_weights.data = torch.tensor([1.0, 3.0])
    yield "layers", model_of(layers, weighted, CNN(32, 8, [1, 3]), Pooling(16))
    static = StaticEmbedding(tiny_tokenizer("bert").backend_tokenizer, embedding_dim=32)
    routes = {"query": [static], "document": [transformer(tiny), Pooling(32), Halved()]}
    yield "router", model_of(Router(routes, default_route=None, allow_empty_key=False), prompts=PROMPTS)
    own = transformer(tiny, "roberta")
    own.processor = AutoTokenizer.from_pretrained(
        tiny["roberta"], tokenizer_type="roberta", add_prefix_space=True
    )
    own.max_seq_length = 20
    yield "default prompt", model_of(own, Pooling(32), prompts=PROMPTS, default_prompt_name="query")
    half = transformer(tiny, model_kwargs={"dtype": torch.bfloat16})
    yield "bfloat16", model_of(half, Pooling(32), Dense(32, 8), Normalize())
    yield "halved", model_of(transformer(tiny), Pooling(32), Halved())


VARIANTS = ["cls", "max", "poolings", "no prompt", "dense", "norm", "layers", "router", "default prompt"]
VARIANTS += ["bfloat16", "halved"]


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """Every family with its head and every variant, exported, and what a process without stzoo says."""
    root = tmp_path_factory.mktemp("exports")
    pairs, models = {}, {}
    cases = [(family, *with_head(tiny, family)) for family in FAMILIES]
    cases += [(name, model, None) for name, model in variants(tiny)]
    for name, model, masked_lm in cases:
        verify_standalone.store(
            root / f"{name}.safetensors",
            asked := verify_standalone.ask(model),
            verify_standalone.answers(model, asked),
        )
        folder = export(model, root / name, masked_lm=masked_lm, verify=False)
        pairs[name], models[name] = (folder, root / f"{name}.safetensors"), (model, masked_lm)
    said = dict(zip(pairs, check(pairs.values()), strict=True))
    return root, models, said


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_plain_sentence_transformers_gives_the_same_embeddings(exported, name):
    assert exported[2][name] == {"difference": 0.0, "edges": 0.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_also_the_masked_lm_with_nothing_missing(exported, family):
    root, models, _ = exported
    loaded, found = AutoModelForMaskedLM.from_pretrained(root / family, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["mismatched_keys"]
    assert not found["unexpected_keys"]
    tokens = models[family][0].tokenizer(TEXTS, return_tensors="pt", padding=True)
    tokens = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**tokens).logits, models[family][1](**tokens).logits)


def test_what_the_child_compares_can_differ(exported, tmp_path):
    model, asked = exported[1]["cls"][0], verify_standalone.ask(exported[1]["cls"][0])
    wrong = [tensor.clone() for tensor in verify_standalone.answers(model, asked)]
    wrong[0][2, 5] += 1e-4  # the empty text
    verify_standalone.store(tmp_path / "wrong.safetensors", asked, wrong)
    assert verify_standalone.compare(exported[0] / "cls", tmp_path / "wrong.safetensors")["difference"] > 1e-5
    verify_standalone.store(tmp_path / "short.safetensors", asked, [tensor[:, 1:] for tensor in wrong])
    with pytest.raises(ValueError, match="shape"):
        verify_standalone.compare(exported[0] / "cls", tmp_path / "short.safetensors")
    asked["settings"]["max_seq_length"] = 63
    verify_standalone.store(tmp_path / "length.safetensors", asked, wrong)
    with pytest.raises(ValueError, match="max_seq_length"):
        verify_standalone.compare(exported[0] / "cls", tmp_path / "length.safetensors")


def test_the_files_are_spelt_as_older_versions_read_them(exported):
    def read(path):
        return json.loads((exported[0] / path).read_text())

    types = [(module["path"], module["type"]) for module in read("dense/modules.json")]
    old = "sentence_transformers.models."
    assert types == [
        ("", old + "Transformer"),
        ("1_Pooling", old + "Pooling"),
        ("2_Dense", old + "Dense"),
        ("3_Normalize", old + "Normalize"),
    ]
    assert read("dense/2_Dense/config.json") == {
        "in_features": 32,
        "out_features": 16,
        "bias": False,
        "activation_function": "torch.nn.modules.activation.GELU",
    }
    pooling = read("poolings/1_Pooling/config.json")
    assert pooling.pop("word_embedding_dimension") == 32
    assert pooling.pop("include_prompt") is True
    assert len(pooling) == 6
    assert {key for key, value in pooling.items() if value} == {
        "pooling_mode_cls_token",
        "pooling_mode_mean_tokens",
        "pooling_mode_lasttoken",
    }
    assert read("cls/sentence_bert_config.json") == {"max_seq_length": 64, "do_lower_case": False}
    assert read("cls/config_sentence_transformers.json") == {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "dot",
    }
    assert read("layers/1_WeightedLayerPooling/config.json")["word_embedding_dimension"] == 32
    assert read("layers/2_CNN/cnn_config.json")["in_word_embedding_dimension"] == 32
    assert read("bfloat16/config.json")["dtype"] == read("bfloat16/config.json")["torch_dtype"] == "bfloat16"
    tokenizer = read("default prompt/tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["add_prefix_space"] is True
    assert not {"backend", "is_local", "local_files_only", "extra_special_tokens"} & set(tokenizer)
    assert read("default prompt/tokenizer.json")["truncation"] is None
    assert read("max/tokenizer_config.json")["model_input_names"] == ["input_ids", "attention_mask"]
    modernbert = read("modernbert/config.json")
    assert modernbert["global_rope_theta"] == 160000.0
    assert modernbert["local_rope_theta"] == 10000.0
    assert modernbert["global_attn_every_n_layers"] == 2
    router = read("router/router_config.json")
    assert router["parameters"] == {"default_route": None, "allow_empty_key": False}
    assert router["types"]["document_2_Dense"] == old + "Dense"


def test_nothing_is_pickled_and_no_file_says_where_the_model_came_from(exported):
    files = [path for path in exported[0].rglob("*") if path.is_file() and path.parent != exported[0]]
    assert len(files) > 100
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    assert not [path for path in files if b"odd name" in path.read_bytes() or b"pytest" in path.read_bytes()]


def test_extra_special_tokens_stay_whole(tiny, tmp_path):
    model, masked_lm = with_head(tiny, "roberta")
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    masked_lm.resize_token_embeddings(len(model.tokenizer))
    folder = export(model, tmp_path / "out", masked_lm=masked_lm, verify=False)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert written["additional_special_tokens"] == ["<extra>"]
    assert SentenceTransformer(str(folder)).tokenizer.tokenize("wing<extra>lift").count("<extra>") == 1


REFUSED = {
    "a custom module": (lambda t: [t, Pooling(32), Halved(form=None)], "to_builtin_modules"),
    "a custom activation": (lambda t: [t, Pooling(32), Dense(32, 8, activation_function=Odd())], "Tanh"),
    "an activation with options": (
        lambda t: [t, Pooling(32), Dense(32, 8, activation_function=torch.nn.ELU(2.0))],
        "without its options",
    ),
    "a residual": (lambda t: [t, Pooling(32), Dense(32, 8, use_residual=True)], "residual"),
    "poolings in another order": (lambda t: [t, Pooling(32, ("mean", "cls"))], "order"),
    "cls without the prompt": (lambda t: [t, Pooling(32, "cls", include_prompt=False)], "another token"),
    "normalised tokens": (lambda t: [t, Normalize("token_embeddings"), Pooling(32)], "token embeddings"),
    "an LSTM": (lambda t: [t, LSTM(32, 8), Pooling(16)], "LSTM has no portable form"),
    "a router by modality": (
        lambda t: [Router({"a": [t, Pooling(32)]}, route_mappings={(None, "text"): "a"})],
        "modality",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_older_versions_cannot_express_is_refused(tiny, tmp_path, case):
    modules, words = REFUSED[case]
    with pytest.raises(ExportError, match=words):
        export(model_of(*modules(transformer(tiny))), tmp_path / "out", verify=False)
    assert left(tmp_path) == []


SETTINGS = {
    "a length by task": (lambda m: setattr(m[0], "query_length", 8), "query_length"),
    "another modality": (lambda m: m[0].modality_config.update(message=dict(method="forward")), "message"),
    "an adapter": (lambda m: setattr(m[0].model, "peft_config", {}), "merge"),
    "a shorter embedding": (lambda m: setattr(m, "truncate_dim", 8), "truncate_dim"),
    "scaled local attention": (
        lambda m: (
            m[0].model.config.rope_parameters["sliding_attention"].update(rope_type="linear", factor=2.0)
        ),
        "rotary",
    ),
    "irregular layers": (lambda m: m[0].model.config.layer_types.reverse(), "rotary"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_would_be_lost_are_refused(tiny, tmp_path, case):
    change, words = SETTINGS[case]
    change(model := model_of(transformer(tiny, "modernbert"), Pooling(32)))
    with pytest.raises(ExportError, match=words):
        export(model, tmp_path / "out", verify=False)
    assert left(tmp_path) == []


def test_a_masked_lm_of_other_weights_is_refused(tiny, tmp_path):
    other = AutoModelForMaskedLM.from_pretrained(tiny["bert"])
    with pytest.raises(ExportError, match="base_model"):
        export(model_of(transformer(tiny), Pooling(32)), tmp_path / "out", masked_lm=other, verify=False)
    assert left(tmp_path) == []


def test_an_export_that_answers_otherwise_is_not_kept(tiny, tmp_path):
    model = model_of(transformer(tiny), Pooling(32), Halved(form=0.51))  # says it is what it is not
    old = export(model, tmp_path / "out", verify=False)
    (old / "README.md").write_text("the old one")
    model.train()
    model[0].eval()
    model[0].config._attn_implementation = "flash_attention_2"  # as after training on a GPU
    with pytest.raises(ExportError, match=r"differ from the model's by \d\.\de-0\d"):
        export(model, old, overwrite=True)
    assert left(tmp_path) == ["out"]
    assert (old / "README.md").read_text() == "the old one"
    assert model[0].config._attn_implementation == "flash_attention_2"
    assert [module.training for module in model] == [False, True, True]


def test_code_of_other_packages_is_stored_only_on_request_and_says_so(tiny, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "scaled_by.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path / "code")
    import scaled_by

    model = model_of(transformer(tiny), Pooling(32), scaled_by.Scaled(3.0))
    folder = export(model, tmp_path / "out", portable=False)  # loads it, trusted, in a process of its own
    monkeypatch.delitem(sys.modules, "scaled_by")
    assert (folder / "scaled_by.py").exists()
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    assert json.loads((folder / "modules.json").read_text())[2]["type"] == "scaled_by.Scaled"
    with pytest.raises(ModelError, match="trust_remote_code"):
        export(folder, tmp_path / "again")


def test_a_folder_that_is_there_stays_unless_it_is_a_model_to_replace(tiny, tmp_path):
    model = model_of(transformer(tiny), Pooling(32))
    (tmp_path / "empty").mkdir()
    folder = export(model, tmp_path / "empty", verify=False)
    with pytest.raises(OutputError, match="overwrite"):
        export(model, folder, verify=False)
    export(model, folder, verify=False, overwrite=True)
    for mine in ("notes.txt", "1_Pooling/notes.txt", "train.py"):
        (folder / mine).write_text("mine")
        with pytest.raises(OutputError, match=f"not replace: {mine}"):
            export(model, folder, verify=False, overwrite=True)
        (folder / mine).unlink()
    for more in ("checkpoint-5", "checkpoints", ".git"):
        (folder / more).mkdir()
        with pytest.raises(OutputError, match=more):
            export(model, folder, verify=False, overwrite=True)
        (folder / more).rmdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    for overwrite in (False, True):  # nor does it suggest --overwrite, which would be refused
        with pytest.raises(OutputError, match=r"not a model folder .* is not replaced\. Use another"):
            export(model, tmp_path / "thesis", verify=False, overwrite=overwrite)
    with pytest.raises(OutputError, match="is a file"):
        export(model, tmp_path / "thesis" / "chapter.tex", verify=False, overwrite=True)
    assert left(tmp_path) == ["empty", "thesis"]
    assert left(tmp_path / "thesis") == ["chapter.tex"]


def test_more_files_go_in_but_none_over_the_model_and_none_pickled(tiny, tmp_path):
    model = model_of(transformer(tiny), Pooling(32))
    (tmp_path / "decoders").mkdir()
    (tmp_path / "decoders" / "decoder.safetensors").write_bytes(b"weights")
    (tmp_path / "training_args.bin").write_bytes(b"pickled")
    out = tmp_path / "out"
    out.mkdir()
    folder = export(model, out / "1", extra={"pretraining": tmp_path / "decoders"}, verify=False)
    assert (folder / "pretraining" / "decoder.safetensors").read_bytes() == b"weights"
    folder = export(model, out / "2", extra=lambda d: (d / "note").write_text(d.name), verify=False)
    assert (folder / "note").read_text() != "2"  # it was given the draft
    for name, words in {
        "../escape": "another name",
        "config.json": "another name",
        "a.bin": "pickled",
    }.items():
        with pytest.raises(ExportError, match=words):
            export(model, out / "3", extra={name: tmp_path / "training_args.bin"}, verify=False)
    assert left(out) == ["1", "2"]


def test_a_folder_that_comes_into_being_meanwhile_is_not_replaced(tiny, tmp_path):
    def another(_):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "modules.json").write_text("of another export")

    with pytest.raises(OutputError, match="exists already"):
        export(model_of(transformer(tiny), Pooling(32)), tmp_path / "out", extra=another, verify=False)
    assert left(tmp_path) == ["out"]
    assert (tmp_path / "out" / "modules.json").read_text() == "of another export"


def test_a_path_is_a_model_if_it_is_one(tiny, tmp_path):
    folder = export(model_of(transformer(tiny), Pooling(32, "cls")), tmp_path / "1", verify=False)
    again = export(str(folder), tmp_path / "2", verify=False)
    for path in (path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        if path.name == "README.md":
            continue  # which names the folder
        assert (again / path).read_bytes() == (folder / path).read_bytes(), path
    for wrong in (tiny["bert"], tmp_path, tmp_path / "nowhere", 7):
        with pytest.raises(ModelError):
            export(wrong, tmp_path / "3", verify=False)
    (folder / "modules.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        export(folder, tmp_path / "3", verify=False)
    assert left(tmp_path) == ["1", "2"]


def test_the_readme_is_a_card_the_hub_accepts(exported):
    from huggingface_hub import ModelCard

    data = ModelCard.load(exported[0] / "cls" / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert "feature-extraction" in data.tags


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(modes=st.lists(st.sampled_from(Pooling.POOLING_MODES), min_size=1, unique=True), prompt=st.booleans())
def test_poolings_come_back_as_they_were_or_are_refused(tmp_path, modes, prompt):
    pooling = Pooling(8, tuple(modes), include_prompt=prompt)
    try:
        layout._write_module(pooling, tmp_path)
    except ExportError:
        assert ("cls" in modes and not prompt) or modes != sorted(modes, key=Pooling.POOLING_MODES.index)
    else:
        assert Pooling.load(str(tmp_path)).get_config_dict() == pooling.get_config_dict()
