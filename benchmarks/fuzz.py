"""Runs commands of stzoo on thousands of damaged, odd and absurd inputs, and counts how they end.

    python benchmarks/fuzz.py [--cases 5500] [--seed 0] [--only AREA] [--jobs 2] [--work FOLDER]

Each case copies a sound input, changes it at random (by the seed, so that a case is the same each time), and
runs one command on it in a forked process with limits of memory and time. A case ends as

    ok         exit code 0
    refused    exit code 2 and a sentence
    guard      exit code 70: an exception that nobody foresaw, put into a sentence
    traceback  a traceback on stderr, or another exit code
    killed     by a signal, e.g. for memory
    hang       not within the time limit
    silent     exit code 0 and another output, without a word, though the change must be refused or repaired;
               or a number in the output that is not finite

The inputs of the last five kinds are kept in WORK/failures; the smallest of each distinct failure is printed.
A campaign that was stopped continues with what WORK holds; `--fresh` begins again.
"""

# ruff: noqa: E501, SIM905 - the words of a command and lists of odd values are read more easily in one line

import argparse
import contextlib
import gzip
import hashlib
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
os.environ |= {"STZOO_TIMEOUT": "0.2", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}

MEMORY = 6 << 30  # bytes that a case may take beyond what the warm process has
SECONDS = 60.0  # generous: the slowest sound command takes 2 s
FAILURES = ("guard", "traceback", "killed", "hang", "silent")
ENDS = ("ok", "refused", *FAILURES)

# ------------------------------------------------------------------------------ odd values

# fmt: off
DEEP = "[" * 3000 + "]" * 3000
ODD_TEXTS = [
    "", " ", ".", "..", "/", "~", "~nouser/x", "no such", "x" * 300, "x/" * 3000, "\0", "a\0b", "\ud800", "\u202e", "é",
    "e\u0301", "\ufeff", "\u00a0", "\u2028", "\uff11\uff12", "\u0663", "1_0", "0x10", "1e400", "nan", "inf", "-0", "true",
    "null", "[]", "{}", "a,b", ",", ":", "-", "--", "=", "%s", "{x}", "${HOME}", "../../x", "a\nb", "a\tb", "no",
    "org/name", "org/name:c:s", "http://127.0.0.1:9/x", "hf://x", "9" * 25, "-1", "0", "1", "3000000000",
]
ODD_NUMBERS = [
    0, -1, 1, 2, 3, 7, 0.5, -0.5, 1e308, -1e308, 1e-320, 10**6, 2**31, 2**32, 2**63, 2**64, 10**22, 10**400,
]
ODD_VALUES = [None, True, False, [], {}, [[]], {"": ""}, [None], *ODD_NUMBERS, *ODD_TEXTS]
ODD_JSON = [
    "NaN", "Infinity", "-Infinity", DEEP, '{"a":' * 2000 + "1" + "}" * 2000, '"\\ud800"', '"\\u0000"', "1" * 5000,
    "1e999", '{"a": 1, "a": 2}', "[1, 2", '"', "\ufeff{}", "1_0", "0123", "'a'", "undefined",
]
ODD_YAML = [
    "1_0", "1:30", "0o17", "2024-13-45", "2024-01-02", "*x", "&x [*x]", "!!python/name:os.system", "!!binary x", "? x",
    "!!float x", "!!bool x", "<<: 3", "{a: 1, a: 2}", "|", ">", "'", DEEP, "1" * 5000, "%", "@", "yes", ".inf", ".nan", "=",
]
ODD_BYTES = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\xed\xa0\x80", b"\x85", b"\xe2\x80\xa8", b"\t", b'"']
# fmt: on


def odd_bytes(draw: random.Random, raw: bytes) -> bytes:
    """Bytes with one to three small damages."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        place = draw.randrange(len(raw) + 1)
        end = min(len(raw), place + draw.choice([1, 1, 2, 8, 64, 1000]))
        kind = draw.randrange(9)
        if kind == 0 and raw:
            place = min(place, len(raw) - 1)
            raw = raw[:place] + bytes([raw[place] ^ (1 << draw.randrange(8))]) + raw[place + 1 :]
        elif kind == 1:
            raw = raw[:place] + raw[end:]
        elif kind == 2:
            raw = raw[:place]
        elif kind == 3:
            raw = raw[:place] + draw.choice(ODD_BYTES) + raw[place:]
        elif kind == 4:
            raw = raw[:place] + raw[place:end] * draw.choice([2, 50]) + raw[end:]
        elif kind == 5:
            lines = raw.splitlines(keepends=True) or [b""]
            one = draw.randrange(len(lines))
            other = draw.randrange(len(lines))
            choice = draw.randrange(4)
            if choice == 0:
                lines[one] = lines[other]
            elif choice == 1:
                del lines[one]
            elif choice == 2:
                lines[one], lines[other] = lines[other], lines[one]
            else:
                lines.insert(one, lines[one])
            raw = b"".join(lines)
        elif kind == 6:
            raw = draw.choice(
                [
                    b"",
                    b"\n",
                    b"\0" * 64,
                    raw * 2,
                    raw.upper(),
                    raw.decode("latin-1").encode("utf-16"),
                    gzip.compress(raw, mtime=0),
                ]
            )
        elif kind == 7:
            raw = raw[:place] + draw.choice(ODD_TEXTS).encode("utf-8", "surrogatepass") + raw[end:]
        else:
            raw = raw[:place] + draw.choice(ODD_JSON).encode("utf-8", "surrogatepass") + raw[end:]
    return raw


def odd_json(draw: random.Random, text: str) -> str:
    """A JSON text with one place of it changed; still mostly JSON."""
    marker = "\x01here\x01"
    try:
        value = json.loads(text)
    except ValueError:
        return odd_bytes(draw, text.encode()).decode("utf-8", "replace")
    places = list(_places(value))
    if not places:
        return draw.choice(ODD_JSON)
    box, key = draw.choice(places)
    kind = draw.randrange(6)
    if kind == 0:
        del box[key]
    elif kind == 1:
        box[key] = [box[key]]
    elif kind == 2 and isinstance(box, dict):
        box[draw.choice([f"{key}x", "", str(key).upper()])] = box.pop(key)
    elif kind == 3:
        box[key] = marker
        return json.dumps(value).replace(json.dumps(marker), draw.choice(ODD_JSON))
    else:
        box[key] = draw.choice(ODD_VALUES)
    with contextlib.suppress(ValueError):
        return json.dumps(value, ensure_ascii=draw.random() < 0.5)
    return text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, one in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _places(one)


def odd_lines(draw: random.Random, text: str) -> str:
    """JSON lines or tables with one field changed."""
    lines = text.split("\n")
    place = draw.randrange(max(1, len(lines) - 1))
    line = lines[place]
    if line.lstrip().startswith("{"):
        lines[place] = odd_json(draw, line)
    else:
        sign = "\t" if "\t" in line else "," if "," in line else " "
        fields = line.split(sign)
        field = draw.randrange(len(fields))
        kind = draw.randrange(5)
        if kind == 0:
            del fields[field]
        elif kind == 1:
            fields.insert(field, draw.choice(fields))
        else:
            fields[field] = draw.choice(ODD_TEXTS)
        lines[place] = sign.join(fields)
    return "\n".join(lines)


def odd_header(draw: random.Random, raw: bytes) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + size].decode(), raw[8 + size :]
    header = odd_json(draw, header)
    encoded = header.encode("utf-8", "surrogatepass")
    length = draw.choice([len(encoded)] * 6 + [0, 7, 2**40, 2**63])
    return length.to_bytes(8, "little") + encoded + data


def odd_file(draw: random.Random, path: Path) -> str:
    """Changes one file in place, and says how."""
    raw = path.read_bytes()
    kind = draw.random()
    if kind < 0.05:
        path.unlink()
        kinds = ["missing", "folder", "loop", "directory link"]
        given = ("corpora", "training", "beir", "bm25.run", "kilt.jsonl", "wiki.jsonl", "docs", "library")
        if path.parts[0] in given:
            kinds.append("pipe")  # which a user may well give in place of a file
        what = draw.choice(kinds)
        if what == "folder":
            path.mkdir()
        elif what == "loop":
            path.symlink_to(path.name)
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "directory link":
            path.symlink_to(path.parent)
        return what
    made = raw
    for _ in range(5):
        if path.suffix == ".safetensors" and kind < 0.6:
            made = odd_header(draw, raw)
        elif path.suffix == ".json" and kind < 0.8:
            made = odd_json(draw, raw.decode("utf-8", "replace")).encode("utf-8", "surrogatepass")
        elif path.suffix in (".jsonl", ".tsv", ".csv", ".run", ".trec", ".txt", ".qrels") and kind < 0.7:
            made = odd_lines(draw, raw.decode("utf-8", "replace")).encode("utf-8", "surrogatepass")
        else:
            made = odd_bytes(draw, raw)
        if made != raw:
            break
    path.unlink()
    path.write_bytes(made)
    return "bytes"


# ------------------------------------------------------------------------------ the sound inputs


def build(folder: Path) -> None:
    """Makes the sound inputs, which all cases start from."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    from stzoo.data.beir import write_beir
    from stzoo.testing import sentences, tiny_masked_lm

    tiny_masked_lm("bert", folder / "base")
    for name, seed in (("model", 0), ("other", 1)):
        base = tiny_masked_lm("bert", folder / f"base-{name}", seed=seed)
        prompts = {"query": "query: ", "document": ""}
        model = SentenceTransformer(
            modules=[Transformer(str(base)), Pooling(32)], device="cpu", prompts=prompts
        )
        model.save_pretrained(str(folder / name))
        shutil.rmtree(base)
    texts = sentences(24)
    docs = [{"_id": f"d{i}", "title": f"t{i}", "text": text} for i, text in enumerate(texts)]
    queries = {f"q{i}": " ".join(text.split()[:4]) for i, text in enumerate(texts[:8])}
    qrels = {"test": {f"q{i}": {f"d{i}": 2, f"d{i + 1}": 1} for i in range(4)}}
    qrels["train"] = {f"q{i}": {f"d{i}": 1} for i in range(4, 8)}
    write_beir(folder / "beir", docs, queries, qrels)
    corpora, training = folder / "corpora", folder / "training"
    corpora.mkdir()
    training.mkdir()
    rows = [{"text": text, "title": "a title", "n": i} for i, text in enumerate(texts)]
    (corpora / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (corpora / "c.txt").write_text("\n".join(texts) + "\n")
    shutil.copy(corpora / "c.jsonl", corpora / "c.json")
    (corpora / "c.jsonl.gz").write_bytes(gzip.compress((corpora / "c.jsonl").read_bytes(), mtime=0))
    pq.write_table(pa.Table.from_pylist(rows), corpora / "c.parquet")
    pairs = [
        {"query": q, "positive": texts[i], "negative": texts[i + 8]} for i, q in enumerate(queries.values())
    ]
    scored = [
        {
            "query": p["query"],
            "pos": [p["positive"]],
            "neg": [p["negative"]],
            "pos_scores": [1.0],
            "neg_scores": [0.2],
        }
        for p in pairs
    ]
    listed = [{"query": p["query"], "positive": [p["positive"]], "negative": [p["negative"]]} for p in pairs]
    graded = [
        {"query": p["query"], "positive": p["positive"], "label": int(i < 7)} for i, p in enumerate(pairs)
    ]
    for name, made in (("pairs", pairs), ("scored", scored), ("listed", listed), ("graded", graded)):
        (training / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (training / "pairs.csv").write_text(
        "query,positive\n" + "".join(f'"{p["query"]}","{p["positive"]}"\n' for p in pairs)
    )
    (training / "pairs.tsv").write_text(
        "query\tpositive\n" + "".join(f"{p['query']}\t{p['positive']}\n" for p in pairs)
    )
    pq.write_table(pa.Table.from_pylist(pairs), training / "pairs.parquet")
    (folder / "wiki.jsonl").write_text(
        "".join(
            json.dumps({"_id": f"p{i}", "wikipedia_id": f"d{i}", "text": text}) + "\n"
            for i, text in enumerate(texts)
        )
    )
    (folder / "kilt.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "id": q,
                    "input": text,
                    "output": [{"answer": "a", "provenance": [{"wikipedia_id": f"d{i}"}]}],
                }
            )
            + "\n"
            for i, (q, text) in enumerate(queries.items())
        )
    )
    run_sound(
        "bench model other --data beir --output results --store store --k 20".split(),
        folder,
    )
    (run,) = (folder / "results" / "bm25s").rglob("*.run")
    shutil.copy(run, folder / "bm25.run")
    killed = [*RESUMED, "--output", "killed"]
    run_sound(killed, folder, break_off=True)
    shutil.copytree(folder / "killed", folder / "run")
    run_sound([*RESUMED, "--output", "run", "--resume"], folder)
    build_adaptation(folder, texts)
    for command, values in RECIPES.items():
        recipe = folder.parent / f"{command}.yaml"
        recipe.write_text(_placed(json.dumps(values)))
        output = folder.parent / f"recipe-{command}{'.jsonl' if command == 'mine' else ''}"
        run_sound([command, "--recipe", str(recipe), "--output", str(output)], folder, must=False)
    out = ["--output", str(folder.parent / "out")]
    for number, path in enumerate(files(training)):
        run_sound(
            ["finetune", "model", "--data", str(path), *TUNED, out[0], f"{out[1]}-{number}"],
            folder,
            must=False,
        )
    for path in files(corpora):
        run_sound(
            ["contamination", "--train", str(path), "--data", "beir", "--no-minhash"], folder, must=False
        )
    run_sound(["bench", "--data", "kilt.jsonl", "--corpus", "wiki.jsonl", *out], folder, must=False)
    prepared = [
        *"prepare master --tokenizer base --corpus corpora/c.jsonl --output".split(),
        f"{out[1]}-prepared",
    ]
    run_sound([*prepared, *PREPARED.split()], folder, must=False)


def build_adaptation(folder: Path, texts: list[str]) -> None:
    """Makes the sound inputs of `read`, `ask`, `adapt` and `judge`."""
    import docx
    from reportlab.pdfgen import canvas

    from stzoo.data import pydocs
    from stzoo.testing.tiny_models import tiny_causal_lm, tiny_t5

    tiny_causal_lm(folder / "writer")
    tiny_t5(folder / "t5")
    docs = folder / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "a.md").write_text("# One\n\n" + "\n\n## Two\n\n".join(texts[:6]) + "\n")
    (docs / "b.txt").write_text("\n\n".join(texts[6:9]))
    paragraphs = "".join(f"<h2>Part</h2><p>{text}</p>" for text in texts[9:12])
    (docs / "sub" / "c.html").write_text(f"<html><title>Page</title><body>{paragraphs}</body></html>")
    for name in ("c.jsonl", "c.json", "c.jsonl.gz", "c.parquet"):
        shutil.copy(folder / "corpora" / name, docs / "sub" / name)
    for name, sign in (("d.csv", ","), ("d.tsv", "\t")):
        lines = [f"{at}{sign}{text}" for at, text in enumerate(texts)]
        (docs / name).write_text("\n".join([f"id{sign}text", *lines]) + "\n")
    document = docx.Document()
    page = canvas.Canvas(str(docs / "f.pdf"))
    for text in texts[:4]:
        document.add_heading("Part", 1)
        document.add_paragraph(text)
        page.drawString(72, 700, text[:80])
        page.showPage()
    document.save(str(docs / "e.docx"))
    page.save()
    pairs = {pair.passage_id: pair for pair in pydocs.pairs()}
    rows = [{"_id": one.passage_id, "text": one.passage} for one in list(pairs.values())[:350]]
    (folder / "library").mkdir()
    (folder / "library" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_sound(["read", "docs", "--output", str(folder.parent / "read")], folder)
    run_sound(ASKED, folder)
    run_sound(["adapt", str(folder / "model"), *ADAPTED], folder)
    run_sound(JUDGED, folder)  # which ends at once, as there is no input
    pool = json.loads((folder / "adapted" / "judged" / "judge.json").read_text())["pool"]
    answers = [
        {"query": one, "document": other, "grade": at % 3} for at, (one, other) in enumerate(pool[:-3])
    ]
    (folder / "adapted" / "judged" / "answers.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in answers)
    )
    run_sound(JUDGED, folder)


ASKED = "ask library --output asked --count 200".split()
ADAPTED = "--corpus library --output adapted".split()
JUDGED = "judge adapted --terminal".split()
RESUMED = "pretrain --base base --corpus corpora/c.jsonl --max-steps 6 --save-steps 2".split()
RESUMED += "--batch-size 4 --max-tokens 16".split()


def run_sound(words: list[str], folder: Path, *, break_off: bool = False, must: bool = True) -> str:
    """Runs a command on sound inputs in a process of its own; it ends well, or breaks off before its export."""
    errors = folder.parent / "sound.txt"
    child = os.fork()
    if child == 0:
        _quiet(errors)
        os.chdir(folder)
        os.environ["STZOO_CACHE"] = str(folder.parent / "cache")
        if break_off:
            importlib.import_module("stzoo.pretraining.pretrain").export = lambda *_, **__: os.kill(
                os.getpid(), signal.SIGKILL
            )
        _run(words)
    code = os.waitpid(child, 0)[1]
    if os.waitstatus_to_exitcode(code) != (-signal.SIGKILL if break_off else 0):
        print(errors.read_text())
        if not must:
            print(
                f"note: the sound command {' '.join(words)} fails, so that damaged inputs of it show little"
            )
            return ""
        raise SystemExit(f"the sound command {' '.join(words)} failed:\n{errors.read_text()}")
    return errors.read_text()


def _quiet(errors: Path) -> None:
    """Sends what the process prints into files; it reads nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number, target in ((1, errors.with_suffix(".out")), (2, errors)):
        os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = io.TextIOWrapper(
        os.fdopen(1, "wb", closefd=False), "utf-8", "backslashreplace", write_through=True
    )
    sys.stderr = io.TextIOWrapper(
        os.fdopen(2, "wb", closefd=False), "utf-8", "backslashreplace", write_through=True
    )


def _run(words: list[str]) -> None:
    """Runs the command line in this process and ends it."""
    from stzoo.cli import main

    code: Any = 99
    try:
        main(words)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 98)


# ------------------------------------------------------------------------------ areas
# An area makes a case's input from the sound ones in SOUND, in the current folder. It returns the words of the
# command and, if the output must be as for the sound input, a function that gives the output, or else None.

SOUND = Path()
Case = tuple[list[str], Callable[[], str] | None]
SMALL = "--batch-size 4 --max-steps 2 --max-tokens 16".split()
PREPARED = "--queries lexical --continuation none --neighbours none"
TUNED = "--batch-size 4 --max-steps 2 --dev-queries 0".split()


def take(name: str) -> Path:
    """Copies a sound input into the current folder."""
    target = Path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = SOUND / name
    shutil.copytree(source, target, symlinks=True) if source.is_dir() else shutil.copy(source, target)
    return target


def files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files of a folder and those below it, in order."""
    return sorted(path for path in folder.rglob(pattern) if path.is_file() and path.name != ".stzoo.lock")


# fmt: off
RECIPES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "base": "BASE", "corpus": ["CORPUS"], "objective": "retromae", "min_words": 3,
        "options": {"decoder_rate": 0.5}, "weights": {"encoder": 1.0}, "max_steps": 1, "batch_size": 4, "max_tokens": 16, "learning_rate": 1e-4,
        "warmup_ratio": 0.1, "seed": 1, "precision": "fp32", "save_steps": 5, "report_to": [], "workers": 0,
        "threads": 1, "device": "cpu",
    },
    "finetune": {
        "model": "MODEL", "data": "BEIR", "max_steps": 1, "batch_size": 4, "dev_queries": 0, "loss_options": {},
        "losses": {"contrastive": 1.0}, "temperature": 0.05, "negatives": 0, "max_query_tokens": 8, "seed": 1,
        "max_passage_tokens": 16, "matryoshka": [16], "query_prompt": "query: ", "similarity": "cosine",
        "lora_rank": 0, "epochs": 1.0, "split": "train",
    },
    "mine": {
        "model": "MODEL", "data": "BEIR", "mined": 2, "depth": 6, "skip": 1, "sampling": "random", "seed": 1,
        "absolute_margin": None, "relative_margin": 0.05, "memory_gib": 1.0, "split": "train",
        "batch_tokens": 512,
    },
}
# fmt: on


def recipes(draw: random.Random) -> Case:
    """A recipe of one of three commands."""
    command = draw.choice(list(RECIPES))
    values = json.loads(json.dumps(RECIPES[command]))
    for _ in range(draw.choice([0, 1, 1, 1, 2])):
        key = draw.choice(list(values))
        place = values
        if isinstance(values[key], dict) and values[key] and draw.random() < 0.5:
            place, key = values[key], draw.choice(list(values[key]))
        kind = draw.randrange(6)
        if kind == 0:
            place[f"{key}x"] = place.pop(key)
        elif kind == 1:
            place[key] = [place[key]]
        else:
            place[key] = draw.choice(ODD_VALUES)
    if draw.random() < 0.15:
        tasks = [
            {"name": draw.choice(["a", "b", *ODD_TEXTS[:20]]), "data": str(SOUND / "beir")} for _ in range(2)
        ]
        values["tasks"] = draw.choice([tasks, ODD_VALUES[draw.randrange(len(ODD_VALUES))]])
        values.pop("data", None)
    text = json.dumps(values, indent=1)  # JSON is YAML
    if draw.random() < 0.4:
        text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items()) + "\n"
        lines = text.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = draw.choice(
            [
                f"{lines[place].partition(':')[0]}: {draw.choice(ODD_YAML)}",
                lines[place] + "\n" + lines[place],
                draw.choice(ODD_YAML),
            ]
        )
        text = "\n".join(lines) + "\n"
    raw = _placed(text).encode("utf-8", "surrogatepass")
    Path("recipe.yaml").write_bytes(odd_bytes(draw, raw) if draw.random() < 0.3 else raw)
    words = [command, "--recipe", "recipe.yaml", "--output", "out.jsonl" if command == "mine" else "out"]
    return words, None


def _placed(text: str) -> str:
    """A recipe with the paths of the sound inputs."""
    for word, name in (("BASE", "base"), ("CORPUS", "corpora/c.jsonl"), ("MODEL", "model"), ("BEIR", "beir")):
        text = text.replace(f'"{word}"', json.dumps(str(SOUND / name)))
    return text


def options(draw: random.Random) -> Case:
    """A command line."""
    s = str(SOUND)
    sound = {
        "pretrain": [*f"--base {s}/base --corpus {s}/corpora/c.jsonl --output out".split(), *SMALL],
        "finetune": [*f"{s}/model --data {s}/beir --output out".split(), *TUNED],
        "mine": f"{s}/model --data {s}/beir --output out.jsonl --mined 2 --depth 5".split(),
        "prepare": f"master --corpus {s}/beir --tokenizer {s}/base --output out {PREPARED}".split(),
        "bench": f"{s}/model --data {s}/beir --output out".split(),
        "score": [f"{s}/bm25.run", "--data", f"{s}/beir"],
        "compare": f"model bm25s --results {s}/results".split(),
        "report": [f"{s}/results", "--output", "page.html"],
        "contamination": f"--train {s}/beir/corpus.jsonl --data {s}/beir --output out".split(),
        "search": f"{s}/model words --data {s}/beir".split(),
        "card": [f"{s}/run", "--output", "card.md"],
        "export": [f"{s}/model", "--output", "out"],
        "merge": f"{s}/model {s}/other --output out".split(),
        "publish": f"{s}/model org/name --dry-run --license mit".split(),
        "import": ["x", "--output", "out"],
        "list": [],
        "plugins": [],
        "recipe": ["show", "retromae-pretrain"],
    }
    command = draw.choice(list(sound))
    return odd_words(draw, command, sound[command]), None


def odd_words(draw: random.Random, command: str, words: list[str]) -> list[str]:
    """A command line with one to three words changed."""
    s, known = str(SOUND), OPTIONS.get(command, [])
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        kind = draw.randrange(8)
        if kind == 0 and words:
            del words[draw.randrange(len(words))]
        elif kind == 1 and words:
            words[draw.randrange(len(words))] = draw.choice(ODD_TEXTS)
        elif kind == 2:
            words.insert(draw.randrange(len(words) + 1), draw.choice(ODD_TEXTS))
        elif known:
            name, flag = draw.choice(known)
            values = [
                *ODD_TEXTS,
                *map(str, ODD_NUMBERS[:-1]),
                f"{s}/beir",
                f"{s}/model",
                f"{s}/corpora/c.csv",
                f"{s}/bm25.run",
                "a=b",
                "seed=1",
            ]
            words += [name] if flag else [name, draw.choice(values)]
    return [command, *(word.replace("\0", "") for word in words)]  # no command line can have it


def models(draw: random.Random) -> Case:
    """A model folder, or its weights."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    model, must = take("model"), False
    if draw.random() < 0.35:
        path = model / "model.safetensors"
        tensors = load_file(path)
        name = draw.choice(list(tensors))
        kind, must = draw.choice(["drop", "rename", "shape", "nan", "prefix", "dtype", "more"]), True
        if kind == "drop":
            del tensors[name]
        elif kind == "rename":
            tensors[f"{name}x"] = tensors.pop(name)
        elif kind == "shape":
            tensors[name] = np.zeros([size + 1 for size in tensors[name].shape], "float32")
        elif kind == "nan":
            tensors[name] = np.full(tensors[name].shape, draw.choice([np.nan, np.inf]), "float32")
        elif kind == "prefix":
            tensors = {f"module.{key}": value for key, value in tensors.items()}
        elif kind == "dtype":
            tensors[name] = tensors[name].astype(draw.choice(["int32", "uint8", "bool"]))
        else:
            tensors["extra.weight"] = np.zeros([3], "float32")
        path.unlink()
        save_file(tensors, path, {"format": "pt"})
    else:
        path = draw.choice(files(model))
        must = path.suffix == ".safetensors" and odd_file(draw, path) == "missing"
        if path.suffix != ".safetensors":
            odd_file(draw, path)
    s = str(SOUND)
    commands = [
        f"bench model --data {s}/beir --output out --no-bm25 --json".split(),
        f"bench model --data {s}/beir --output out --no-bm25 --json".split(),
        ["search", "model", "some words", "--data", f"{s}/beir"],
        "export model --output out".split(),
        f"merge model {s}/other --output out".split(),
        "card model --output card.md".split(),
        f"mine model --data {s}/beir --output out.jsonl --mined 2 --depth 5".split(),
        [*f"finetune model --data {s}/beir --output out".split(), *TUNED],
        [*f"pretrain --base model --corpus {s}/corpora/c.jsonl --output out".split(), *SMALL],
    ]
    words = draw.choice(commands)
    return words, bench_scores if must and words[0] == "bench" else None


def bench_scores() -> str:
    """What `bench` has filed: every query's score of the model."""
    stored = [json.loads(path.read_text()) for path in sorted(Path("out").glob("model/*/beir*.json"))]
    return json.dumps([(one.get("scores"), one.get("per_query")) for one in stored], sort_keys=True)


def results(draw: random.Random) -> Case:
    """Results of bench."""
    folder = take("results")
    path = draw.choice(files(folder, "*.json") if draw.random() < 0.9 else files(folder))
    must = None
    if path.name == "beir.json" and draw.random() < 0.3:
        # another mean than that of the queries' own scores
        stored = json.loads(path.read_text())
        boxes = [box for box, key in _places(stored) if key == "nDCG@10" and isinstance(box[key], float)]
        if boxes:
            draw.choice(boxes)["nDCG@10"] = 0.123
            path.write_text(json.dumps(stored))
            must = compared
    else:
        odd_file(draw, path)
    commands = [
        "compare model bm25s --results results --json".split(),
        "report results --output page.html --formats txt".split(),
    ]
    commands.append([*"compare model bm25s --results results --data".split(), str(SOUND / "beir")])
    words = commands[0] if must else draw.choice(commands)
    return words, must


def compared() -> str:
    """What `compare` printed."""
    return Path(CASE, "stderr.out").read_text()


def corpora(draw: random.Random) -> Case:
    """A corpus of any format, or a BEIR folder's."""
    if draw.random() < 0.5:
        folder = take("beir")
        odd_file(draw, folder / draw.choice(["corpus.jsonl", "queries.jsonl"]))
        words = draw.choice(
            [
                "bench --data beir --output out".split(),
                ["search", str(SOUND / "model"), "words", "--data", "beir"],
            ]
        )
        return words, None
    path = take(f"corpora/{draw.choice(sorted(path.name for path in (SOUND / 'corpora').iterdir()))}")
    odd_file(draw, path)
    s, name = str(SOUND), str(path)
    commands = [
        [*f"pretrain --base {s}/base --corpus".split(), name, "--output", "out", *SMALL, "--max-steps", "1"],
        ["contamination", "--train", name, "--data", f"{s}/beir", "--no-minhash"],
        [*f"prepare master --tokenizer {s}/base --output out {PREPARED} --corpus".split(), name],
    ]
    return draw.choice(commands), None


def training(draw: random.Random) -> Case:
    """A file of training data of any form."""
    path = take(f"training/{draw.choice(sorted(path.name for path in (SOUND / 'training').iterdir()))}")
    odd_file(draw, path)
    s, name = str(SOUND), str(path)
    commands = [
        ["finetune", f"{s}/model", "--data", name, "--output", "out", *TUNED, "--max-steps", "1"],
        [
            "mine",
            "bm25s",
            "--data",
            name,
            "--corpus",
            f"{s}/beir",
            "--output",
            "out.jsonl",
            "--mined",
            "2",
            "--depth",
            "5",
        ],
        ["contamination", "--train", name, "--data", f"{s}/beir", "--no-minhash"],
    ]
    return draw.choice(commands), None


def qrels(draw: random.Random) -> Case:
    """Judgements."""
    folder = take("beir")
    odd_file(draw, folder / "qrels" / draw.choice(["test.tsv", "test.tsv", "train.tsv"]))
    s = str(SOUND)
    commands = [
        f"score {s}/bm25.run --data beir".split(),
        f"score {s}/bm25.run --data beir/qrels/test.tsv".split(),
        "bench --data beir --output out".split(),
        "mine bm25s --data beir --output out.jsonl --mined 2 --depth 5".split(),
        [*f"finetune {s}/model --data beir --output out".split(), *TUNED, "--max-steps", "1"],
    ]
    return draw.choice([*commands[:2], *commands]), None


def documents(draw: random.Random) -> Case:
    """Documents to read."""
    if draw.random() < 0.2:
        return odd_words(draw, "read", [str(SOUND / "docs"), "--output", "out"]), None
    source = take("docs")
    if draw.random() < 0.3:
        odd_folder(draw, source)
    else:
        path = draw.choice(files(source))
        odd_file(draw, path)
        source = draw.choice([source, path])
    return ["read", str(source), "--output", "out"], None


def odd_folder(draw: random.Random, folder: Path) -> None:
    """Replaces the documents of a folder by what nobody expects."""
    shutil.rmtree(folder)
    folder.mkdir()
    kind, text = (
        draw.randrange(9),
        "The lift of a wing in a slipstream grows with the velocity of the propeller. ",
    )
    if kind == 1:
        for at in range(10):
            (folder / f"{at}.md").write_text(f"# Part {at}\n\n{text * (at + 1)}")
    elif kind == 2:
        for at in range(300):
            (folder / f"{at}.txt").write_text(text)
    elif kind == 3:
        deep = folder.joinpath(*["a"] * 400)
        deep.mkdir(parents=True)
        (deep / "a.md").write_text(text)
    elif kind == 4:
        name, opened, closed = draw.choice(
            [("a.html", "<div>", "</div>"), ("a.md", "> ", ""), ("a.md", "* [", "](x)"), ("a.json", "[", "]")]
        )
        (folder / name).write_text(opened * 20_000 + text + closed * 20_000)
    elif kind == 5:
        suffix = draw.choice(["txt", "md", "html", "csv", "jsonl", "json", "tsv"])
        row = {"jsonl": '{"text": "%s"}', "json": '[{"text": "%s"}]', "csv": "text\n%s"}.get(suffix, "%s")
        (folder / f"a.{suffix}").write_text(row % (draw.choice([text, "x", "\t"]) * 200_000))
    elif kind == 6:
        for name in ODD_TEXTS:
            with contextlib.suppress(OSError, ValueError):
                (folder / f"{name}.md").write_text(text)
    elif kind == 7:
        (folder / "a.md").write_text("\n\n".join(f"{'#' * draw.randrange(9)} {one}" for one in ODD_TEXTS))
    elif kind == 8:  # 300 MB in a file of 0.3 MB
        with zipfile.ZipFile(folder / "a.docx", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("word/document.xml", "<w>" * 10 + " " * 300_000_000)


def asking(draw: random.Random) -> Case:
    """Passages, an earlier run, or what generates the queries."""
    s, kind = str(SOUND), draw.randrange(5)
    if kind == 0:
        return odd_words(draw, "ask", [f"{s}/library", "--output", "out", "--count", "20"]), None
    if kind == 1:
        odd_file(draw, take("library/corpus.jsonl"))
        return "ask library --output out --count 50".split(), None
    if kind == 2:
        take("library")
        odd_file(draw, draw.choice(files(take("asked"))))
        return [*ASKED], asked
    words = f"ask {s}/library --output out --count 20 --queries".split()
    if kind == 3:
        model = take(draw.choice(["writer", "t5"]))
        odd_file(draw, draw.choice(files(model)))
        return [*words, str(model)], None
    return [*words, endpoint(draw), "--retries", "0", "--timeout", "1"], None


def asked() -> str:
    """The queries that `ask` has written."""
    return Path("asked/questions.jsonl").read_text()


def endpoint(draw: random.Random) -> str:
    """The URL of a server of language models that is down, fails, or answers whatever it likes."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from support.chat_server import ChatServer, queries

    kind = draw.randrange(5)
    if kind == 0:
        return draw.choice(
            ["http://127.0.0.1:9/v1", "http://[::1]:9", "http://x.invalid", "ftp://x/v1", "http://:0"]
        )
    if kind == 1:
        return f"{serve(draw)}/v1"
    server = ChatServer()
    if kind == 2:
        server.fault, server.faults = (
            draw.choice("500 429 404 html half closed null".split()),
            draw.choice([1, 99]),
        )
    elif kind == 3:
        server.wait = 1.5
    else:
        odd = [*ODD_JSON, *ODD_TEXTS, "I'm sorry, I can't.", "Ein Satz auf Deutsch, nach dem keiner fragt."]
        server.answer = lambda body: (
            queries(body) if draw.random() < 0.3 else json.dumps({"queries": [draw.choice(odd)] * 3})
            if draw.random() < 0.5 else draw.choice(odd)
        )  # fmt: skip
    return server.url


def adapting(draw: random.Random) -> Case:
    """A corpus, or a run of adapt."""
    s, kind = str(SOUND), draw.randrange(4)
    if kind == 0:
        return odd_words(draw, "adapt", [f"{s}/model", "--corpus", f"{s}/library", "--output", "out"]), None
    if kind == 1:
        docs = take("docs")
        odd_folder(draw, docs) if draw.random() < 0.5 else odd_file(draw, draw.choice(files(docs)))
        return ["adapt", f"{s}/model", "--corpus", "docs", "--output", "out"], None
    take("library")
    run, words = take("adapted"), ["adapt", f"{s}/model", *ADAPTED]
    if kind == 2:
        odd_file(draw, draw.choice(files(run)))
        return words, None
    (run / "adapt.json").unlink()
    odd_file(draw, draw.choice([*files(run / "questions"), run / "settings.json"]))
    return words, adapted


def adapted() -> str:
    """The scores of an adapted model."""
    return json.dumps(json.loads(Path("adapted/adapt.json").read_text())["scores"])


def judging(draw: random.Random) -> Case:
    """Results to judge, or answers of a judge."""
    if draw.random() < 0.2:
        return [*odd_words(draw, "judge", [str(SOUND / "adapted"), "--output", "out"]), "--terminal"], None
    run = take("adapted")
    inputs = [*files(run / "results"), *files(run / "held_out")]
    odd_file(draw, draw.choice(draw.choice([inputs, files(run / "judged")])))
    return [*JUDGED], None


def runs(draw: random.Random) -> Case:
    """A TREC run, or a KILT file."""
    if draw.random() < 0.2:
        odd_file(draw, take(draw.choice(["kilt.jsonl", "wiki.jsonl"])))
        places = [name if Path(name).exists() else str(SOUND / name) for name in ("kilt.jsonl", "wiki.jsonl")]
        return ["bench", "--data", places[0], "--corpus", places[1], "--output", "out"], None
    odd_file(draw, take("bm25.run"))
    where = draw.choice(["beir", "beir", "beir/qrels/test.tsv", "kilt.jsonl"])
    more = draw.choice([[], ["--json"], ["--output", "out"], ["--k", "5"]])
    return ["score", "bm25.run", "--data", str(SOUND / where), *more], None


def checkpoints(draw: random.Random) -> Case:
    """A run that was killed before its export: resumed from a damaged checkpoint, it ends in the same model."""
    folder = take("killed")
    take("base")
    take("corpora")
    parts = files(folder / "checkpoints") * 3 + files(folder)
    odd_file(draw, draw.choice(parts))
    return [*RESUMED, "--output", "killed", "--resume"], weights


def weights() -> str:
    """A digest of the weights that a run ended with."""
    return hashlib.sha256(Path("killed/model.safetensors").read_bytes()).hexdigest()


def stores(draw: random.Random) -> Case:
    """An embedding store with a damaged file: scores are the same, or the store is refused."""
    store = take("store")
    take("model")
    take("beir")
    odd_file(draw, draw.choice(files(store / "model")))
    if draw.random() < 0.3:
        return [
            "search",
            str(next(store.glob("model/*document*"), store)),
            "some words",
            "--data",
            "beir",
        ], found
    return "bench model --data beir --output out --no-bm25 --store store --k 20".split(), bench_scores


def found() -> str:
    """What `search` printed."""
    return Path(CASE, "stderr.out").read_text()


ANSWERS = [
    b"[]",
    b"null",
    b'"a"',
    b"{}",
    b"<!DOCTYPE html><title>Log in</title>",
    b"\xff\x00{",
    b'{"sha": 3, "id": []}',
    b"1",
    b"",
    DEEP.encode(),
]


def hub(draw: random.Random) -> Case:
    """A server in place of the Hub and of BEIR's archives that answers whatever it likes."""
    url = serve(draw)
    os.environ |= {"HF_ENDPOINT": url, "STZOO_BEIR_URL": f"{url}/archives", "HF_TOKEN": "hf_" + "x" * 34}
    from datasets import config
    from huggingface_hub import constants

    changed = {
        "ENDPOINT": url,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_ETAG_TIMEOUT": 1,
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
    }
    changed |= {
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(Path("hf").resolve()),
    }
    for name, value in changed.items():
        setattr(constants, name, value)
    config.HF_ENDPOINT, config.HF_HUB_OFFLINE = url, False
    from stzoo.plugins import manager

    ids = [row.hub_id for row in manager.all("checkpoint").values() if row.hub_id]
    s = str(SOUND)
    commands = [
        f"publish {s}/model org/name --license mit".split(),
        f"publish {s}/model org/name --license mit --dry-run".split(),
        ["import", draw.choice(ids), "--output", "out"],
        "bench --datasets nfcorpus --output out".split(),
        [*f"pretrain --base {s}/base --corpus org/name --output out".split(), *SMALL],
        f"bench org/name --data {s}/beir --output out".split(),
        [*f"finetune {s}/model --data {s}/beir --teacher org/name --output out".split(), *TUNED],
    ]
    return draw.choice(commands), None


def serve(draw: random.Random) -> str:
    """Starts a server whose answers come from the draw, and returns its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            self.close_connection = True
            kind = draw.randrange(10)
            if kind == 0:
                time.sleep(1)  # longer than is waited for
                return
            if kind == 1:
                return
            body = draw.choice(ANSWERS)
            if "whoami" in self.path and draw.random() < 0.6:
                body = b'{"name": "me", "auth": {"accessToken": {"role": "write"}}, "orgs": []}'
            self.send_response(
                302 if kind == 2 else draw.choice([200, 200, 200, 200, 404, 401, 403, 500, 429])
            )
            if kind == 2:
                self.send_header("Location", self.path)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", draw.choice(["a" * 40, "x", ""]))
            self.send_header("ETag", draw.choice(['"x"', ""]))
            self.send_header("Content-Length", str(len(body) + (kind == 3)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the base class calls these

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


# shares of the cases
AREAS: dict[str, tuple[Callable[[random.Random], Case], int]] = {
    "recipes": (recipes, 14),
    "options": (options, 16),
    "models": (models, 12),
    "results": (results, 10),
    "corpora": (corpora, 10),
    "training": (training, 10),
    "qrels": (qrels, 8),
    "runs": (runs, 8),
    "checkpoints": (checkpoints, 5),
    "stores": (stores, 5),
    "hub": (hub, 2),
    "documents": (documents, 6),
    "asking": (asking, 6),
    "adapting": (adapting, 4),
    "judging": (judging, 4),
}
OPTIONS: dict[str, list[tuple[str, bool]]] = {}
CASE = Path()
EXPECTED: dict[str, str] = {}


def cases(number: int, only: str | None) -> list[tuple[str, int]]:
    """Area and number of each case."""
    chosen = {name: share for name, (_, share) in AREAS.items() if only in (None, name)}
    total = sum(chosen.values())
    counts = {name: max(1, number * share // total) for name, share in chosen.items()}
    counts[next(iter(counts))] += max(0, number - sum(counts.values()))
    order = [(name, index) for name, count in counts.items() for index in range(count)]
    random.Random(0).shuffle(order)
    return order


# ------------------------------------------------------------------------------ one case


def start(area: str, index: int, seed: int, place: Path) -> int:
    """Forks a process that makes a case and runs it; returns its id."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "work").mkdir(parents=True)
    child = os.fork()
    if child:
        return child
    global CASE
    CASE = place
    os.setpgid(0, 0)
    _quiet(place / "stderr")
    os.chdir(place / "work")
    os.environ["STZOO_CACHE"] = str(place / "cache")
    tempfile.tempdir = None
    os.environ["TMPDIR"] = str(place)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(f"{seed}:{area}:{index}")
    try:
        words, signature = AREAS[area][0](draw)
        (place / "words.json").write_text(json.dumps(words))
        kept = place / "input"
        size = sum(path.stat().st_size for path in files(Path()))
        (place / "size").write_text(str(size))
        if size < 1 << 22:
            shutil.copytree(".", kept, symlinks=True, copy_function=_link)
    except BaseException:
        traceback.print_exc()
        os._exit(97)
    limit = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if signature:
        _run_and_sign(words, signature, place)
    _run(words)
    return 0


def _link(source: str, target: str) -> None:
    if not Path(source).is_file():
        return  # pipes and loops
    shutil.copy(source, target)


def _run_and_sign(words: list[str], signature: Callable[[], str], place: Path) -> None:
    """Runs the command, and writes down what must be as for the sound input if it ends well."""
    from stzoo.cli import main

    try:
        main(words)
    except SystemExit as ended:
        sys.stdout.flush()
        if not ended.code:
            try:
                (place / "signature").write_text(signature())
            except (OSError, ValueError):
                (place / "signature").write_text("no output")
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 98)
    except BaseException:
        traceback.print_exc()
        os._exit(99)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def judge(status: int, place: Path, area: str, timed_out: bool) -> tuple[str, str]:
    """How a case ended, and what distinguishes its failure from others."""
    said = (place / "stderr").read_text("utf-8", "replace") if (place / "stderr").exists() else ""
    words = json.loads((place / "words.json").read_text()) if (place / "words.json").exists() else ["?"]
    if timed_out:
        return "hang", words[0]
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return "killed", f"{words[0]}: signal {-code}"
    if "Traceback (most recent call last)" in said or code not in (0, 2, 70):
        lines = [line for line in said.splitlines() if line.strip()] or [""]
        frames = re.findall(r'File "[^"]*/((?:stzoo|plugins)[^"]*)", line (\d+), in (\w+)', said)
        return "traceback", f"{words[0]}: exit {code}: {frames[-1] if frames else ''} {lines[-1][:200]}"
    if code == 70:
        failed = re.search(r"failed(?: in ([\w.]+))?.*?:\n  (\w+)", said, re.DOTALL)
        return "guard", f"{words[0]}: {failed[1]} {failed[2]}" if failed else words[0]
    if code == 2:
        return (
            ("refused", "") if "stzoo: " in said else ("traceback", f"{words[0]}: exit 2 without a sentence")
        )
    printed = (place / "stderr.out").read_text("utf-8", "replace")
    if re.search(r'": -?(NaN|Infinity)', printed):
        return "silent", f"{area}: {words[0]}: a number that is not finite"
    if (place / "signature").exists():
        expected = EXPECTED.get(_kind(area, words))
        if expected is not None and (place / "signature").read_text() != expected and not _was_said(said):
            return "silent", f"{area}: {words[0]}"
    return "ok", ""


def _was_said(said: str) -> bool:
    """True if a warning or note was shown."""
    return any(line.startswith(("stzoo: ", "warning: ")) for line in said.splitlines())


def _kind(area: str, words: list[str]) -> str:
    return f"{area}:{words[0]}"


def expected_signatures(work: Path) -> dict[str, str]:
    """What the commands of areas with a signature give for the sound inputs."""
    made: dict[str, str] = {}
    signed = {"models": 1, "results": 1, "checkpoints": 1, "stores": 2, "asking": 1, "adapting": 1}
    for area, number in signed.items():
        place = work / "expected"
        change = globals()["odd_file"]
        globals()["odd_file"] = lambda *_: ""  # the sound input as it is
        try:
            for index in range(40):
                if sum(key.startswith(f"{area}:") for key in made) == number:
                    break
                status = os.waitpid(start_sound(area, index, place), 0)[1]
                if (place / "signature").exists() and os.waitstatus_to_exitcode(status) == 0:
                    words = json.loads((place / "words.json").read_text())
                    made.setdefault(_kind(area, words), (place / "signature").read_text())
        finally:
            globals()["odd_file"] = change
    return made


def start_sound(area: str, index: int, place: Path) -> int:
    """A case of an area without any change of its input."""
    sound: dict[str, Callable[[random.Random], Case]] = {
        "models": lambda _: (
            take("model")
            and ["bench", "model", "--data", str(SOUND / "beir"), "--output", "out", "--no-bm25", "--json"],
            bench_scores,
        ),
        "results": lambda _: (
            take("results") and "compare model bm25s --results results --json".split(),
            compared,
        ),
        "asking": lambda _: (take("library") and take("asked") and [*ASKED], asked),
        "adapting": lambda _: (
            take("library") and take("adapted") and ["adapt", str(SOUND / "model"), *ADAPTED],
            adapted,
        ),
    }
    before = AREAS[area]
    AREAS[area] = (sound.get(area, before[0]), before[1])
    try:
        return start(area, index, 0, place)
    finally:
        AREAS[area] = before


# ------------------------------------------------------------------------------ the campaign


def campaign(order: list[tuple[str, int]], seed: int, work: Path, jobs: int) -> None:
    """Runs what of the cases is not done yet."""
    journal = work / "cases.jsonl"
    done = {(one["area"], one["index"]) for one in read_journal(journal)}
    left = [case for case in order if case not in done]
    running: dict[int, tuple[str, int, Path, float]] = {}
    slots = [work / f"slot-{number}" for number in range(jobs)]
    begun, finished = time.monotonic(), 0
    with journal.open("a", encoding="utf-8") as log:
        while left or running:
            while left and len(running) < jobs:
                area, index = left.pop()
                place = next(slot for slot in slots if slot not in [one[2] for one in running.values()])
                running[start(area, index, seed, place)] = (area, index, place, time.monotonic())
            ended, status = os.waitpid(-1, os.WNOHANG)
            late = next((pid for pid, one in running.items() if time.monotonic() - one[3] > SECONDS), None)
            if ended not in running and late is None:
                time.sleep(0.005)
                continue
            if ended not in running:
                ended = late
                os.killpg(ended, signal.SIGKILL)
                status = os.waitpid(ended, 0)[1]
            area, index, place, since = running.pop(ended)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(ended, signal.SIGKILL)  # what it may have started
            end, what = judge(status, place, area, time.monotonic() - since > SECONDS)
            row = {
                "area": area,
                "index": index,
                "end": end,
                "what": what,
                "seconds": round(time.monotonic() - since, 2),
            }
            if end in FAILURES:
                row["size"] = int((place / "size").read_text()) if (place / "size").exists() else 0
                row["kept"] = keep(place, work / "failures" / f"{area}-{index}-{end}")
            log.write(json.dumps(row) + "\n")
            log.flush()
            finished += 1
            if finished % 200 == 0:
                rate = finished / (time.monotonic() - begun)
                print(
                    f"{finished} of {finished + len(left) + len(running)} cases, {rate:.1f} a second",
                    flush=True,
                )


def keep(place: Path, target: Path) -> str:
    """Keeps the input, the words and what was said."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("stderr", "stderr.out", "words.json", "signature", "input"):
        if (place / name).is_dir():
            shutil.copytree(place / name, target / name, symlinks=True)
        elif (place / name).exists():
            shutil.copy(place / name, target / name)
    for log in (place / "cache").rglob("errors/*.log"):
        shutil.copy(log, target / "traceback.log")
    return str(target)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """What was written down of the cases that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def warm() -> None:
    """Imports what commands use, so that no case has to, and leaves the slow check in a fresh process out."""
    import datasets  # noqa: F401
    import openai  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch

    import stzoo.adaptation.adapt
    import stzoo.adaptation.questions.local_model
    import stzoo.cli
    import stzoo.evaluation.judge
    import stzoo.finetuning.finetune
    import stzoo.finetuning.mining
    import stzoo.hub.export
    import stzoo.hub.merge
    import stzoo.hub.publish
    import stzoo.pretraining.pretrain

    torch.set_num_threads(1)
    sys.modules["stzoo.hub.export"]._verify = lambda *_, **__: (
        None
    )  # a process of its own; other tests see to it
    sys.modules["stzoo.hub.publish"].check_load = lambda *_: 32
    stzoo.cli.add_plugins([])
    import typer

    group = typer.main.get_command(stzoo.cli.app)
    for name, command in group.commands.items():
        OPTIONS[name] = [
            (one.opts[0], bool(getattr(one, "is_flag", False)))
            for one in command.params
            if one.opts[0].startswith("--")
        ]


def summary(rows: list[dict[str, Any]], seed: int, seconds: float) -> dict[str, Any]:
    """What is filed: counts by area and end, versions, and the processor."""
    from stzoo.training.records import versions

    areas = {name: Counter(row["end"] for row in rows if row["area"] == name) for name in AREAS}
    processor = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cases": len(rows),
        "seed": seed,
        "ends": {end: sum(counts[end] for counts in areas.values()) for end in ENDS},
        "areas": {
            name: {end: counts[end] for end in ENDS if counts[end]}
            for name, counts in areas.items()
            if counts
        },
        "seconds": round(seconds, 1),
        "versions": versions(),
        "processor": processor[1] if processor else "unknown",
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the smallest input of each distinct failure."""
    failures: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["end"] in FAILURES:
            failures.setdefault((row["end"], row["area"], row["what"]), []).append(row)
    for (end, area, what), found_rows in sorted(failures.items()):
        smallest = min(found_rows, key=lambda row: row.get("size", 0))
        print(f"{end:9} {area:11} x{len(found_rows):<3} {what}\n          {smallest['kept']}")


def main() -> None:
    """Runs the campaign from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=5500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=AREAS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--fresh", action="store_true", help="begin again")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "fuzz.json")
    given = parser.parse_args()
    global SOUND
    work = (given.work or Path(tempfile.gettempdir()) / f"stzoo-fuzz-{given.seed}").resolve()
    output = given.output.resolve()
    if given.fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    warm()
    SOUND = work / "sound"
    if not (work / "built").exists():
        shutil.rmtree(SOUND, ignore_errors=True)
        SOUND.mkdir()
        build(SOUND)
        (work / "built").touch()
    EXPECTED.update(expected_signatures(work))
    print(f"the sound inputs are in {SOUND}; signatures of {', '.join(EXPECTED)}", flush=True)
    campaign(cases(given.cases, given.only), given.seed, work, given.jobs)
    rows = read_journal(work / "cases.jsonl")
    show(rows)
    made = summary(rows, given.seed, time.monotonic() - begun)
    print(json.dumps({"ends": made["ends"], "areas": made["areas"]}, indent=1))
    if not given.only:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
