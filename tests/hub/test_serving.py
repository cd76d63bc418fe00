"""docs/guides/serve.md: its code gives stzoo's own vectors where stzoo is not installed."""

import json
import os
import sys
from importlib.util import find_spec
from typing import Annotated, Literal

import pytest
import torch
from compat import serve
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.torch import load_file
from support import processes
from tokenizers import Tokenizer
from transformers import BertConfig as TransformersBertConfig
from transformers import BertModel

LOST = ["dot:bare_llama_index", "dense:bare_llama_index"]


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    serve.make(folder, base)
    return folder


@pytest.fixture(scope="module")
def lines(models):
    """What the blocks of code said, by "model:block"; all in one process, because imports take seconds."""
    environment = {**os.environ, "PYTHONPATH": "", "LLAMA_INDEX_CACHE_DIR": str(models / "cache")}
    command = [sys.executable, "-P", serve.__file__, models, *serve.HERE, *LOST]
    done = processes.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {f"{line['model']}:{line['code']}": line for line in found}


def said(pair, lines):
    if "llama_index" in pair and not find_spec("llama_index"):
        pytest.skip("LlamaIndex is not installed")
    return lines[pair]


@pytest.mark.parametrize("pair", serve.HERE)
def test_the_code_of_the_guide_gives_the_models_own_vectors(pair, lines):
    found = said(pair, lines)
    assert found.get("difference", found) <= 1e-5


@pytest.mark.parametrize("pair", LOST)
def test_without_those_arguments_llamaindex_gives_other_vectors(pair, lines):
    assert said(pair, lines)["difference"] > 1e-2


def test_all_code_of_the_guide_is_run_here_or_by_make_compat():
    run_somewhere = {pair.split(":")[1] for pair in [*serve.HERE, *LOST, *serve.ELSEWHERE]}
    assert run_somewhere == set(serve.blocks()[1])


# What text-embeddings-inference reads of a folder, as its Rust structs do: a missing or null field without a
# default is an error, and so is another type; fields that they do not name are passed over.
USize = Annotated[int, Field(ge=0)]


class Read(BaseModel):
    model_config = ConfigDict(strict=True)


class ModelConfig(Read):
    architectures: list[str]
    model_type: str
    max_position_embeddings: USize
    pad_token_id: USize = 0
    id2label: dict[str, str] | None = None
    label2id: dict[str, USize] | None = None


class BertConfig(Read):
    vocab_size: USize
    hidden_size: USize
    num_hidden_layers: USize
    num_attention_heads: USize
    intermediate_size: USize
    hidden_act: Literal["gelu", "relu", "swiglu", "silu"]
    hidden_dropout_prob: float
    max_position_embeddings: USize
    type_vocab_size: USize
    initializer_range: float
    layer_norm_eps: float
    pad_token_id: USize
    position_embedding_type: Literal["absolute"] = "absolute"
    use_cache: bool = False
    classifier_dropout: float | None = None
    id2label: dict[str, str] | None = None


class PoolConfig(Read):
    pooling_mode_cls_token: bool
    pooling_mode_mean_tokens: bool
    pooling_mode_lasttoken: bool = False


class STConfig(Read):
    max_seq_length: USize


class NewSTConfig(Read):
    prompts: dict[str, str] | None = None


class ModuleConfig(Read):
    idx: USize
    name: str
    path: str
    type: Literal[
        tuple(f"sentence_transformers.models.{n}" for n in ("Dense", "Normalize", "Pooling", "Transformer"))
    ]


class DenseConfig(Read):
    in_features: USize
    out_features: USize
    bias: bool
    activation_function: (
        Literal["torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"] | None
    ) = None


def bert_tensors(config):
    """Names and shapes of the tensors that bert.rs asks for."""
    wide, inner = config.hidden_size, config.intermediate_size
    layer = {"attention.self.query": (wide, wide), "attention.self.key": (wide, wide)}
    layer |= {"attention.self.value": (wide, wide), "attention.output.dense": (wide, wide)}
    layer |= {"intermediate.dense": (inner, wide), "output.dense": (wide, inner)}
    rows = {"word": config.vocab_size, "token_type": config.type_vocab_size}
    rows["position"] = config.max_position_embeddings
    found = {f"embeddings.{name}_embeddings.weight": (count, wide) for name, count in rows.items()}
    norms = ["embeddings.LayerNorm"]
    for place in (f"encoder.layer.{n}" for n in range(config.num_hidden_layers)):
        found |= {f"{place}.{name}.weight": shape for name, shape in layer.items()}
        found |= {f"{place}.{name}.bias": shape[:1] for name, shape in layer.items()}
        norms += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
    return found | {f"{norm}.{part}": (wide,) for norm in norms for part in ("weight", "bias")}


def as_text_embeddings_inference(folder, texts, prompt_name, normalize):
    """Vectors from what that server reads of a folder and nothing else, one text at a time.

    Source: https://github.com/huggingface/text-embeddings-inference, router/src/lib.rs and
    backends/candle/src/lib.rs at commit a28ad28f39e0633749a21b74af23617fa86a0d0c (pooling, length, prompts,
    files); backends/src/lib.rs at 028192f13e246cd375cb9c19a965a73f6d6e1ff7 (modules.json);
    backends/candle/src/models/dense.rs at 0d1b698f4617c7c20103c819fdab08cae3d5ec86 and bert.rs at
    006bfce66fb13eca74703df3b70ef6532a6082bd (tensors); router/src/http/types.rs at
    265deb2ad692067eeda77a746b3975b46ba53920 (prompt_name, normalize, truncate).

    Unlike it: the layers themselves are run by transformers.
    """

    def read(name, kind):
        return kind.model_validate_json((folder / name).read_text())

    general, config = read("config.json", ModelConfig), read("config.json", BertConfig)
    assert general.model_type == "bert"
    assert not any(name.endswith("Classification") for name in general.architectures)

    tensors = load_file(folder / "model.safetensors")
    wanted = bert_tensors(config)
    prefix = "" if wanted.keys() <= tensors.keys() else "bert."
    weights = {name: tensors[prefix + name] for name in wanted}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == wanted
    bert = BertModel(TransformersBertConfig(**config.model_dump()), add_pooling_layer=False).eval()
    assert not bert.load_state_dict(weights, strict=False).unexpected_keys

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(read("sentence_bert_config.json", STConfig).max_seq_length)
    prompt = read("config_sentence_transformers.json", NewSTConfig).prompts[prompt_name]
    pool = read("1_Pooling/config.json", PoolConfig)
    modules = TypeAdapter(list[ModuleConfig]).validate_json((folder / "modules.json").read_text())
    found = []
    for text in texts:
        coded = tokenizer.encode(prompt + text)
        ids, types = torch.tensor([coded.ids]), torch.tensor([coded.type_ids])
        hidden = bert(input_ids=ids, token_type_ids=types).last_hidden_state[0]
        vector = hidden[0] if pool.pooling_mode_cls_token else hidden.mean(0)
        assert pool.pooling_mode_cls_token or pool.pooling_mode_mean_tokens
        for path in (folder / module.path for module in modules if module.type.endswith("Dense")):
            dense = DenseConfig.model_validate_json((path / "config.json").read_text())
            linear = load_file(path / "model.safetensors")
            assert linear["linear.weight"].shape == (dense.out_features, dense.in_features)
            bias = linear["linear.bias"] if dense.bias else None
            vector = torch.nn.functional.linear(vector, linear["linear.weight"], bias)
            vector = vector.tanh() if str(dense.activation_function).endswith("Tanh") else vector
        found.append(torch.nn.functional.normalize(vector, dim=0) if normalize else vector)
    return torch.stack(found)


@pytest.mark.parametrize(("name", "normalize"), [("dot", False), ("unit", True), ("dense", False)])
@torch.inference_mode()
def test_text_embeddings_inference_finds_all_in_the_folder(name, normalize, models):
    tuned, answers = models / name / "runs" / "tuned", load_file(models / name / "answers.safetensors")
    for number, asked in enumerate(serve.asked()):
        for texts, prompt, kind in (("questions", "query", "queries"), ("texts", "document", "passages")):
            mine = as_text_embeddings_inference(tuned, asked[texts], prompt, normalize)
            torch.testing.assert_close(mine, answers[f"{number} {kind}"], rtol=0, atol=1e-5)


def test_text_embeddings_inference_cannot_read_a_router(models):
    with pytest.raises(ValidationError, match="Router"):
        TypeAdapter(list[ModuleConfig]).validate_json((models / "router/runs/tuned/modules.json").read_text())
