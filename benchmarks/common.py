"""What the scripts in this folder share: arguments, versions, the processor, and the report."""

import argparse
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser with the first line of a script's docstring, and --output."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--output", type=Path, help="file for the report as JSON")
    return parser


def processor() -> dict[str, Any]:
    """The name of the processor and its instruction sets for matrices."""
    info = Path("/proc/cpuinfo").read_text()
    flags = next(line for line in info.splitlines() if line.startswith("flags")).split()
    name = next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    return {"name": name, "has": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if f in flags]}


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def write_report(report: Mapping[str, Any], output: Path | None, *, keep: bool = False) -> None:
    """Prints a report, and writes it to `output` if that is given.

    Args:
        report: The report.
        output: The file.
        keep: True to keep the keys of an earlier report that the new one does not have.
    """
    print(json.dumps(report, indent=2))
    if output:
        kept = json.loads(output.read_text()) if keep and output.exists() else {}
        output.write_text(json.dumps({**kept, **report}, indent=2) + "\n")
