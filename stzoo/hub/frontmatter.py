"""The YAML block at the top of a README.md, with texts that stay texts.

YAML 1.1 reads `no` as false, `1:30` as a number and `2024-01-02` as a date; YAML 1.2 reads `1e3` as a number.
In fields that the Hub defines as texts they are read as texts, and texts are quoted on writing wherever a
reader of either version would read something else.
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
    """Also quotes texts that only other readers than PyYAML would read as something else."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+$"), ["0"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]$"), list("yYnN"))


def read(readme: Path) -> dict[str, Any]:
    """The front matter of a README.md; {} if it has none.

    Raises:
        ValueError: If it is not a mapping.
        yaml.YAMLError: If it is not YAML.
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
    """Makes scalars texts, except null."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _as_text(item)
    elif isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:null":
        node.tag = "tag:yaml.org,2002:str"


def dump(data: Mapping[str, Any], width: int = 80) -> str:
    """The YAML of a mapping, in its order."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
