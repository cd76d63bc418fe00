"""Removes local paths and secrets from records that are published."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unicodedata import category

from huggingface_hub import get_token

from stzoo.data.corpus_names import is_hub_id
from stzoo.utils.paths import base_name, shorten_paths

NAMING = {"base", "model", "corpus", "data", "dev_data", "probe", "store", "teacher", "tokenizer"}
BROKEN = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, line ends of YAML or Markdown
SECRETS = {
    "a Hugging Face token": r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z]{30,})",
    "an API key": r"\bsk-(?=[\w-]*\d)[\w-]{20,}|\bAIza[\w-]{35}|\bglpat-[\w-]{20}|\bxox[abprs]-[\w-]{10,}",
    "an AWS key": r"\bA[KS]IA[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,})",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password": r"://[^\s/:@\"']+:[^\s/:@\"']+@",
}
SECRET_NAMES = r"(?i:api_?key|access_?key|secret|passw(?:or)?d)"  # names of secrets
_NAMED_SECRETS = ((re.compile(rf"([\w.-]*{SECRET_NAMES}[\"']?\s*[:=]\s*[\"']?)[^\s\"',}}]+"), r"\1…"),)
_BEGINS = re.compile(r"file://|~(?:[a-z_]\w*)?/|\.{0,2}/|[A-Za-z]:[\\/]|\\\\")
_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_…"),
    (re.compile(r"(\w+://)[^/\s@]+@"), r"\1"),
    (re.compile("|".join(SECRETS.values())), "…"),
)


def redact(text: str) -> str:
    """The text without tokens, passwords and keys; paths are kept."""
    for secret, instead in (*_SECRETS, *_NAMED_SECRETS):
        text = secret.sub(instead, text)
    token = get_token()
    return text.replace(token, "…") if token and len(token) >= 8 else text


def names(runs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The public form of each path and Hub id in the recipes of runs: the id, or the path's last part."""
    shown = {}
    for run in runs:
        ids = {run.get("base", {}).get("id"), *run.get("datasets", ())}
        for key, text in _named(run.get("recipe", {})):
            on_hub = text.partition(":")[0] in ids
            if key == "teacher":  # no record has its origin
                on_hub = is_hub_id(text) and not Path(text).exists()
            shown[text] = text if on_hub else base_name(text)
    return shown


def _named(recipe: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and value of all settings that name a file, a folder or a Hub id."""
    if isinstance(recipe, dict):
        for name, value in recipe.items():
            yield from _named(value, name)
    elif isinstance(recipe, list):
        for value in recipe:
            yield from _named(value, key)
    elif isinstance(recipe, str) and recipe and (key in NAMING or _BEGINS.match(recipe)):
        yield key, recipe


def shown(value: Any, known: Mapping[str, str]) -> Any:
    """A value without secrets and local paths.

    Args:
        value: A text, or nested lists and dicts; other values are returned unchanged.
        known: Public forms of texts, from `names`.
    """
    if isinstance(value, dict):
        return {
            shown(key, known): "…"
            if isinstance(one, str) and re.search(SECRET_NAMES, str(key))
            else shown(one, known)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [shown(one, known) for one in value]
    return _text(value, known) if isinstance(value, str) else value


def _text(text: str, known: Mapping[str, str]) -> str:
    if text in known:
        text = known[text]
    text = "".join("\ufffd" if category(sign) in BROKEN and sign not in "\n\t" else sign for sign in text)
    for secret, instead in _SECRETS:
        text = secret.sub(instead, text)
    for path in sorted(known, key=len, reverse=True):
        if known[path] != path and len(path) > 3:  # short paths such as "." occur in any text
            text = text.replace(path, known[path])
    return shorten_paths(text)
