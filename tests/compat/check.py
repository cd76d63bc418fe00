"""Loads the exported models of a folder where stzoo is not installed; one line of JSON a model.

    python -P tests/compat/check.py FOLDER [BACKEND]

`run.py` runs this with the interpreter of each environment. Where the root holds a masked LM, that must load
with every weight found too.
"""

import importlib.util
import json
import sys
from pathlib import Path

INT8 = "onnx/model_quantized.onnx"


def main(folder: Path, backend: str = "torch") -> None:
    """Compares each model with the answers stored beside it."""
    assert importlib.util.find_spec("stzoo") is None, "stzoo can be imported here, so nothing would be shown"
    source = Path(__file__).parents[2] / "stzoo" / "hub" / "verify_standalone.py"
    spec = importlib.util.spec_from_file_location("verify_standalone", source)
    verify_standalone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verify_standalone)
    from transformers import AutoModelForMaskedLM

    for answers in sorted(folder.glob("*.safetensors")):
        model = answers.with_suffix("")
        try:
            ours = backend == "onnx" and any(model.rglob("*.onnx"))
            options = {"export": False} if ours else {}  # fails where it would not load our graph
            line = verify_standalone.compare(model, answers, backend=backend, **options)
            if (model / INT8).exists() and ours:
                line |= {
                    "int8": max(
                        verify_standalone.compare(model, answers, backend=backend, file_name=INT8).values()
                    )
                }
            if any("MaskedLM" in line for line in _architectures(model)):
                _, found = AutoModelForMaskedLM.from_pretrained(model, output_loading_info=True)
                if lost := [*found["missing_keys"], *found["mismatched_keys"]]:
                    raise ValueError(f"as a masked LM it lacks {lost}")
        except Exception as error:
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"model": model.name, **line}), flush=True)


def _architectures(model: Path) -> list[str]:
    path = model / "config.json"
    return json.loads(path.read_text(encoding="utf-8"))["architectures"] if path.exists() else []


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
