"""report(): the results under a folder as one HTML page that works offline, as text, and as CSV.

Every number links to its file and shows the fingerprints, settings, versions and notes there. The page is
report.html.j2 with charts.html.j2, report.css and report.js. Its charts are SVG and work without scripts, but
for that of single queries; report.js adds choices, tooltips and the sorting of tables.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stzoo.data.find_datasets import locate
from stzoo.errors import DataError, OutputError, RecipeError
from stzoo.evaluation.adapt_record import RESULTS
from stzoo.evaluation.report.adaptation import describe, read_adaptation
from stzoo.evaluation.report.content import Content
from stzoo.evaluation.report.data import gather, shown_folder
from stzoo.evaluation.report.html import as_html
from stzoo.evaluation.report.text import CSV_HEAD, as_csv, as_text
from stzoo.evaluation.settings import ReportSettings
from stzoo.utils.files import atomic_file
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public

WRITERS: dict[str, Callable[[Content], str]] = {"html": as_html, "txt": as_text, "csv": as_csv}
FORMATS = tuple(WRITERS)


@public()
def report(
    results: str | Path,
    *,
    output: str | Path,
    data: str | Path | None = None,
    runs: str | Path | Sequence[str | Path] = (),
    measure: str = "nDCG@10",
    formats: str | Sequence[str] = FORMATS,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool | None = None,
) -> list[Path]:
    """Reports the results under a folder: leaderboards with intervals, costs, and the source of each number.

    Args:
        results: An --output of bench, a folder of several, or a run of adapt.
        output: Path to the HTML file; text and CSV are written next to it as .txt and .csv.
        data: BEIR folder, or parent of several, with the texts of the queries; by default that of adapt's
            run, and data sets in stzoo's cache.
        runs: Folders of pretrain or finetune runs whose learning curves to show.
        measure: Measure to show and rank by; the CSV has all measures.
        formats: Formats to write: html, txt, csv, as a list or separated by commas.
        seed: Random seed for the intervals; the same seed gives the same files.
        overwrite: True to replace existing files.
        progress: True shows a progress bar on stderr; None shows it on a terminal only.

    Returns:
        The files written, in the order of `formats`.

    Raises:
        DataError: If there are no results, none has the measure, the record of adapt is damaged, `data` does
            not exist, or a folder in `runs` is not a training run.
        OutputError: If a file exists already or cannot be written.
        RecipeError: If a format is unknown.
    """
    settings = ReportSettings.check(locals())
    formats = settings.formats
    if not formats or set(formats) - set(FORMATS):
        raise RecipeError(f"formats is {','.join(formats)!r}; expected one or more of {','.join(FORMATS)}.")
    base = user_path(output, OutputError)
    if base.name in ("", ".."):
        raise OutputError(f"the output is {str(output)!r}; expected a file, e.g. report.html.")
    base = base.with_suffix("") if base.suffix.removeprefix(".") in FORMATS else base
    paths = [base.with_name(f"{base.name}.{form}") for form in formats]
    for path in paths:
        check_output(path, kind="file", is_ours=_is_report, what="a report that stzoo wrote")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path} exists already. Use --overwrite, or another --output.")
    data = None if data is None else locate(data)
    if data is not None and not data.is_dir():
        raise DataError(f"{data} does not exist; expected a BEIR folder, or the parent of several.")
    folder, show_bars = user_path(results), show_progress(progress)
    record = read_adaptation(folder)
    options: dict[str, Any] = {"seed": seed, "progress": show_bars, "runs": settings.runs}
    if record:  # without results of judgements, which have other measures
        page = gather(folder / RESULTS, measure, **options)
        page = replace(page, folder=f"{shown_folder(folder)}/{RESULTS}")
    else:
        page = gather(folder, measure, **options)
    content = Content(
        page,
        folder,
        seed,
        show_bars,
        data,
        describe(record, folder, page.groups, show_bars) if record else None,
    )
    texts = [WRITERS[form](content) for form in formats]
    for path, text in zip(paths, texts, strict=True):
        with atomic_file(path) as draft:
            draft.write_text(text, encoding="utf-8", newline="\n")
    return paths


def _is_report(path: Path) -> bool:
    begins = {".csv": CSV_HEAD, ".txt": "Retrieval results by ", ".html": "<!doctype html>"}[path.suffix]
    with contextlib.suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8") as file:
        head = file.read(4096)
        return head.lstrip().startswith(begins) and (path.suffix != ".html" or "stzoo" in head)
    return False
