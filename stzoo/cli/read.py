"""stzoo read."""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.adaptation.settings import ReadSettings
from stzoo.cli.flags import Json, Overwrite, command
from stzoo.cli.shared import print_json, show
from stzoo.utils.messages import counted
from stzoo.utils.tables import new_table

_SHOWN = 8


@command(ReadSettings)
def read_command(
    settings: ReadSettings,
    output: Annotated[Path, typer.Option(help="Folder for the passages, corpus.jsonl.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read documents and split them into passages.

    Files of these kinds are read: md, txt, html, pdf, docx, csv, tsv, jsonl, json and Parquet.
    """
    from stzoo.adaptation.read import read_documents
    from stzoo.data.documents.corpus import MANIFEST

    made = read_documents(**settings.arguments(), output=output, overwrite=overwrite)
    if as_json:
        print_json({"corpus": str(made.corpus), **made.as_json()})
        return
    table = new_table("files", numbers=["read", "documents", "passages"])
    for kind, counts in sorted(made.kinds.items()):
        table.add_row(kind, *(f"{counts[name]:,}" for name in ("files", "documents", "passages")))
    show(table)
    for line in _notes(made):
        typer.echo(line)
    left_out = output / MANIFEST
    typer.echo(f"The passages are in {made.corpus}, and all that was left out is in {left_out}.", err=True)


def _notes(made: Any) -> list[str]:
    shares = ", ".join(f"{code} {100 * n / made.passages:.3g} %" for code, n in made.languages.items())
    lines = [f"{counted(made.passages, 'passage')} of {counted(made.documents, 'document')}; {shares}"]
    if made.copies:
        exact = sum(copy.similarity == 1 for copy in made.copies)
        lines.append(f"Left out as copies of earlier passages: {len(made.copies):,} ({exact:,} exact)")
    if made.guessed:
        lines.append(f"Read with --encoding, as they are not UTF-8: {_listed(made.guessed)}")
    if made.empty:
        lines.append(f"Without text: {_listed(made.empty)}")
    if made.skipped:
        by_reason: Counter[str] = Counter()
        first: dict[str, str] = {}
        for one in made.skipped:
            reason = re.sub(r"^line \d+: ", "", one.reason.partition(" (")[0])
            by_reason[reason] += one.rows or 1
            first.setdefault(reason, f"{one.file}, {counted(one.rows, 'row')}" if one.rows else one.file)
        lines.append("Skipped:")
        for reason, count in by_reason.most_common(_SHOWN):
            lines.append(
                f"  {first[reason]}{'' if count == 1 else f' and others, {count:,} in all'}: {reason}"
            )
        if len(by_reason) > _SHOWN:
            lines.append(f"  and {counted(len(by_reason) - _SHOWN, 'other reason')}")
    return lines


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
