"""Loads model folders with plain sentence-transformers and compares their embeddings with stored ones.

    python -P verify_standalone.py [--trust] FOLDER ANSWERS [FOLDER ANSWERS …]

prints a line of JSON per folder: {"difference": float, "edges": float} or {"error": str}. `export` runs this
file in a process that cannot import stzoo, and `make compat` runs it with older versions of
sentence-transformers, so it imports nothing of stzoo. `publish`, which has no model to compare with, runs

    python -P verify_standalone.py --twice FOLDER

which prints {"dimension": int, "finite": bool, "same": bool} or {"error": str}.

ANSWERS is a safetensors file written by `store`: the embeddings of each call of `encode`, and in the metadata
the questions of `ask`, with the settings of the loaded model.
"""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

TEXTS = [
    "How do I remove a directory tree?",
    "wing lift " * 600,  # longer than the limit of most models, to compare the truncation too
    "",
    "Größe, naïve, 東京の天気, Ωmega, 👩‍🔬, a [MASK] b <mask> c, \t two  spaces",
]


def ask(model: Any) -> dict[str, Any]:
    """The questions for a model: TEXTS through each route of its routers, without a prompt and with each."""
    routers = [module for module in model.modules() if hasattr(module, "default_route")]
    tasks = [{"task": route} for router in routers for route in router.sub_modules]
    if all(router.default_route for router in routers):
        tasks.insert(0, {})
    prompts = [{}, *({"prompt_name": name} for name, prompt in model.prompts.items() if prompt)]
    calls = [task | prompt for task in tasks for prompt in prompts]
    return {"texts": TEXTS, "calls": calls, "settings": settings(model)}


def settings(model: Any) -> dict[str, Any]:
    """The settings of a loaded model that must stay the same."""
    length = model.max_seq_length
    return {
        "max_seq_length": None if length is None or length > 10**9 else length,  # both mean "no limit"
        "prompts": dict(model.prompts),
        "default_prompt_name": model.default_prompt_name,
        "similarity": str(model.similarity_fn_name),
    }


def answers(model: Any, asked: dict[str, Any]) -> list[Any]:
    """The embeddings of each call, float32 [texts, D], computed on the CPU in one batch."""
    texts, fixed = asked["texts"], dict(convert_to_tensor=True, show_progress_bar=False, device="cpu")
    return [
        model.encode(texts, batch_size=len(texts), **fixed, **call).float().cpu() for call in asked["calls"]
    ]


def store(path: str | Path, asked: dict[str, Any], embeddings: list[Any]) -> None:
    """Writes the questions and their answers to a safetensors file."""
    tensors = {str(number): tensor.contiguous() for number, tensor in enumerate(embeddings)}
    save_file(tensors, str(path), metadata={"asked": json.dumps(asked)})


def compare(
    folder: str | Path, path: str | Path, *, trust: bool = False, backend: str = "torch", **model_kwargs: Any
) -> dict[str, float]:
    """Compares a model's embeddings with stored answers.

    Args:
        folder: Path to the model folder.
        path: Path to its ANSWERS file.
        trust: True lets the folder run code of its own.
        backend: Backend of sentence-transformers.
        model_kwargs: Options of the backend.

    Returns:
        The largest absolute differences, relative if the answers exceed 1: "edges" for texts that, with the
        prompt, start or end with white space, which sentence-transformers before 5.4 strips, and
        "difference" for all others.

    Raises:
        ValueError: If a setting or the shape of an embedding differs, or one is not finite.
    """
    with safe_open(str(path), framework="pt") as opened:
        asked = json.loads(opened.metadata()["asked"])
        stored = [opened.get_tensor(str(number)) for number in range(len(asked["calls"]))]
    options: dict[str, Any] = dict(
        trust_remote_code=trust, backend=backend, model_kwargs=model_kwargs or None
    )
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)
    if (found := settings(model)) != asked["settings"]:
        raise ValueError(f"the settings are {found}, not {asked['settings']}")
    largest = {"difference": 0.0, "edges": 0.0}
    for call, mine, theirs in zip(asked["calls"], answers(model, asked), stored, strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(f"{call}: embeddings of shape {list(mine.shape)}, not {list(theirs.shape)}")
        if not (mine.isfinite().all() and theirs.isfinite().all()):
            raise ValueError(f"{call}: embeddings with NaN or infinity")
        differences = (mine - theirs).abs() / theirs.abs().max().clamp(min=1)
        prompt = model.prompts.get(str(call.get("prompt_name", model.default_prompt_name))) or ""
        for text, row in zip(asked["texts"], differences, strict=True):
            key = "difference" if (prompt + text) == (prompt + text).strip() else "edges"
            largest[key] = max(largest[key], float(row.max()))
    return largest


def twice(folder: str | Path) -> dict[str, Any]:
    """Compares two loads of a folder, which differ if a missing weight is initialised at random.

    Returns:
        "dimension" of the embeddings; "finite", True if all numbers are finite; "same", True if both loads
        give identical embeddings.
    """
    first, second = (
        answers(model, ask(model))
        for model in (SentenceTransformer(str(folder), device="cpu", local_files_only=True) for _ in range(2))
    )
    return {
        "dimension": first[0].shape[1],
        "finite": all(bool(embeddings.isfinite().all()) for embeddings in first),
        "same": all(one.equal(other) for one, other in zip(first, second, strict=True)),
    }


def main(arguments: list[str]) -> None:
    """Prints a line of JSON per folder."""
    if arguments[:1] == ["--twice"]:
        try:
            line = twice(arguments[1])
        except Exception as error:  # every failure to load is reported
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), flush=True)
        return
    trust = arguments[:1] == ["--trust"]
    pairs = arguments[trust:]
    for folder, path in zip(pairs[::2], pairs[1::2], strict=True):
        try:
            line = dict(compare(folder, path, trust=trust))
        except Exception as error:  # every failure to load is reported
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if "--trust" not in sys.argv:
        sys.modules["stzoo"] = None  # type: ignore[assignment]  # from here on its import fails
    main(sys.argv[1:])
