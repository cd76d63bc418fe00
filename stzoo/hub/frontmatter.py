"""The YAML at the top of a README.md, in which a word stays a word.

YAML 1.1 takes `no` for false, `1:30` for a number and `2024-01-02` for a date; YAML 1.2 takes `1e3` for a
number. In fields that are texts by the Hub's rules they are read as they stand, and what is written is quoted
wherever a reader of either version would take a text for something else.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

TEXTS = {
    *("language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "tags"),
    *("datasets", "metrics", "base_model", "base_model_relation", "model_name", "new_version", "thumbnail"),
}


class _Dumper(yaml.SafeDumper):
    """Quotes what other readers than PyYAML take for something else than a text, too."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+$"), ["0"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]$"), list("yYnN"))


def read(readme: Path) -> dict[str, Any]:
    """The front matter of a README.md; {} if it has none.

    Raises:
        ValueError: if it is not a mapping.
        yaml.YAMLError: if it is not YAML.
    """
    block = REGEX_YAML_BLOCK.search(readme.read_text(encoding="utf-8-sig"))
    if block is None:
        return {}
    loader = yaml.SafeLoader(block[2])
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("it is not a mapping")
        for key, value in node.value:
            if key.value in TEXTS:
                _as_text(value)
        return dict(loader.construct_document(node))
    finally:
        loader.dispose()


def _as_text(node: yaml.Node) -> None:
    """Makes plain words texts, but for null."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _as_text(item)
    elif isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:null":
        node.tag = "tag:yaml.org,2002:str"


def dump(data: Mapping[str, Any], width: int = 80) -> str:
    """The YAML of plain values, in their order."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
