"""`stzoo demo --methods`: each method for a few steps, then searched with plain sentence-transformers.

Ten steps teach a model little. It shows that each method runs, what it logs, and that what comes out needs
none of it; gains are measured in benchmarks/.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stzoo.cli.demo import QUESTIONS, ask, find_base
from stzoo.data.beir import read_beir, write_beir
from stzoo.data.pydocs import write_documented, write_pydocs
from stzoo.finetuning.finetune import finetune
from stzoo.pretraining.prepare import prepare
from stzoo.pretraining.pretrain import pretrain
from stzoo.training.trained import TrainedModel
from stzoo.utils.distributed import require_one_process
from stzoo.utils.outputs import check_output

PASSAGES = 640  # of the corpus for pre-training
SMALL: dict[str, Any] = dict(
    batch_size=16, max_tokens=40, max_steps=10, log_steps=5, learning_rate=2e-5, precision="fp32"
)
TASKS: dict[str, Any] = dict(
    batch_size=16, max_steps=10, log_steps=5, max_passage_tokens=40, max_query_tokens=16, dev_queries=0
)


@dataclass(frozen=True)
class Method:
    """What a method did.

    Attributes:
        name: Name of the method.
        losses: Its loss in nats after half of the steps, and at the end.
        model: Folder of the exported model.
        found: Ids of the passages that the model finds first for a plain question.
    """

    name: str
    losses: list[float]
    model: str
    found: list[str]


@dataclass(frozen=True)
class Methods:
    """The methods, and the question that each model was asked."""

    question: str
    methods: list[Method]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"Each was asked {self.question!r}, without stzoo:", ""]
        for method in self.methods:
            losses = " to ".join(f"{loss:.2f}" for loss in method.losses)
            lines += [
                f"  {method.name}: loss {losses}",
                f"    {', '.join(method.found)}",
                f"    {method.model}",
            ]
        return "\n".join(lines)


def methods(
    *, output: str | Path, base: str | None, seed: int, threads: int | None, say: Callable[[str], None]
) -> Methods:
    """Runs RetroMAE, DupMAE, MASTER, and two tasks with TACO on docstrings; see `demo` for the arguments."""
    require_one_process("demo")
    output = check_output(output, kind="results", inputs=[base]).resolve()
    start = str(find_base()) if base is None else str(base)
    again: dict[str, Any] = dict(seed=seed, threads=threads, resume=True)
    data, searched = output / "data" / "pydocs", output / "data" / "documented"
    named, small = output / "data" / "names", output / "data" / "small"
    if not data.exists():
        write_pydocs(data)
    if not searched.exists():
        write_documented(searched)
    judged = read_beir(data, "train")
    texts = dict(zip(judged.corpus_ids, judged.passages, strict=True))
    if not small.exists():
        rows = [{"_id": one, "text": texts[one]} for one in list(texts)[:PASSAGES]]
        write_beir(small, rows, {}, {})
    if not named.exists():  # the second task: a name, in words, finds its docstring
        names = {one: one.replace("_", " ").replace(".", " ") for one in texts}
        qrels = {"train": {one: {one: 1} for one in texts}}
        write_beir(named, [{"_id": one, "text": text} for one, text in texts.items()], names, qrels)

    def trained(name: str) -> TrainedModel:
        corpus = small
        if name == "master":
            corpus = prepare(
                "master",
                output=output / "prepared",
                corpus=[str(small)],
                tokenizer=start,
                queries="lexical",
                continuation="none",
                neighbours=["bm25"],
                threads=threads,
                resume=True,
            )
        return pretrain(
            output=output / name, base=start, objective=name, corpus=[str(corpus)], **SMALL, **again
        )

    def taco() -> TrainedModel:
        tasks = [
            {"name": "summaries", "data": str(data), "query_prompt": "summary: "},
            {"name": "names", "data": str(named), "query_prompt": "name: "},
        ]
        return finetune(start, output=output / "taco", tasks=tasks, balancer="taco", **TASKS, **again)

    question = next(iter(QUESTIONS))
    made = []
    for number, name in enumerate(("retromae", "dupmae", "master", "taco"), 1):
        say(f"{number}/4 {name}")
        run = taco() if name == "taco" else trained(name)
        losses = [row["loss"] for row in run.history if "loss" in row]
        found = ask(str(run), searched / "corpus.jsonl", [question], output / f"answer-{name}.json")[question]
        made.append(Method(name, losses, str(run), [passage["id"] for passage in found]))
    return Methods(question, made)
