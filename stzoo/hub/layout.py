"""The folder layout that sentence-transformers 5.x and 6.x both read, with the same embeddings.

It follows the sources of 5.1.2, 5.7.0 and 6.2.0 (modules) and of transformers 4.57 and 5.23 (tokenizers and
configurations); `make compat` tests it with all three. Each function below writes one part in the older
format, which newer versions still accept, and refuses what the older one cannot express.
"""

import inspect
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import Module

from stzoo.errors import ExportError

POOLING_SWITCHES = {  # in the order in which every version joins them
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
RENAMED = {
    "CNN": {"in_embedding_dimension": "in_word_embedding_dimension"},
    "WeightedLayerPooling": {"embedding_dimension": "word_embedding_dimension"},
}
# without LSTM: it reads `sentence_lengths` from WordEmbeddings, whose file format differs between versions
BUILT_IN = {
    *("Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout", "WeightedLayerPooling", "CNN"),
    *("Router", "StaticEmbedding", "WordWeights"),
}
TEXT_ONLY = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}


def is_built_in(module: Any) -> bool:
    """True if the module's class is one of sentence-transformers itself, not a subclass."""
    return type(module).__module__.startswith("sentence_transformers.")


def flat(model: Any) -> Iterator[Any]:
    """The modules of a model, including those inside its routers."""
    return (module for module in model.modules() if isinstance(module, Module))


def write(model: Any, draft: Path, masked_lm: Any = None) -> None:
    """Writes the model's modules and settings into a folder.

    Args:
        model: The SentenceTransformer.
        draft: Folder to write to.
        masked_lm: As in `export`.

    Raises:
        ExportError: If a part has no form that both versions read.
    """
    if model.truncate_dim is not None:
        raise ExportError(
            "a model folder cannot store truncate_dim; set it to None, and pass it when loading."
        )
    listing = []
    for index, module in enumerate(built_in(model)):
        name = type(module).__name__
        path = "" if index == 0 and module.save_in_root else f"{index}_{name}"
        _write_module(module, draft / path, masked_lm if index == 0 else None)
        listing.append(
            dict(idx=index, name=str(index), path=path, type=f"sentence_transformers.models.{name}")
        )
    _write_json(draft / "modules.json", listing)
    # without "__version__", about which older versions warn
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": model.prompts,
        "default_prompt_name": model.default_prompt_name,
        "similarity_fn_name": model.similarity_fn_name,
    }
    _write_json(draft / "config_sentence_transformers.json", settings)


def built_in(modules: Iterable[Any]) -> list[Any]:
    """The modules, with those of other packages replaced by their `to_builtin_modules()`.

    Raises:
        ExportError: If one cannot be replaced.
    """
    result: list[Any] = []
    for module in modules:
        name = type(module).__name__
        if not is_built_in(module):
            parts = module.to_builtin_modules() if hasattr(module, "to_builtin_modules") else None
            if parts is None:
                raise ExportError(
                    f"{name} is not a module of sentence-transformers and cannot be expressed by its modules"
                    " (to_builtin_modules). portable=False stores it with its code, which users must trust."
                )
            result += built_in(parts)
        elif name not in BUILT_IN:
            raise ExportError(f"{name} has no portable form. Portable: {', '.join(sorted(BUILT_IN))}.")
        else:
            result.append(module)
    return result


def _write_module(module: Any, folder: Path, masked_lm: Any = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = type(module).__name__
    if name == "Transformer":
        _write_transformer(module, folder, masked_lm)
    elif name == "Router":
        _write_router(module, folder)
    elif name == "Pooling":
        _write_json(folder / "config.json", _pooling(module))
    else:
        config = _dense(module) if name == "Dense" else module.get_config_dict()
        if name == "Normalize" and set(config.values()) != {"sentence_embedding"}:
            raise ExportError("this Normalize works on token embeddings, which 5.x does not support.")
        module.save(str(folder))
        if config:
            renamed = {RENAMED.get(name, {}).get(key, key): value for key, value in config.items()}
            _write_json(folder / module.config_file_name, renamed)


def _pooling(module: Any) -> dict[str, Any]:
    modes = [module.pooling_mode] if isinstance(module.pooling_mode, str) else list(module.pooling_mode)
    if modes != [mode for mode in POOLING_SWITCHES if mode in modes]:
        raise ExportError(
            f"pooling modes must be in the order {', '.join(POOLING_SWITCHES)}; got {', '.join(modes)}."
        )
    if "cls" in modes and not module.include_prompt:
        raise ExportError("cls pooling that excludes the prompt reads another token in 5.x than in 6.x.")
    switches = {switch: mode in modes for mode, switch in POOLING_SWITCHES.items()}
    return {
        "word_embedding_dimension": module.embedding_dimension,
        **switches,
        "include_prompt": module.include_prompt,
    }


def _dense(module: Any) -> dict[str, Any]:
    activation = module.activation_function
    kind = f"{type(activation).__module__}.{type(activation).__name__}"
    if not kind.startswith("torch."):
        raise ExportError(f"Dense has the activation {kind}, which is not in torch and would load as Tanh.")
    if repr(type(activation)()) != repr(activation):
        raise ExportError(f"Dense has the activation {activation!r}, which would load without its options.")
    if module.use_residual or {module.module_input_name, module.module_output_name} != {"sentence_embedding"}:
        raise ExportError(
            "5.x does not support Dense with a residual, or with features other than sentence_embedding."
        )
    config = {key: getattr(module, key) for key in ("in_features", "out_features", "bias")}
    return {**config, "activation_function": kind}


def _write_router(module: Any, folder: Path) -> None:
    if module.route_mappings or "text" in module.sub_modules:
        raise ExportError(
            "5.x does not support a Router that chooses by modality; name its routes by task only."
        )
    paths: dict[int, str] = {}
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    for route, modules in module.sub_modules.items():
        structure[route] = []
        for index, part in enumerate(built_in(modules)):
            name = type(part).__name__
            path = paths.setdefault(id(part), f"{route}_{index}_{name}")
            structure[route].append(path)
            if path not in types:
                types[path] = f"sentence_transformers.models.{name}"
                _write_module(part, folder / path)
    parameters = {key: getattr(module, key) for key in ("default_route", "allow_empty_key")}
    _write_json(folder / "router_config.json", dict(types=types, structure=structure, parameters=parameters))


def _write_transformer(module: Any, folder: Path, masked_lm: Any) -> None:
    other = {key: value for key, value in module.get_config_dict().items() if TEXT_ONLY.get(key) != value}
    other.pop("unpad_inputs", None)  # only changes the speed
    if other or module.backend != "torch":
        raise ExportError(
            f"the Transformer has settings that 5.x does not support: {other or module.backend}."
        )
    if hasattr(module.model, "peft_config"):
        raise ExportError("the model has an adapter; merge it into the weights first (merge_and_unload).")
    (module.model if masked_lm is None else masked_lm).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= _rotary(config)
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]  # the older name
    _write_json(folder / "config.json", config)
    length = module.max_seq_length
    text = dict(max_seq_length=None if length is None or length > 10**9 else length)
    # a fast tokenizer lower-cases by itself; in 5.x the switch would also lower-case "[MASK]"
    text["do_lower_case"] = module.do_lower_case and not module.tokenizer.is_fast
    if config.get("dtype", "float32") != "float32":
        text["model_args"] = {"torch_dtype": "auto"}  # otherwise transformers 4 loads float32
    _write_json(folder / "sentence_bert_config.json", text)
    _write_tokenizer(module.tokenizer, folder, inspect.signature(module.model.forward).parameters)


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings in the form of transformers 4, which silently ignores `rope_parameters`."""
    rotary = config.get("rope_parameters")
    if not rotary:
        return {}
    if "rope_theta" in rotary:
        rest = {key: value for key, value in rotary.items() if key != "rope_theta"}
        scaling = {} if rest.get("rope_type", "default") == "default" else {"rope_scaling": rest}
        return {"rope_theta": rotary["rope_theta"], **scaling}
    kinds = {kind: part for kind, part in rotary.items() if part.get("rope_type", "default") == "default"}
    every = next(
        (n for n in range(1, 1 + len(config["layer_types"])) if _every(n, config["layer_types"])), None
    )
    if config["model_type"] != "modernbert" or len(kinds) != len(rotary) or every is None:
        raise ExportError(f"transformers 4 does not support these rotary settings: {rotary}.")
    return {
        "global_rope_theta": rotary["full_attention"]["rope_theta"],
        "local_rope_theta": rotary["sliding_attention"]["rope_theta"],
        "global_attn_every_n_layers": every,
    }


def _every(n: int, kinds: list[str]) -> bool:
    return kinds == ["sliding_attention" if index % n else "full_attention" for index in range(len(kinds))]


def _write_tokenizer(tokenizer: Any, folder: Path, accepted: Iterable[str]) -> None:
    """Writes a tokenizer's tokenizer.json, with the generic class that reads only this file.

    The classes named after a model rebuild parts of it, and transformers 4 and 5 do so in different ways.
    """
    fast = tokenizer.is_fast
    if fast:  # otherwise the truncation and padding of the last call are stored
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if fast:
        config = dict(tokenizer.special_tokens_map, tokenizer_class="PreTrainedTokenizerFast")
        before = tokenizer.backend_tokenizer.pre_tokenizer
        state = {} if before is None else json.loads(before.__getstate__())
        if "add_prefix_space" in state:  # otherwise transformers 4 sets it to False
            config["add_prefix_space"] = state["add_prefix_space"]
        for key in ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces"):
            config[key] = getattr(tokenizer, key)
    if tokenizer.extra_special_tokens:  # transformers 4 expects a mapping under this name
        config.pop("extra_special_tokens", None)
        config["additional_special_tokens"] = list(map(str, tokenizer.extra_special_tokens))
    config["model_input_names"] = [name for name in tokenizer.model_input_names if name in accepted]
    private = {"is_local", "local_files_only"}
    _write_json(path, {key: value for key, value in config.items() if key not in private})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
