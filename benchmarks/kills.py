"""Kills every command that writes, resumes or repeats it, and compares the outputs with undisturbed runs.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--work FOLDER] [--commands mine,export]
                               [--verify] [--json] [--output kills.json]

The models are tiny and made at run time. Each trial takes one command, stops it up to four times at random
moments (7 of 10 by SIGKILL, the others by SIGINT or SIGTERM), lets it end, and checks that

- what it wrote equals an undisturbed run's, byte for byte but for dates, durations and the host's measures,
- no draft, lock or set-aside file is left,
- the user's files and links next to the output, and in it where other files may be, are as they were,
- no process that was asked to stop printed a traceback.

Commands with a / run in several processes: independent ones, those of a launcher, or a driver and workers of
Ray. One of them, or all, are stopped, and the others must end by themselves. Independent ones and the driver
must complete the output.

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
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
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
    "encode": ["encode", "INPUTS/st", "INPUTS/beir", "--output", "OUT/vectors", "--shard-rows", "2", *CPU],
}  # fmt: skip
SEVERAL = ("encode/processes", "encode/ray", "bench/ranks", "mine/ranks", "prepare/ranks")
COUNTS = {"processes": 3, "ranks": 3}  # of processes
RAY = ["--engine", "ray", "--ray-workers", "2"]
SILENCE_S, START_S = 20, 40  # until a rank takes another one for dead, in place of minutes
LIMIT_S = 180  # for processes to end
HUNG = 256  # in place of the exit code of a process that did not
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


def start(words: Sequence[str], home: Path, number: int, verify: bool, more: Mapping[str, str]) -> int:
    """Forks a process that runs `stzoo` with these words, and returns its id.

    Args:
        words: The command line.
        home: Folder for the cache and the log.
        number: Number of the process, for the name of its log.
        verify: True to check exports in another process.
        more: Variables of the environment.
    """
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.environ |= {"STZOO_CACHE": str(home / "cache"), **more}
        opened = os.open(home / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(opened, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not verify:
            from stzoo.hub import export

            export._verify = lambda *_, **__: None
        from stzoo.adaptation import ask
        from stzoo.cli import main
        from stzoo.utils import distributed

        distributed.SILENCE_S, distributed.START_S, distributed.BEAT_S = SILENCE_S, START_S, 0.5
        distributed.STAY_S = distributed.CONNECT_S = 20
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


def host(what: str) -> tuple[int, str]:
    """Forks a process with a Ray cluster or, as torchrun does, a store: its id, and the address or port."""
    ours, theirs = os.pipe()
    if process := os.fork():
        os.close(theirs)
        with os.fdopen(ours) as opened:
            return process, opened.read()
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        if what == "ray":
            import ray

            options = dict(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            address = ray.init(**options, logging_level="ERROR").address_info["gcs_address"]
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        else:
            from torch.distributed import TCPStore

            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            address = str(store.port)
        os.write(theirs, address.encode())
        os.close(theirs)
        while True:
            signal.pause()
    finally:
        if what == "ray":
            ray.shutdown()
        os._exit(0)


def free_port() -> str:
    """A port that no program uses."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def end(processes: Sequence[int], limit: float = LIMIT_S) -> list[int]:
    """Waits for processes: the exit code of each, or minus the signal that ended it.

    After the limit, in seconds, they are killed, and their code is HUNG.
    """
    codes: dict[int, int] = {}
    until = time.monotonic() + limit
    while left := [one for one in processes if one not in codes]:
        for one in left:
            ended, status = os.waitpid(one, os.WNOHANG)
            if ended:
                codes[one] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(one, signal.SIGKILL)
                os.waitpid(one, 0)
                codes[one] = HUNG
        time.sleep(0.01)
    return [codes[one] for one in processes]


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
        self.cluster: tuple[int, str] | None = None  # of Ray: id of its first process, address

    def close(self) -> None:
        """Ends the Ray cluster."""
        if self.cluster:
            os.kill(self.cluster[0], signal.SIGTERM)
            end([self.cluster[0]])

    def words(self, command: str, out: Path) -> list[str]:
        """A command's words, with the folders filled in."""
        places = (("INPUTS", str(self.work / "inputs")), ("OUT", str(out)))
        name, _, way = command.partition("/")
        words = COMMANDS[name] + RAY * (way == "ray")
        for name, path in places:
            words = [word.replace(f"{name}/", f"{path}/") for word in words]
        return words

    @contextlib.contextmanager
    def started(self, command: str, home: Path, draw: random.Random) -> Iterator[list[int]]:
        """Starts the processes of a command, and gives their ids."""
        way = command.partition("/")[2]
        count = COUNTS.get(way, 1)
        each: list[dict[str, str]] = [{} for _ in range(count)]
        store = None
        if way == "ray":
            self.cluster = self.cluster or host("ray")
            each[0] |= {"RAY_ADDRESS": self.cluster[1], "RAY_AUTH_MODE": "token"}
        elif way == "ranks":
            shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
            if draw.random() < 0.5:  # as with torchrun; else the first process has the store, as with srun
                store, shared["MASTER_PORT"] = host("store")
                shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            each = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        words = self.words(command, home / "out")
        try:
            yield [start(words, home, number, self.verify, more) for number, more in enumerate(each)]
        finally:
            if store:
                os.kill(store, signal.SIGTERM)
                end([store])

    def victims(self, way: str, processes: list[int], draw: random.Random) -> list[int]:
        """The processes of a command to stop."""
        if way == "ray" and draw.random() < 0.5:
            import psutil

            assert self.cluster
            every = psutil.Process(self.cluster[0]).children(recursive=True)
            workers = [one.pid for one in every if one.name().startswith("ray::_Worker")]
            return [draw.choice(workers)] if workers else processes
        return processes if way == "processes" and draw.random() < 0.25 else [draw.choice(processes)]

    def run(self, command: str, home: Path, draw: random.Random) -> list[str]:
        """Runs a command undisturbed, and says what is wrong with its processes."""
        with self.started(command, home, draw) as processes:
            codes = end(processes)
        logs = [(home / f"{number}.log").read_text()[-2000:] for number in range(len(codes))]
        return [f"process {n} ended with {code}: {logs[n]}" for n, code in enumerate(codes) if code]

    def reference(self, command: str) -> Path:
        """The output of an undisturbed run by one process, made at first use."""
        alone = command.partition("/")[0]
        kept = self.work / "reference" / alone
        if command not in self.seconds:
            home = self.fresh()
            begun = time.monotonic()
            if faults := self.run(command, home, random.Random(self.seed)):
                raise SystemExit(f"{command}: {'; '.join(faults)}")
            self.seconds[command] = time.monotonic() - begun
            if command == alone:
                shutil.rmtree(kept, ignore_errors=True)
                kept.parent.mkdir(exist_ok=True)
                home.rename(kept)
            else:
                self.reference(alone)
        return kept / "out"

    def fresh(self) -> Path:
        """A folder with an empty `out` in it; always at one path, as some outputs name their path."""
        home = self.work / "now"
        shutil.rmtree(home, ignore_errors=True)
        (home / "out").mkdir(parents=True)
        return home

    def trial(self, number: int, command: str, kills: int) -> dict[str, Any]:
        """Stops a command some times, lets it end, and says what is wrong with what is there."""
        expected = self.reference(command)
        draw = random.Random(f"{self.seed} {number}")
        home = self.fresh()
        out = home / "out"
        plant(out)
        faults: list[str] = []
        signals: list[str] = []
        for _ in range(kills):
            if self.is_done(command, home, draw, signals, faults):
                faults += wrong(home, expected)
                break
            if any((out / "run" / name).exists() for name in RECORDS):
                plant(out / "run")
        faults += [f"the last call: {one}" for one in self.run(command, home, draw)]
        faults += wrong(home, expected)
        return {"trial": number, "command": command, "signals": signals, "faults": faults}

    def is_done(
        self, command: str, home: Path, draw: random.Random, signals: list[str], faults: list[str]
    ) -> bool:
        """Stops a command once, and says whether it has nevertheless ended its work.

        Args:
            command: The command.
            home: Folder of the trial.
            draw: Draws the signal, the moment and the processes.
            signals: Gets the name of the signal, unless all had ended before.
            faults: Gets what is wrong.
        """
        way = command.partition("/")[2]
        how = draw.choices([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], [70, 15, 15])[0]
        with self.started(command, home, draw) as processes:
            time.sleep(draw.uniform(0.02, 1) * self.seconds[command])
            victims = self.victims(way, processes, draw)
            if is_worker := victims[0] not in processes:
                how = signal.SIGKILL
            for one in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, how)
            codes = end(processes)
        if any(codes) or is_worker:
            signals.append(how.name)
        else:  # the command is faster now
            self.seconds[command] *= 0.7
        for number, (process, code) in enumerate(zip(processes, codes, strict=True)):
            text = (home / f"{number}.log").read_text()
            struck = process in victims
            if code == HUNG:
                faults.append(f"{how.name}: process {number} did not end: {text[-2000:]}")
            elif not struck and code not in ((0, 2) if way == "ranks" else (0,)):
                faults.append(f"{how.name}: process {number} ended with {code}: {text[-2000:]}")
            elif "Traceback" in text and not (struck and how == signal.SIGKILL):
                faults.append(f"{how.name}: {text[-2000:]}")
        return not any(codes) if way == "ranks" else 0 in codes


def wrong(home: Path, expected: Path) -> list[str]:
    """What is wrong with the output of a trial."""
    out = home / "out"
    left = [str(p.relative_to(home)) for p in home.rglob("*") if LEFT.fullmatch(p.name)]
    faults = [f"left: {', '.join(left)}"] * bool(left)
    for folder in (out, out / "run"):
        if (folder / "notes.md").exists() or folder == out:
            faults += [f"the user's files in {folder.name} were touched"] * (not planted_is_whole(folder))
    one, other = content(expected), content(out)
    differing = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    return faults + [f"differs: {', '.join(differing)}"] * bool(differing)


def main() -> int:
    """Returns 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder of a campaign, to continue it")
    parser.add_argument("--commands", help="of " + ", ".join([*COMMANDS, *SEVERAL]))
    parser.add_argument("--verify", action="store_true", help="let exports be checked in another process")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--output", type=Path, help="a file for the result")
    given = parser.parse_args()
    chosen = given.commands.split(",") if given.commands else [*COMMANDS, *SEVERAL]
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
            if any(end([process])):
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
        stack.callback(trials.close)
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
