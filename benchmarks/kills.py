"""Kills every command that writes, resumes or repeats it, and compares the outputs with undisturbed runs.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--work FOLDER] [--commands mine,export]
                               [--verify] [--json] [--output kills.json]

The models are tiny and made at run time. Each trial takes one command, stops it up to four times at random
moments (7 of 10 by SIGKILL, the others by SIGINT or SIGTERM), lets it end, and checks that

- what it wrote equals an undisturbed run's, byte for byte but for dates, durations and the host's measures,
- no draft, lock or set-aside file is left,
- the user's files and links next to the output, and in it where other files may be, are as they were,
- no process that was asked to stop printed a traceback.

A trial depends on the seed and its number alone. With --work, a campaign that was stopped continues. Commands
are forked from a process that has imported the libraries, so most kills fall on the work and not on imports.
The check of an export in another process, the slowest part, is left out unless --verify is given.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

CPU = ["--device", "cpu", "--threads", "1"]
TRAIN = [*CPU, "--batch-size", "4", "--save-steps", "3", "--log-steps", "2", "--resume"]
RETRIEVER = ["INPUTS/st", "--data", "INPUTS/beir", "--dev-queries", "0", *TRAIN]
COMMANDS = {  # OUT is the output's folder, INPUTS that of the inputs; a second call continues or repeats
    "pretrain": ["pretrain", "--base", "INPUTS/mlm", "--corpus", "INPUTS/corpus.jsonl", "--output", "OUT/run",
                 "--max-steps", "15", *TRAIN],
    "finetune": ["finetune", *RETRIEVER, "--output", "OUT/run", "--max-steps", "15"],
    "finetune-episodes": ["finetune", *RETRIEVER, "--output", "OUT/run", "--max-steps", "5", "--episodes",
        "2",
                          "--mined", "4", "--depth", "20"],
    "mine": ["mine", "INPUTS/st", "--data", "INPUTS/beir", "--output", "OUT/mined.parquet", "--store",
             "OUT/store", "--mined", "4", *CPU, "--resume"],
    "prepare": ["prepare", "master", "--corpus", "INPUTS/corpus.jsonl", "--tokenizer", "INPUTS/mlm",
        "--queries",
                "lexical", "--continuation", "none", "--neighbours", "bm25", "--shard-rows", "10", "--output",
                "OUT/run", *CPU, "--resume"],
    "export": ["export", "INPUTS/st", "--output", "OUT/model", "--overwrite"],
    "merge": ["merge", "INPUTS/st", "INPUTS/st2", "--output", "OUT/model", "--overwrite"],
    "import": ["import", "INPUTS/published", "--like", "retromae-base.wikibook", "--output", "OUT/model",
               "--overwrite"],
    "bench": ["bench", "st=INPUTS/st", "--data", "INPUTS/beir", "--output", "OUT/results", "--store",
        "OUT/store",
              "--shard-rows", "7", "--index", "IVF4,Flat nprobe=2", *CPU],
    "score": ["score", "st=INPUTS/st.run", "--data", "INPUTS/beir", "--output", "OUT/results"],
    "contamination": ["contamination", "--train", "INPUTS/corpus.jsonl", "--data", "INPUTS/beir", "--output",
                      "OUT/results", "--overwrite"],
    "card": ["card", "INPUTS/st", "--output", "OUT/card.md", "--overwrite"],
    "report": ["report", "INPUTS/results", "--output", "OUT/report.html", "--overwrite"],
    "read": ["read", "INPUTS/docs", "--output", "OUT/corpus", "--overwrite"],
    "ask": ["ask", "INPUTS/docs/library.jsonl", "--output", "OUT/run", "--count", "9000", "--threads", "1"],
    "ask-model": ["ask", "INPUTS/docs/library.jsonl", "--output", "OUT/run", "--count", "600", "--queries",
                  "INPUTS/writer", *CPU],
    "adapt": ["adapt", "INPUTS/st", "--corpus", "INPUTS/docs", "--output", "OUT/run", "--store", "OUT/store",
              *CPU],
    "judge": ["judge", "INPUTS/results", "--data", "INPUTS/beir", "--output", "OUT/run", "--terminal"],
    "demo": ["demo", "--base", "INPUTS/st", "--corpus", "INPUTS/beir", "--output", "OUT/demo",
             "--threads", "1"],
}  # fmt: skip
PLANTED = {"notes.md": "mine", "results of mine/scores.csv": "1,2", ".git/HEAD": "ref: refs/heads/main"}
VOLATILE = {  # keys in JSON
    *("seconds", "seconds_before", "index_seconds", "evaluation_time", "started", "date"),
    *("tokens_per_s", "data_wait", "utilisation"),
    *("peak_memory_mib", "cost", "files", "checksum", "sha256", "error"),
    "base",  # a fingerprint, in demo of a folder with a record that has durations
}
RECORDS = ("run.json", "settings.json", "parts/manifest.json", "judge.json")  # of a run that is continued
LEFT = re.compile(r".*\.part|\.stzoo.*|\..*\.mining|\.tmp.*")


def make_inputs(folder: Path) -> None:
    """Makes the models, texts, run and results that the commands read."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertForMaskedLM

    from stzoo.data import pydocs
    from stzoo.data.beir import write_beir
    from stzoo.evaluation.bench.bench import bench
    from stzoo.testing import sentences, tiny_masked_lm, tiny_tokenizer
    from stzoo.testing.tiny_models import tiny_causal_lm

    tiny_masked_lm("bert", folder / "mlm")
    for seed, name in enumerate(("st", "st2")):
        tiny_masked_lm("bert", folder / "scratch", seed=seed)
        modules = [Transformer(str(folder / "scratch")), Pooling(32, "mean")]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / name))
    shutil.rmtree(folder / "scratch")
    tokenizer = tiny_tokenizer("bert")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "published")
    tokenizer.save_pretrained(folder / "published")
    tiny_causal_lm(folder / "writer")
    (folder / "docs").mkdir()
    passages = {pair.passage_id: pair.passage for pair in pydocs.pairs()}
    lines = [json.dumps({"_id": one, "text": text}) + "\n" for one, text in passages.items()]
    (folder / "docs" / "library.jsonl").write_text("".join(lines[:400]))
    for number in range(8):
        parts = [f"# Part {number}\n\n{text}\n" for text in sentences(20, seed=number)]
        (folder / "docs" / f"{number}.md").write_text("\n".join(parts))
    lines = (json.dumps({"text": text}) + "\n" for text in sentences(120))
    (folder / "corpus.jsonl").write_text("".join(lines))
    texts, draw = sentences(60, seed=3), random.Random(1)
    qrels = {split: {f"q{i}": {f"d{i}": 1} for i in rows} for split, rows in
             (("train", range(40)), ("test", range(40, 60)))}  # fmt: skip
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    queries = {f"q{i}": " ".join(draw.sample(text.split(), 5)) for i, text in enumerate(texts)}
    write_beir(folder / "beir", rows, queries, qrels)
    bench(
        [f"st={folder / 'st'}"], data=folder / "beir", output=folder / "results", bm25=False, keep_store=False
    )
    (run,) = (folder / "results").rglob("*.run")
    shutil.copy(run, folder / "st.run")


def start(words: list[str], cache: Path, log: Path, verify: bool) -> int:
    """Forks a process that runs `stzoo` with these words, and returns its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.environ["STZOO_CACHE"] = str(cache)
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(opened, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not verify:
            from stzoo.hub import export

            export._verify = lambda *_, **__: None
        from stzoo.adaptation import ask
        from stzoo.cli import main

        ask._Run._check_usable = lambda *_: None  # the weights of the model that is asked are random
        keys, write = os.pipe()
        os.write(write, b"2\n" * 1000)  # for judge
        os.close(write)
        os.dup2(keys, 0)

        sys.argv = ["stzoo", *words]
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(process: int) -> int:
    """Waits for a process: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def plant(folder: Path) -> None:
    """Puts files and a link of the user's into a folder."""
    for name, text in PLANTED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to("results of mine")


def planted_is_whole(folder: Path) -> bool:
    """True if `plant`'s files are as it left them."""
    link = folder / "link"
    texts = [(folder / name).is_file() and (folder / name).read_text() for name in PLANTED]
    return texts == [*PLANTED.values()] and link.is_symlink() and str(link.readlink()) == "results of mine"


def content(folder: Path) -> dict[str, Any]:
    """What a command wrote, by path, without what differs from run to run and without checkpoints."""
    from stzoo.utils.files import files_under

    found: dict[str, Any] = {}
    for name in files_under(folder):
        parts = Path(name).parts
        planted = any(one in parts for one in ("link", *(Path(first).parts[0] for first in PLANTED)))
        if planted or "checkpoints" in parts:
            continue
        data = b"" if name.endswith(".png") else (folder / name).read_bytes()  # the title has the duration
        if name.endswith(".json"):
            found[name] = steady(json.loads(data))
        elif name.endswith(".safetensors"):  # the metadata has durations
            size = 8 + int.from_bytes(data[:8], "little")
            found[name] = (
                {k: v for k, v in json.loads(data[8:size]).items() if k != "__metadata__"},
                data[size:],
            )
        elif name.endswith((".md", ".html", ".csv", ".txt", "answers.jsonl")):
            found[name] = re.sub(rb"[\d.,]+ (seconds|s\b|minutes|MiB)|\d{4}-\d\d-\d\d[T\d:+.Z]*", b"", data)
        else:
            found[name] = data
    return found


def steady(value: Any) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in VOLATILE and "runtime" not in k}
    return [steady(one) for one in value] if isinstance(value, list) else value


class Trials:
    """Runs one command after another under `work`.

    Attributes:
        seconds: that each command takes undisturbed.
    """

    def __init__(self, work: Path, seed: int, verify: bool):
        self.work, self.seed, self.verify = work, seed, verify
        self.seconds: dict[str, float] = {}

    def words(self, command: str, out: Path) -> list[str]:
        """A command's words, with the folders filled in."""
        places = (("INPUTS", str(self.work / "inputs")), ("OUT", str(out)))
        words = COMMANDS[command]
        for name, path in places:
            words = [word.replace(f"{name}/", f"{path}/") for word in words]
        return words

    def reference(self, command: str) -> Path:
        """The output of an undisturbed run, made at first use."""
        kept = self.work / "reference" / command
        if command not in self.seconds:
            shutil.rmtree(kept, ignore_errors=True)
            home, out = self.fresh()
            begun = time.monotonic()
            process = start(self.words(command, out), home / "cache", home / "log", self.verify)
            if code := end(process):
                raise SystemExit(f"{command} ended with {code}:\n{(home / 'log').read_text()}")
            self.seconds[command] = time.monotonic() - begun
            kept.parent.mkdir(exist_ok=True)
            home.rename(kept)
        return kept / "out"

    def fresh(self) -> tuple[Path, Path]:
        """An empty folder and `out` in it; always at one path, as some outputs name their path."""
        home = self.work / "now"
        shutil.rmtree(home, ignore_errors=True)
        (home / "out").mkdir(parents=True)
        return home, home / "out"

    def trial(self, number: int, command: str, kills: int) -> dict[str, Any]:
        """Stops a command some times, lets it end, and says what is wrong with what is there."""
        expected = self.reference(command)
        draw = random.Random(f"{self.seed} {number}")
        home, out = self.fresh()
        plant(out)
        faults, signals = [], []
        words, log = self.words(command, out), home / "log"
        for _ in range(kills):
            how = draw.choices([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], [70, 15, 15])[0]
            process = start(words, home / "cache", log, self.verify)
            time.sleep(draw.uniform(0.02, 1) * self.seconds[command])
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, how)
            code = end(process)
            if code == 0:
                break  # it had ended before
            signals.append(how.name)
            if "Traceback" in (text := log.read_text()) and how != signal.SIGKILL:
                faults.append(f"{how.name}: {text[-2000:]}")
            if any((out / "run" / name).exists() for name in RECORDS):
                plant(out / "run")
        code = end(start(words, home / "cache", log, self.verify))
        if code:
            faults.append(f"the last call ended with {code}: {log.read_text()[-2000:]}")
        left = [str(p.relative_to(home)) for p in home.rglob("*") if LEFT.fullmatch(p.name)]
        faults += [f"left: {', '.join(left)}"] * bool(left)
        for folder in (out, out / "run"):
            if (folder / "notes.md").exists() or folder == out:
                faults += [f"the user's files in {folder.name} were touched"] * (not planted_is_whole(folder))
        one, other = content(expected), content(out)
        differing = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
        faults += [f"differs: {', '.join(differing)}"] * bool(differing)
        return {"trial": number, "command": command, "signals": signals, "faults": faults}


def main() -> int:
    """Returns 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder of a campaign, to continue it")
    parser.add_argument("--commands", help="of " + ", ".join(COMMANDS))
    parser.add_argument("--verify", action="store_true", help="let exports be checked in another process")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--output", type=Path, help="a file for the result")
    given = parser.parse_args()
    chosen = given.commands.split(",") if given.commands else list(COMMANDS)
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = work.resolve()
        if not (work / "inputs/st.run").exists():
            shutil.rmtree(work / "inputs", ignore_errors=True)
            (work / "inputs").mkdir(parents=True)
            process = os.fork()  # so that this process stays without threads
            if not process:
                make_inputs(work / "inputs")
                os._exit(0)
            if end(process):
                raise SystemExit("the inputs could not be made")
        import stzoo.adaptation.adapt
        import stzoo.adaptation.questions.local_model
        import stzoo.cli
        import stzoo.cli.demo
        import stzoo.evaluation.bench
        import stzoo.evaluation.judge
        import stzoo.hub.export  # noqa: F401 - for the processes that are forked

        done = work / "trials.jsonl"
        rows = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
        trials = Trials(work, given.seed, given.verify)
        while sum(len(row["signals"]) for row in rows) < given.kills:
            number = len(rows)
            row = trials.trial(number, chosen[number % len(chosen)], 1 + number // len(chosen) % 4)
            rows.append(row)
            with done.open("a") as file:
                file.write(json.dumps(row) + "\n")
            said = "; ".join(row["faults"]) or "the same"
            print(
                f"{number} {row['command']} {' '.join(row['signals'])}: {said}", file=sys.stderr, flush=True
            )
    signals = [one for row in rows for one in row["signals"]]
    found = {
        "seed": given.seed,
        "kills": len(signals),
        "signals": {name: signals.count(name) for name in sorted(set(signals))},
        "commands": {
            command: sum(len(row["signals"]) for row in rows if row["command"] == command)
            for command in dict.fromkeys(row["command"] for row in rows)
        },
        "faults": [row for row in rows if row["faults"]],
    }
    text = json.dumps(found, indent=2)
    if given.output:
        given.output.write_text(text + "\n")
    if given.json:
        print(text)
    return int(bool(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
