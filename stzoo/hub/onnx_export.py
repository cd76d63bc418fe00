"""Adds the encoder of an exported model as an ONNX graph, for servers that run ONNX.

The graph takes token ids and returns the token embeddings of the last layer. The programs that serve it read
the pooling and all later modules from the folder. sentence-transformers (backend="onnx") and
text-embeddings-inference look for onnx/model.onnx, and for weights of more than 2 GB in onnx/model.onnx_data;
sentence-transformers does so in the folder of each Transformer of a Router, too.

torch exports the graph itself: optimum-onnx needs an older transformers than stzoo.
"""

import contextlib
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling
from transformers import MODEL_FOR_MASKED_LM_MAPPING
from transformers.modeling_outputs import BaseModelOutput

from stzoo.errors import ExportError, MissingExtraError, first_line
from stzoo.hub import layout, verify_standalone
from stzoo.utils.files import write_json
from stzoo.utils.messages import notify

FOLDER, RECORD = "onnx", "export.json"
FILES = {"float32": "model.onnx", "int8": "model_quantized.onnx"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"
LEAST_COSINE = {"float32": 0.99999, "int8": 0.9}
LARGEST = 1_900_000_000  # bytes of weights in the graph's own file; protobuf's limit is 2 GiB
TEXTS = [
    "lift",
    "What is photosynthesis?",
    "Interest rates rose while unemployment fell in most countries.",
    "The treaty was signed after a long and costly war. Twelve kingdoms kept it for a century, until the "
    "harvest failed three times and the prices of grain doubled.",
    *verify_standalone.TEXTS,
]


def check_installed() -> None:
    """Checks that the packages of the extra are installed.

    Raises:
        MissingExtraError: If one is not.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise MissingExtraError(f"{missing[0]}, for ONNX,", "onnx")


def check_model(model: Any) -> None:
    """Checks that ONNX graphs can take the place of the encoders of a model in the programs that serve it.

    Raises:
        ExportError: If not.
    """
    modules = layout.built_in(layout.flat(model))
    encoders = [module.model for module in modules if isinstance(module, Transformer)]
    if not encoders:
        raise ExportError(
            "the model has no Transformer, so there is nothing to write as ONNX; leave out --onnx."
        )
    for encoder in encoders:
        config = encoder.config
        if not type(encoder).__module__.startswith("transformers.models."):
            raise ExportError(f"ONNX cannot be written for {type(encoder).__name__}, which is remote code.")
        decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
        if decodes or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise ExportError(
                f"ONNX is written for encoders with a masked LM, such as BERT, RoBERTa and ModernBERT; this "
                f"is a {config.model_type}, and servers give decoders and T5 other inputs."
            )
    if half := next((p.dtype for p in model.parameters() if p.dtype != torch.float32), None):
        raise ExportError(
            f"the model has weights in {str(half).removeprefix('torch.')}, but ONNX needs float32; "
            "load it with stzoo.load(MODEL, dtype='float32') and export that."
        )
    if any(isinstance(module, WeightedLayerPooling) for module in modules):
        raise ExportError("the pooling reads several layers, of which an ONNX graph returns only the last.")


def write(folder: Path, precision: str) -> None:
    """Adds the graph of each Transformer to an exported folder, and compares the embeddings.

    Args:
        folder: An exported model, which sentence-transformers loads.
        precision: "float32", or "int8" for a second, quantised graph next to that of float32.

    Raises:
        ExportError: If the model cannot be exported, or the lowest cosine is below LEAST_COSINE.
    """
    model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True).eval()
    expected = _embeddings(model)
    encoders = _encoders(model, folder)
    for path, module in encoders.items():
        (path / FOLDER).mkdir()
        with _quiet():
            _write_graph(module, path / FOLDER / FILES["float32"])
            if precision == "int8":
                _quantize(path / FOLDER / FILES["float32"], path / FOLDER / FILES["int8"])
    cosines = {}
    for kind in dict.fromkeys(["float32", precision]):
        for path, module in encoders.items():
            module.model.forward = _runner(path / FOLDER / FILES[kind])
        found = torch.cosine_similarity(_embeddings(model), expected)
        mean, lowest = float(found.mean()), float(found.min())
        if not lowest >= LEAST_COSINE[kind]:
            hint = "; use --onnx float32" if kind == "int8" else ""
            raise ExportError(
                f"embeddings by ONNX in {kind} differ from the model's: the lowest cosine is {lowest:.5f}, "
                f"less than {LEAST_COSINE[kind]}{hint}."
            )
        if kind == "int8":
            notify(
                f"{FOLDER}/{FILES[kind]} changes embeddings: their cosine to those in float32 is {mean:.4f} "
                f"on average and {lowest:.4f} at the lowest."
            )
        cosines[FILES[kind]] = {"precision": kind, "mean_cosine": mean, "lowest_cosine": lowest}
    versions = {name: version(name).partition("+")[0] for name in ("torch", "transformers", *PACKAGES)}
    for path in encoders:
        write_json(path / FOLDER / RECORD, {"files": cosines, "texts": len(TEXTS), "versions": versions})


def _encoders(model: Any, folder: Path) -> dict[Path, Any]:
    """The Transformers of a loaded model, also those of its routes, by their folders."""
    listing = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    places = {folder / entry["path"]: model[entry["idx"]] for entry in listing}
    for place, module in list(places.items()):
        if isinstance(module, Router):
            config = json.loads((place / "router_config.json").read_text(encoding="utf-8"))
            routes: Any = module.sub_modules
            for route, paths in config["structure"].items():
                places |= {place / path: part for path, part in zip(paths, routes[route], strict=True)}
    return {place: module for place, module in places.items() if isinstance(module, Transformer)}


def _embeddings(model: Any) -> torch.Tensor:
    """Embeddings [N, D] of TEXTS for each prompt and route: in one batch, with padding, and one by one."""
    asked = verify_standalone.ask(model)
    batches = [TEXTS, *([text] for text in TEXTS)]
    return torch.cat(
        [tensor for texts in batches for tensor in verify_standalone.answers(model, asked | {"texts": texts})]
    )


class _Encoder(torch.nn.Module):
    """A transformers model with the inputs and the output of the graph."""

    def __init__(self, model: Any, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).last_hidden_state


def _runner(path: Path) -> Callable[..., BaseModelOutput]:
    """A function that runs an ONNX file, in place of the forward of a transformers model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(**inputs: Any) -> BaseModelOutput:
        given = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
        return BaseModelOutput(last_hidden_state=torch.from_numpy(session.run([OUTPUT], given)[0]))

    return run


def _write_graph(module: Any, path: Path) -> None:
    """Writes the graph of a Transformer."""
    from onnxscript import ir

    tokens = module.tokenizer(["one text", "another, which is longer"], padding=True, return_tensors="pt")
    accepted = inspect.signature(module.model.forward).parameters
    names = [name for name in INPUTS if name in tokens and name in accepted]
    try:
        program: Any = torch.onnx.export(
            _Encoder(module.model, names).eval(),
            tuple(tokens[name] for name in names),
            dynamo=True,
            input_names=names,
            output_names=[OUTPUT],
            dynamic_shapes=(tuple({0: "batch", 1: "sequence"} for _ in names),),
            verbose=False,
        )
    except Exception as error:  # of many kinds, depending on the architecture
        raise ExportError(
            f"torch cannot export {type(module.model).__name__} to ONNX: {first_line(error)}"
        ) from error
    graph = program.model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for part in (program.model, graph, *graph.all_nodes(), *values):
        part.metadata_props.clear()  # stack traces, with local paths
    size = sum(weight.nbytes for weight in module.model.parameters())
    ir.save(program.model, path, external_data=f"{path.name}_data" if size > LARGEST else None)


def _quantize(source: Path, path: Path) -> None:
    """Writes a graph with 8-bit weights.

    With one scale per channel, the mean cosine of all-MiniLM-L6-v2 is 0.99 instead of 0.95. Weights have 7 of
    the 8 bits, as the products of full ones overflow on x86 CPUs without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        quantize_dynamic(source, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    except Exception as error:  # of many kinds, depending on the graph
        raise ExportError(f"onnxruntime cannot quantise the graph: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides warnings of the exporter and the quantiser, which are about their own code."""
    root, disabled = logging.getLogger(), logging.root.manager.disable
    handlers, root.handlers = root.handlers, [logging.NullHandler()]  # the quantiser's call would add one
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers = handlers
