"""Runs the code of docs/guides/serve.md where stzoo is not installed; a line of JSON per block and model.

    python -P tests/compat/serve.py FOLDER MODEL:WORD…

FOLDER holds for each model MODEL/runs/tuned and MODEL/answers.safetensors, which `make` wrote where stzoo is.
WORD is what the block imports, or one of VARIANTS. What the block leaves in ANSWERS is compared with what is
stored. HERE is run by tests/test_serving.py, and ELSEWHERE by run.py in an environment of its own.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/guides/serve.md"
HERE = [
    *("dot:sentence_transformers", "dot:faiss", "dot:transformers", "dot:llama_index"),
    *("unit:sentence_transformers", "unit:faiss", "unit:normalize", "unit:llama_index"),
    *("dense:sentence_transformers", "dense:faiss", "dense:llama_index"),
    *("router:sentence_transformers", "router:faiss"),
]
ELSEWHERE = [
    f"{model}:{word}"
    for model in ("dot", "unit", "dense", "router")
    for word in ("onnx", "langchain_huggingface")
]
PROMPTS = {"query": "ask: ", "document": "passage: "}
ANSWERS = ("queries", "passages", "scores", "rows")
# what the page says in words: the new name of a block, the block, what is replaced in it, and by what
VARIANTS = {
    "onnx": ("sentence_transformers", '("runs/tuned")  # backend="onnx"', '("runs/tuned", backend="onnx")'),
    "normalize": (
        "transformers",
        "encoder(**tokens).last_hidden_state[:, 0]",
        "torch.nn.functional.normalize(encoder(**tokens).last_hidden_state[:, 0])",
    ),
    "bare_llama_index": (
        "llama_index",
        'query_instruction=prompts["query"],\n    text_instruction=prompts["document"],\n'
        "    normalize=False,",
        "",
    ),
}
HARDER = {
    "questions": ["Größe, naïve, 東京の天気", "wing lift " * 300],
    "texts": ["two\nlines", "a [MASK] b, \t two  spaces", "wing lift " * 300, "aeroplanes fly"],
}


def blocks() -> tuple[str, dict[str, str]]:
    """The code that names questions and texts, and the other blocks by the word that they import."""
    first, *others = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = {}
    for code in others:
        [*_, imported] = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
        found[imported if imported != "sentence_transformers" or "faiss" not in code else "faiss"] = code
    for name, (word, old, new) in VARIANTS.items():
        assert old in found[word], f"{PAGE} no longer says {old}"
        found[name] = found[word].replace(old, new)
    return first, found


def asked() -> list[dict[str, list[str]]]:
    """Questions and texts of each round: the page's, and what is harder."""
    shown: dict[str, Any] = {}
    exec(blocks()[0], shown)
    return [{name: shown[name] for name in HARDER}, HARDER]


def make(folder: Path, base: Path) -> None:
    """Exports the models and stores what the blocks should leave; `base` is a BERT masked LM, 32 wide.

    Each has what a block may lose: prompts, a short length and the head of a masked LM in its root (dot), a
    default prompt (unit), vectors that are no unit vectors but compared by cosine (dense), towers (router).
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import AutoModelForMaskedLM

    from stzoo.hub.export import export

    def save(name: str, *modules: Any, masked_lm: Any = None, **settings: Any) -> None:
        settings = {"similarity_fn_name": "cosine", "prompts": PROMPTS, **settings}
        model = SentenceTransformer(modules=list(modules), device="cpu", **settings).eval()
        export(model, folder / name / "runs" / "tuned", masked_lm=masked_lm, verify=False)
        store(model, folder / name)

    def bert() -> Any:
        return Transformer(str(base))

    torch.manual_seed(0)
    masked_lm = AutoModelForMaskedLM.from_pretrained(base).eval()
    short = bert()
    short.model, short.max_seq_length = masked_lm.base_model, 24
    save("dot", short, Pooling(32, "cls"), masked_lm=masked_lm, similarity_fn_name="dot")
    save("unit", bert(), Pooling(32, "cls"), Normalize(), default_prompt_name="query")
    save("dense", bert(), Pooling(32), Dense(32, 16))
    save("router", Router({"query": [bert(), Pooling(32, "cls")], "document": [bert(), Pooling(32)]}))


def store(model: Any, folder: Path) -> None:
    """Writes FOLDER/answers.safetensors: vectors of the model in memory, and what `stzoo search` finds."""
    import torch
    from safetensors.torch import save_file

    from stzoo.retrieval.search.search import search

    answers = {}
    for number, names in enumerate(asked()):
        questions, texts = names["questions"], names["texts"]
        rows = [{"_id": str(row), "title": "", "text": text} for row, text in enumerate(texts)]
        corpus = folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tuned, scratch = folder / "runs" / "tuned", folder / "store"
        hits = [one["found"] for one in search(tuned, questions, data=corpus, k=2, store=scratch)]
        found = {
            "queries": model.encode_query(questions),
            "passages": model.encode_document(texts),
            "scores": [[hit["score"] for hit in found] for found in hits],
            "rows": [[int(hit["id"]) for hit in found] for found in hits],
        }
        answers |= {f"{number} {name}": torch.as_tensor(value) for name, value in found.items()}
    save_file(answers, str(folder / "answers.safetensors"))


def difference(code: str, stored: dict[str, Any]) -> float:
    """Runs a block with the questions of each round, and returns its largest difference to what is stored.

    Raises:
        ValueError: if it leaves nothing that is stored, or something of another shape or another ranking.
    """
    import torch

    largest = []
    for number, names in enumerate(asked()):
        scope = dict(names)
        exec(code, scope)
        for name in set(ANSWERS) & set(scope):
            if (right := stored.get(f"{number} {name}")) is None:
                continue
            mine = torch.as_tensor(scope[name])
            if mine.shape != right.shape or (name == "rows" and not mine.equal(right)):
                raise ValueError(f"{name} are {mine}, not {right}")
            largest.append(float((mine - right).abs().max()))
    if not largest:
        raise ValueError("the code leaves nothing to compare")
    return max(largest)


def main(folder: Path, pairs: list[str]) -> None:
    """Prints {"model", "code", "difference" or "error"} for each pair."""
    from safetensors.torch import load_file

    code = blocks()[1]
    for pair in pairs:
        model, word = pair.split(":")
        os.chdir(folder / model)
        line: dict[str, Any] = {"model": model, "code": word}
        try:
            line["difference"] = difference(code[word], load_file("answers.safetensors"))
        except Exception as error:  # whatever stops it is the finding that is reported
            line["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.modules["stzoo"] = None  # type: ignore[assignment]  # from here on its import fails
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
