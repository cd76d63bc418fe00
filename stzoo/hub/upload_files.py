"""What of a folder is published, and what is seen to before: it loads everywhere, and tells no secrets.

Sent are the files that a plain load reads, and a run's record where it names no place of this machine.
Everything else that a run keeps (checkpoints, decoders, negatives, logs) stays.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import get_token

from stzoo.errors import PublishError
from stzoo.hub.export import run_alone
from stzoo.hub.layout import POOLING_SWITCHES
from stzoo.hub.redact import SECRET_NAMES, SECRETS
from stzoo.models.loaded import PICKLED, PLAIN, RECORDS, VOCABULARIES

SENT = PLAIN | {".txt"}
LICENCES = ("LICENSE", "LICENCE", "NOTICE")
MAX_BYTES = 50 * 10**9  # what huggingface_hub says of one file (HfApi.upload_file)
SETTINGS, DIMENSION = "config_sentence_transformers.json", "word_embedding_dimension"
MAX_HEADER = 100_000_000  # of safetensors
SHOWN = 10  # findings in an error
NAMED = {"a password or key": SECRET_NAMES + r"[\"']?\s*[:=]\s*[\"']?(?=[^\s\"',}]*\d)[^\s\"',}]{8,}"}
HOMES = {"an absolute path": r"(?<!\w)(?:/home|/Users)/[\w.-]+/|\b[A-Za-z]:\\{1,2}[\w .-]+\\"}
PLACES = (
    r"(?<![\w/.<>~)\]}*+-])(?:/[\w.@+-]+){2,}",  # two parts; no end of an address, tag or relative path
    r"\bfile:/+[\w.]",
    r"(?<![\w~/])~(?:[a-z_]\w*)?/[\w.]",
    r"(?<!\\)\\\\[\w.-]{2,}\\[\w$]{2,}",  # \\server\share
)
PATHS = {"an absolute path": "|".join([*HOMES.values(), *PLACES])}
Files = dict[str, Path | bytes]


def pack(folder: Path) -> tuple[Files, list[str]]:
    """A model's files to send, by their path in the repository, and what of the folder stays.

    Args:
        folder: an exported model, or a run that ended in one.

    Raises:
        PublishError: if the folder is no export, or is not fit to be sent.
    """
    files, stays = _select(folder)
    for name in files:
        if (size := size_of(files[name])) > MAX_BYTES:
            raise PublishError(
                f"{name} has {size:,} bytes, and the Hub takes {MAX_BYTES:,} in a file; store it in parts."
            )
    for record in RECORDS:
        if record in files and (told := findings(record, files[record])):
            del files[record]
            stays.append(f"{record} (it holds {told[0].rpartition(': ')[2]})")
    _check_layout(files)
    check_secrets(files)
    return files, sorted(stays)


def check_secrets(files: Mapping[str, Path | bytes]) -> None:
    """Sees that files may be shown to everybody.

    Raises:
        PublishError: if one holds a secret or a place of this machine; it names the lines.
    """
    if told := [one for name in files for one in findings(name, files[name])]:
        more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        raise PublishError(
            f"the files hold what is yours alone: {'; '.join(told[:SHOWN])}{more}. Take it out of them."
        )


def _select(folder: Path) -> tuple[Files, list[str]]:
    listing = folder / "modules.json"
    if not listing.is_file():
        what = "holds no finished model" if (folder / "run.json").is_file() else "is no exported model"
        raise PublishError(f"{folder} {what} (it has no modules.json). `stzoo export MODEL` makes one.")
    modules = _json(listing.read_bytes(), str(listing))
    try:
        places = sorted({PurePosixPath(module["path"]) for module in modules if module["path"]})
    except (TypeError, KeyError):
        raise PublishError(f"{listing} lists no modules; export the model again.") from None
    for place in places:
        if not place.parts or place.is_absolute() or ".." in place.parts:
            raise PublishError(f"{listing} names {str(place)!r}, which is no folder inside {folder}.")
    found = [path for path in folder.iterdir() if path.is_file()]
    found += [path for place in places for path in (folder / place).rglob("*") if path.is_file()]
    for path in found:
        name, target = path.relative_to(folder).as_posix(), path.resolve()
        if not target.is_relative_to(folder.resolve()):
            raise PublishError(f"{name} is a link to a file outside of {folder}; put the file itself there.")
        if not name.isprintable():
            raise PublishError(f"a file has the name {name!r}; expected one that can be printed.")
    if pickled := sorted(path.relative_to(folder).as_posix() for path in found if path.suffix in PICKLED):
        raise PublishError(
            f"{', '.join(pickled)} may run code when opened; only safetensors are published. "
            "`stzoo export` stores the model in them."
        )
    sent: Files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(found)
        if _is_sent(path.relative_to(folder))
    }
    inside = {PurePosixPath(name).parts[0] for name in sent}
    stays = [
        path.name + "/" * path.is_dir()
        for path in folder.iterdir()
        if path.name not in inside and path.name != "README.md" and not path.name.startswith(".")
    ]
    return sent, stays


def _is_sent(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and (path.suffix in SENT or path.name.split(".")[0] in LICENCES)


def _check_layout(files: Files) -> None:
    """Sees that sentence-transformers 5 and 6 read the model alike, and that its prompts hold.

    Raises:
        PublishError: if not.
    """
    again = "`stzoo export` writes what both 5 and 6 read."
    kinds = [module.get("type") for module in _json(read(files["modules.json"]), "modules.json")]
    for name in files:
        if PurePosixPath(name).name == "router_config.json":
            types = _object(read(files[name]), name).get("types")
            if not isinstance(types, dict):
                raise PublishError(f"{name} names no types of modules; export the model again.")
            kinds += types.values()
    for kind in map(str, kinds):
        if not kind.startswith("sentence_transformers."):
            raise PublishError(
                f"the module {kind} is not of sentence-transformers, so that users had to trust code of "
                "yours; only portable exports are published."
            )
        if not kind.startswith("sentence_transformers.models."):
            raise PublishError(f"the module {kind} is unknown before sentence-transformers 6. {again}")
    for name in files:
        if PurePosixPath(name).name != "config.json":
            continue
        config = _object(read(files[name]), name)
        modes = [mode for mode, switch in POOLING_SWITCHES.items() if config.get(switch)]
        new = config.get("pooling_mode", modes)
        if modes != ([new] if isinstance(new, str) else new) or (modes and DIMENSION not in config):
            raise PublishError(f"{name} does not say its pooling in the keys of 5 as in those of 6. {again}")
    settings = _object(read(files.get(SETTINGS, b"{}")), SETTINGS)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise PublishError(f"{SETTINGS}: the prompts are {prompts!r}, not texts by name.")
    if default is not None and default not in list(prompts):
        raise PublishError(f"the default prompt {default!r} is none of the prompts: {', '.join(prompts)}.")


def findings(name: str, content: Path | bytes) -> list[str]:
    """Where a file holds secrets or places of a machine: "FILE:LINE: what it is", never the text itself.

    Of a safetensors file its metadata is read.
    """
    raw = _metadata(name, content) if name.endswith(".safetensors") else read(content)
    text = raw.decode("utf-8", "replace")
    if name.endswith((".json", ".safetensors")):
        text = re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", _meant, text)
    loose = b"\0" in raw or PurePosixPath(name).name in VOCABULARIES  # tokens look like anything
    kinds = SECRETS | (HOMES if loose else NAMED | PATHS)
    kinds["your home folder"] = re.escape(str(Path.home())) + r"/[\w.]"
    if len(token := get_token() or "") >= 8:  # a shorter one is none of a hub's, and stands in any text
        kinds["your own token"] = re.escape(token)
    found = {
        (text.count("\n", 0, match.start()) + 1, kind)
        for kind, pattern in kinds.items()
        for match in re.finditer(pattern, text)
    }
    return [f"{name}:{line}: {kind}" for line, kind in sorted(found)]


def _meant(escape: re.Match[str]) -> str:
    """What an escape of JSON stands for; white space for all that ends a word, so that the lines stay."""
    return chr(int(escape[1], 16)) if escape[1] else " " if escape[2] in "bfnrt" else escape[2]


def _metadata(name: str, content: Path | bytes) -> bytes:
    """What a safetensors file says beside its tensors; its header is 8 bytes of length, then JSON."""
    if isinstance(content, bytes):
        head = content[8:][: int.from_bytes(content[:8], "little")]
    else:
        with content.open("rb") as opened:
            head = opened.read(min(int.from_bytes(opened.read(8), "little"), MAX_HEADER))
    return json.dumps(_object(head, f"the header of {name}").get("__metadata__"), indent=1).encode()


def check_load(files: Files) -> int:
    """Loads just these files in a process without stzoo, twice, and returns the embeddings' dimension.

    Raises:
        PublishError: if they do not load, or the embeddings are not finite and the same each time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            place = Path(scratch, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            else:
                place.symlink_to(content.resolve())
        (found,) = run_alone(["--twice", scratch], 1)
    if "error" in found:
        raise PublishError(f"plain sentence-transformers does not load the model: {found['error']}")
    if not found["finite"]:
        raise PublishError("the model's embeddings are not finite: some are NaN or infinite.")
    if not found["same"]:
        raise PublishError(
            "two loads of the model give different embeddings; are weights missing in its files?"
        )
    return int(found["dimension"])


def read(content: Path | bytes) -> bytes:
    """The content of a file to send."""
    return content if isinstance(content, bytes) else content.read_bytes()


def size_of(content: Path | bytes) -> int:
    """Bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _object(content: bytes, name: str) -> dict[str, Any]:
    found = _json(content, name)
    if not isinstance(found, dict):
        raise PublishError(f"{name} holds no JSON object; export the model again.")
    return found


def _json(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise PublishError(f"{name} cannot be read: {error}.") from None
