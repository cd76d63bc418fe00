"""Selects the files of a folder to publish, and checks that they load everywhere and contain no secrets.

Published are the files that plain sentence-transformers reads, and a run's record if it has no local paths.
Everything else in a run's folder (checkpoints, decoders, negatives, logs) is not.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import get_token

from stzoo.errors import PublishError
from stzoo.hub import onnx_export
from stzoo.hub.export import run_alone
from stzoo.hub.layout import POOLING_SWITCHES
from stzoo.hub.redact import SECRET_NAMES, SECRETS
from stzoo.models.loaded import PICKLED, PLAIN, RECORDS, VOCABULARIES
from stzoo.utils.outputs import no_model

SENT = PLAIN | {".txt", ".onnx", ".onnx_data"}
LICENCES = ("LICENSE", "LICENCE", "NOTICE")
MAX_BYTES = 50 * 10**9  # the limit per file in huggingface_hub (HfApi.upload_file)
SETTINGS, DIMENSION = "config_sentence_transformers.json", "word_embedding_dimension"
MAX_HEADER = 100_000_000  # of safetensors
SHOWN = 10  # findings in an error
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?=\s*[,}\]])"  # in JSON, where texts have quotes
VALUE = r"(?=[^\s\"',}]*\d)[^\s\"',}]{8,}"
NAMED = {"a password or key": rf"{SECRET_NAMES}[\"']?\s*[:=]\s*(?!{NUMBER})[\"']?{VALUE}"}
HOME = r"(?<!\w)(?:/home|/Users)/[\w.-]+/"
HOMES = {"an absolute path": HOME + r"|\b[A-Za-z]:\\{1,2}[\w .-]+\\"}
LOCATIONS = (
    r"(?<![\w/.<>~)\]}*+-])(?:/[\w.@+-]+){2,}",  # two parts; not the end of a URL, tag or relative path
    r"\bfile:/+[\w.]",
    r"(?<![\w~/])~(?:[a-z_]\w*)?/[\w.]",
    r"(?<!\\)\\\\[\w.-]{2,}\\[\w$]{2,}",  # \\server\share
)
PATHS = {"an absolute path": "|".join([*HOMES.values(), *LOCATIONS])}
Files = dict[str, Path | bytes]


def pack(folder: Path) -> tuple[Files, list[str]]:
    """Selects and checks the files to publish.

    Args:
        folder: An exported model, or a training run that is finished.

    Returns:
        The files by their path in the repository, and the names of files and folders that are not published.

    Raises:
        PublishError: If the folder is not an exported model, or cannot be published.
    """
    files, stays = _select(folder)
    for name in files:
        if (size := size_of(files[name])) > MAX_BYTES:
            raise PublishError(
                f"{name} has {size:,} bytes, but the Hub accepts {MAX_BYTES:,} per file; split it into "
                "shards."
            )
    for record in RECORDS:
        if record in files and (reasons := findings(record, files[record])):
            del files[record]
            stays.append(f"{record} (it contains {reasons[0].rpartition(': ')[2]})")
    _check_layout(files)
    check_secrets(files)
    return files, sorted(stays)


def check_secrets(files: Mapping[str, Path | bytes]) -> None:
    """Checks that files contain no secrets and no local paths.

    Raises:
        PublishError: If one does; the message names the lines.
    """
    if found := [finding for name in files for finding in findings(name, files[name])]:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise PublishError(
            f"these files contain secrets or local paths: {'; '.join(found[:SHOWN])}{more}. Remove them "
            "before publishing."
        )


def _select(folder: Path) -> tuple[Files, list[str]]:
    listing = folder / "modules.json"
    if not listing.is_file():
        raise PublishError(no_model(folder))
    modules = _json(listing.read_bytes(), str(listing))
    try:
        subfolders = sorted({PurePosixPath(module["path"]) for module in modules if module["path"]})
        if (router := folder / "router_config.json").is_file():  # the first module, whose folder is this one
            subfolders += map(PurePosixPath, _object(router.read_bytes(), str(router)).get("types", {}))
    except (TypeError, KeyError):
        raise PublishError(f"{listing} is not a list of modules; export the model again.") from None
    for subfolder in subfolders:
        if not subfolder.parts or subfolder.is_absolute() or ".." in subfolder.parts:
            raise PublishError(f"{listing} names {str(subfolder)!r}, which is not a folder inside {folder}.")
    if (folder / onnx_export.FOLDER / onnx_export.RECORD).is_file():
        subfolders.append(PurePosixPath(onnx_export.FOLDER))
    paths = [path for path in folder.iterdir() if path.is_file()]
    paths += [path for subfolder in subfolders for path in (folder / subfolder).rglob("*") if path.is_file()]
    for path in paths:
        name, target = path.relative_to(folder).as_posix(), path.resolve()
        if not target.is_relative_to(folder.resolve()):
            raise PublishError(f"{name} links to a file outside {folder}; replace the link by the file.")
        if not name.isprintable():
            raise PublishError(f"a file has the name {name!r}; expected printable characters. Rename it.")
    if pickled := sorted(path.relative_to(folder).as_posix() for path in paths if path.suffix in PICKLED):
        raise PublishError(
            f"{', '.join(pickled)} may run code when opened; only safetensors are published. "
            "`stzoo export` stores the model in them."
        )
    sent: Files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(paths)
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
    """Checks that sentence-transformers 5 and 6 read the model alike, and that its prompts are valid.

    Raises:
        PublishError: If not.
    """
    remedy = "`stzoo export` writes a layout that both 5 and 6 read."
    kinds = [module.get("type") for module in _json(read(files["modules.json"]), "modules.json")]
    for name in files:
        if PurePosixPath(name).name == "router_config.json":
            types = _object(read(files[name]), name).get("types")
            if not isinstance(types, dict):
                raise PublishError(f"{name} has no types of modules; export the model again.")
            kinds += types.values()
    for kind in map(str, kinds):
        if not kind.startswith("sentence_transformers."):
            raise PublishError(
                f"the module {kind} is not from sentence-transformers, so users would have to trust its "
                "code; only portable exports are published. `stzoo export` writes one."
            )
        if not kind.startswith("sentence_transformers.models."):
            raise PublishError(f"the module {kind} is unknown before sentence-transformers 6. {remedy}")
    for name in files:
        if PurePosixPath(name).name != "config.json":
            continue
        config = _object(read(files[name]), name)
        modes = [mode for mode, switch in POOLING_SWITCHES.items() if config.get(switch)]
        new = config.get("pooling_mode", modes)
        if modes != ([new] if isinstance(new, str) else new) or (modes and DIMENSION not in config):
            raise PublishError(f"{name} does not state the same pooling in the keys of 5 and 6. {remedy}")
    settings = _object(read(files.get(SETTINGS, b"{}")), SETTINGS)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise PublishError(f"{SETTINGS}: the prompts are {prompts!r}; expected texts by name.")
    if default is not None and default not in list(prompts):
        raise PublishError(
            f"{SETTINGS}: the default prompt {default!r} is unknown; expected one of: {', '.join(prompts)}."
        )


def findings(name: str, content: Path | bytes) -> list[str]:
    """Secrets and local paths in a file, as "FILE:LINE: kind", without the text itself.

    In a safetensors file, only the metadata is searched; in ONNX, only the text between weights, which may
    look like the path of a drive by chance.
    """
    if name.endswith(".safetensors"):
        raw = _metadata(name, content)
    elif name.endswith((".onnx", ".onnx_data")):
        raw = b"\0".join([b"", *re.findall(rb"[ -~]{8,}", read(content))])
    else:
        raw = read(content)
    text = raw.decode("utf-8", "replace")
    if name.endswith((".json", ".safetensors")):
        text = re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", _unescape, text)
    path = PurePosixPath(name)
    is_vocabulary = path.name in VOCABULARIES or path.parent.name.endswith("WordWeights")
    looks_like_anything = is_vocabulary or b"\0" in raw
    kinds = SECRETS | (HOMES if looks_like_anything else NAMED | PATHS)
    if name.endswith((".onnx", ".onnx_data")):
        kinds = SECRETS | {"an absolute path": HOME}
    kinds["your home folder"] = re.escape(str(Path.home())) + r"/[\w.]"
    if len(token := get_token() or "") >= 8:  # a shorter one is not of a hub, and may occur in any text
        kinds["your own token"] = re.escape(token)
    matches = {
        (text.count("\n", 0, match.start()) + 1, kind)
        for kind, pattern in kinds.items()
        for match in re.finditer(pattern, text)
    }
    return [f"{name}:{line}: {kind}" for line, kind in sorted(matches)]


def _unescape(escape: re.Match[str]) -> str:
    """The character of a JSON escape; a space for line ends and the like, so that line numbers stay right."""
    return chr(int(escape[1], 16)) if escape[1] else " " if escape[2] in "bfnrt" else escape[2]


def _metadata(name: str, content: Path | bytes) -> bytes:
    """The metadata of a safetensors file, whose header is 8 bytes of length and then JSON."""
    if isinstance(content, bytes):
        head = content[8:][: int.from_bytes(content[:8], "little")]
    else:
        with content.open("rb") as opened:
            head = opened.read(min(int.from_bytes(opened.read(8), "little"), MAX_HEADER))
    return json.dumps(_object(head, f"the header of {name}").get("__metadata__"), indent=1).encode()


def check_load(files: Files) -> int:
    """Loads these files twice in a process without stzoo, and returns the dimension of the embeddings.

    Raises:
        PublishError: If they do not load, or the embeddings are not finite or differ between the loads.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            path = Path(scratch, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.symlink_to(content.resolve())
        (result,) = run_alone(["--twice", scratch], 1)
    if "error" in result:
        raise PublishError(f"plain sentence-transformers cannot load the model: {result['error']}")
    if not result["finite"]:
        raise PublishError("the model's embeddings are not finite: some are NaN or infinite.")
    if not result["same"]:
        raise PublishError(
            "two loads of the model give different embeddings; check that its files have all weights."
        )
    return int(result["dimension"])


def read(content: Path | bytes) -> bytes:
    """The content of a file to publish."""
    return content if isinstance(content, bytes) else content.read_bytes()


def size_of(content: Path | bytes) -> int:
    """The size of a file to publish, in bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _object(content: bytes, name: str) -> dict[str, Any]:
    value = _json(content, name)
    if not isinstance(value, dict):
        raise PublishError(f"{name} is not a JSON object; export the model again.")
    return value


def _json(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise PublishError(f"{name} is not JSON: {error}; export the model again.") from None
