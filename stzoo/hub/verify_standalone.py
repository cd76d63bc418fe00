"""Loads model folders with sentence-transformers alone, and says how far their answers are from stored ones.

    python -P alone.py [--trust] FOLDER ANSWERS [FOLDER ANSWERS …]

prints one line of JSON a folder: {"difference": float, "edges": float} or {"error": str}. `export` runs this
file in a process where stzoo cannot be imported, and `make compat` uses it under older versions of
sentence-transformers. So it imports nothing of stzoo. `publish`, which has no model to compare with, runs

    python -P alone.py --twice FOLDER

that prints {"dimension": int, "finite": bool, "same": bool} or {"error": str}.

ANSWERS is a safetensors file that `ask` and `store` made: for each call of `encode` its embeddings, and in
the metadata what was asked and the settings that a user reads off the loaded model.
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
    "wing lift " * 600,  # longer than most models read, so that the cut is compared too
    "",
    "Größe, naïve, 東京の天気, Ωmega, 👩‍🔬, a [MASK] b <mask> c, \t two  spaces",
]


def ask(model: Any) -> dict[str, Any]:
    """What is asked of a model: TEXTS by each route of its routers, without a prompt and with each."""
    routers = [module for module in model.modules() if hasattr(module, "default_route")]
    ways = [{"task": route} for router in routers for route in router.sub_modules]
    if all(router.default_route for router in routers):
        ways.insert(0, {})
    prompts = [{}, *({"prompt_name": name} for name, prompt in model.prompts.items() if prompt)]
    calls = [way | prompt for way in ways for prompt in prompts]
    return {"texts": TEXTS, "calls": calls, "settings": settings(model)}


def settings(model: Any) -> dict[str, Any]:
    """What a user reads off a loaded model, besides its embeddings."""
    length = model.max_seq_length
    return {
        "max_seq_length": None if length is None or length > 10**9 else length,  # two ways to say "no limit"
        "prompts": dict(model.prompts),
        "default_prompt_name": model.default_prompt_name,
        "similarity": str(model.similarity_fn_name),
    }


def answers(model: Any, asked: dict[str, Any]) -> list[Any]:
    """Embeddings of each call, float32 [texts, D], computed on the CPU in one batch."""
    texts, fixed = asked["texts"], dict(convert_to_tensor=True, show_progress_bar=False, device="cpu")
    return [
        model.encode(texts, batch_size=len(texts), **fixed, **call).float().cpu() for call in asked["calls"]
    ]


def store(path: str | Path, asked: dict[str, Any], embeddings: list[Any]) -> None:
    """Writes the questions and their answers into one safetensors file."""
    tensors = {str(number): tensor.contiguous() for number, tensor in enumerate(embeddings)}
    save_file(tensors, str(path), metadata={"asked": json.dumps(asked)})


def compare(
    folder: str | Path, path: str | Path, *, trust: bool = False, backend: str = "torch"
) -> dict[str, float]:
    """Largest absolute differences to the stored answers; relative where those are larger than 1.

    Args:
        folder: the model.
        path: its ANSWERS file.
        trust: True lets the folder bring code of its own.
        backend: what sentence-transformers runs it with.

    Returns:
        "difference", and apart from it "edges": of texts with white space at their ends once the prompt is
        before them, which sentence-transformers before 5.4 cuts off.

    Raises:
        ValueError: if a setting or the shape of an embedding is another, or one is not finite.
    """
    with safe_open(str(path), framework="pt") as opened:
        asked = json.loads(opened.metadata()["asked"])
        stored = [opened.get_tensor(str(number)) for number in range(len(asked["calls"]))]
    how: dict[str, Any] = dict(trust_remote_code=trust, backend=backend)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, **how)
    if (found := settings(model)) != asked["settings"]:
        raise ValueError(f"the settings are {found}, not {asked['settings']}")
    largest = {"difference": 0.0, "edges": 0.0}
    for call, mine, theirs in zip(asked["calls"], answers(model, asked), stored, strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(f"{call}: embeddings of shape {list(mine.shape)}, not {list(theirs.shape)}")
        if not (mine.isfinite().all() and theirs.isfinite().all()):
            raise ValueError(f"{call}: embeddings with NaN or infinity")
        far = (mine - theirs).abs() / theirs.abs().max().clamp(min=1)
        prompt = model.prompts.get(str(call.get("prompt_name", model.default_prompt_name))) or ""
        for text, row in zip(asked["texts"], far, strict=True):
            key = "difference" if (prompt + text) == (prompt + text).strip() else "edges"
            largest[key] = max(largest[key], float(row.max()))
    return largest


def twice(folder: str | Path) -> dict[str, Any]:
    """What two loads of a folder say: a weight that is missing is made at random, anew each time.

    Returns:
        "dimension" of the embeddings; "finite", True if all their numbers are; "same", True if both loads
        gave the same bits.
    """
    found = []
    for _ in range(2):
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        found.append(answers(model, ask(model)))
    return {
        "dimension": found[0][0].shape[1],
        "finite": all(bool(one.isfinite().all()) for one in found[0]),
        "same": all(one.equal(other) for one, other in zip(*found, strict=True)),
    }


def main(arguments: list[str]) -> None:
    """Answers on standard output, a line a pair."""
    if arguments[:1] == ["--twice"]:
        try:
            line = twice(arguments[1])
        except Exception as error:  # whatever stops the load is the finding that is reported
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), flush=True)
        return
    trust = arguments[:1] == ["--trust"]
    pairs = arguments[trust:]
    for folder, path in zip(pairs[::2], pairs[1::2], strict=True):
        try:
            line = dict(compare(folder, path, trust=trust))
        except Exception as error:  # whatever stops the load is the finding that is reported
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if "--trust" not in sys.argv:
        sys.modules["stzoo"] = None  # type: ignore[assignment]  # from here on its import fails
    main(sys.argv[1:])
