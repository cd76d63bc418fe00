"""Prepares a corpus: computes the columns that an objective reads in addition to the text, as Parquet files.

A plugin's `Preparation` makes the columns in shards of a few hundred passages, which are stored in `work/`
until all are finished (see `stzoo.utils.parts`). Then they are combined into `passages-….parquet` in the
order of the corpus. The folder is a corpus for `stzoo pretrain` and a data set for `datasets.load_dataset`.
Memory does not grow with the corpus, unless the plugin's own data does.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from stzoo.data.corpus import Corpus, load_corpus, tokenizer_fingerprint
from stzoo.errors import OutputError, RecipeError
from stzoo.models.loading import load_tokenizer
from stzoo.plugins import builders, manager
from stzoo.training import run_files, runs
from stzoo.training.pretrain_settings import PrepareSettings
from stzoo.utils.distributed import is_main_process, main_process_first, wait_for_all
from stzoo.utils.files import atomic_file, remove_files
from stzoo.utils.memory import peak_memory_mib
from stzoo.utils.messages import counted
from stzoo.utils.parts import Part, Parts
from stzoo.utils.progress import progress_bar
from stzoo.utils.public import public
from stzoo.utils.workers import started

WORK = "work"  # subfolder with the shards of an unfinished preparation
FILE_ROWS = 200_000
GROUP_ROWS = 10_000  # rows per row group of a file


class Preparation:
    """The base of all preparations: subclass it, set `Settings`, `columns` and `reads`, write `shard`.

    Args:
        settings: Settings, an instance of `Settings`.
        corpus: The corpus, with those of `columns` and `reads` that it has.
        tokenizer: Fast tokenizer of the base model to pre-train.
        work: Folder that survives an interrupted run; files in it must be complete or absent. Processes that
            prepare together each have an instance with this folder; the first process makes one shard before
            the others start.

    Attributes:
        Settings: Subclass of `stzoo.training.pretrain_settings.PrepareSettings`; its fields become flags.
        columns: Types of the columns to make by name, str or list[str].
        reads: Types of the columns that are read from the corpus if it has them, in addition to the id, the
            text and `columns`.
        notes: Notes for the user, one sentence each. Those that `shard` adds in another process are lost.
    """

    Settings: ClassVar[type[PrepareSettings]] = PrepareSettings
    columns: ClassVar[Mapping[str, Any]] = {}
    reads: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, settings: Any, corpus: Corpus, tokenizer: Any, work: Path):
        self.settings, self.corpus, self.tokenizer, self.work = settings, corpus, tokenizer, work
        self.notes: list[str] = []

    def metadata(self) -> dict[str, Any]:
        """Metadata on how the columns are made, for the manifest; a run resumes only if it is unchanged."""
        return {}

    def shard(self, first: int, last: int) -> dict[str, list[Any]]:
        """Makes the columns of rows first to last - 1; must not depend on earlier calls."""
        raise NotImplementedError(f"{type(self).__name__} must define shard(first, last)")

    def finish(self, folder: Path) -> None:
        """Writes additional data into subfolders after all rows are finished."""


@public(PrepareSettings)
def prepare(
    preparation: str,
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Makes a data set for an objective that reads more than plain text.

    Args:
        preparation: Name of the preparation; see `stzoo list preparations`.
        recipe: Path to a YAML file, or the name of an installed recipe.
        output: Folder for the data set; its run.json is the manifest.
        resume: True to continue the unfinished data set in `output`.
        overwrite: True to remove the data set that is in `output`.
        settings: Settings of the preparation; they override those of the recipe.

    Returns:
        The output folder, which can be passed to `pretrain(corpus=…)`.

    Raises:
        StzooError: If the user made a mistake; see `stzoo.errors`.
    """
    kind: type[Preparation] = builders.resolve(manager.find("preparation", preparation))  # type: ignore[assignment]
    config = kind.Settings.read(recipe, settings)
    names = [
        manager.full_name("preparation", one) for one in (config.preparation or preparation, preparation)
    ]
    if names[0] != names[1]:
        raise RecipeError(
            f"the recipe {recipe} is for `stzoo prepare {config.preparation}`, not {preparation}."
        )
    config = config.model_copy(update={"preparation": preparation})
    if config.threads:
        torch.set_num_threads(config.threads)
    with runs.start(output, config, resume=resume, overwrite=overwrite, worth=(f"{WORK}/*",)) as run:
        manager.use("preparation", preparation)
        if run.metadata["status"] == "finished":
            # left by a run that was interrupted at the very end
            remove_files(run.folder, run_files.matching(run.folder, run_files.WORK_FILES))
            return run.folder
        tokenizer = load_tokenizer(config.tokenizer)
        corpus = load_corpus(
            config.corpus,
            min_words=config.min_words,
            skip_bad_lines=config.skip_bad_lines,
            columns={**kind.columns, **kind.reads},
            tokenizer=tokenizer,
        )
        run.record()  # before any index is made, so that an interrupted run can resume
        work = run.folder / WORK
        with main_process_first():  # it looks first whether the folder is empty
            if is_main_process():
                work.mkdir(exist_ok=True)
        with config.on_engine():
            instance = kind(config, corpus, tokenizer, work)
            with main_process_first():  # it may make an index
                made_by = instance.metadata()
            run.record_inputs(
                corpus=corpus.record(), tokenizer=tokenizer_fingerprint(tokenizer), made_by=made_by
            )
            shards = _make(instance, work)
        wait_for_all()
        with main_process_first():
            if is_main_process():
                _finish(run, instance, shards)
        return run.folder


def _finish(run: runs.Run, instance: Preparation, shards: "_Shards") -> None:
    """Puts the shards together, and removes them."""
    draft = run.folder / run_files.MODEL_DRAFT
    draft.mkdir()
    filled = _put_together(shards, instance.columns, draft)
    instance.finish(draft)
    run.install(draft, also=["README.md"])
    run.record(filled=filled, notes=instance.notes, peak_memory_mib=peak_memory_mib())
    _write_card(run, type(instance))
    run.record(status="finished")
    # last, or an interrupted run would lose all shards
    remove_files(run.folder, run_files.matching(run.folder, [run_files.UNFINISHED_WORK]))


class _Shards(Parts[pa.Table]):
    def load(self, part: Part) -> pa.Table | None:
        """See `Parts`."""
        try:
            table = pq.read_table(part.path)
        except (OSError, pa.ArrowException):
            return None
        return table if len(table) == len(part) else None

    def save(self, draft: Path, part: Part, content: pa.Table) -> None:  # noqa: ARG002 - the base class has it
        """See `Parts`."""
        pq.write_table(content, draft, compression="zstd")


def _make(preparation: Preparation, work: Path) -> _Shards:
    """Makes each missing shard."""
    count, make = len(preparation.corpus.rows), _Maker(preparation)
    shards = _Shards(work, "rows-{first:09d}.parquet", count, preparation.settings.shard_rows)
    with progress_bar(total=count, unit=" passages", desc="Preparing") as bar:
        with main_process_first():
            if is_main_process():  # the first shard may need an index, which the others then find in `work`
                shards.get(shards[0], make)
        with started(make) as workers:
            shards.complete(workers, bar=bar)
    return shards


class _Maker:
    """Makes the rows of a part. A worker opens the preparation itself, on a file system that it shares."""

    def __init__(self, preparation: Preparation):
        self._preparation: Preparation | None = preparation
        self._folders = preparation.work.resolve(), Path.cwd()
        of = preparation.settings, preparation.corpus, preparation.tokenizer, self._folders[0]
        self._open = partial(type(preparation), *of)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_preparation": None}

    def on(self, device: str | None) -> "_Maker":  # noqa: ARG002 - the preparation chooses the device
        """See `stzoo.utils.workers.on_device`."""
        return self

    def __call__(self, part: Part) -> pa.Table:
        made = self._preparation = self._preparation or self._opened()
        batch = made.corpus.rows[part.first : part.last]
        values = {"id": batch["id"], "text": batch["text"], **made.shard(part.first, part.last)}
        return pa.table(values, _schema(made.columns))

    def _opened(self) -> Preparation:
        if missing := [folder for folder in self._folders if not folder.is_dir()]:  # paths may be relative
            raise OutputError(
                f"a worker cannot read {missing[0]}. Workers that prepare data need a file system that they "
                "share with this machine; start them on one, or drop --engine ray."
            )
        with contextlib.chdir(self._folders[1]):  # settings may have relative paths
            return self._open()


def _schema(columns: Mapping[str, Any]) -> Any:
    types = {str: pa.string(), list[str]: pa.list_(pa.string())}
    return pa.schema({"id": pa.string(), "text": pa.string()} | {n: types[t] for n, t in columns.items()})


def _put_together(shards: _Shards, columns: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Copies the shards into files of FILE_ROWS rows.

    Returns:
        The number of rows in which each column has a value.
    """
    filled, schema, parts = dict.fromkeys(columns, 0), _schema(columns), list(shards)
    shards_a_file, shards_a_group = (max(1, rows // shards.size) for rows in (FILE_ROWS, GROUP_ROWS))
    files = math.ceil(len(parts) / shards_a_file)
    for number in range(files):
        name = f"passages-{number:05d}-of-{files:05d}.parquet"
        with (
            atomic_file(folder / name) as draft,
            pq.ParquetWriter(draft, schema, compression="zstd") as writer,
        ):
            of_file = parts[number * shards_a_file : (number + 1) * shards_a_file]
            for place in range(0, len(of_file), shards_a_group):
                table = pa.concat_tables(map(shards.read, of_file[place : place + shards_a_group]))
                for column in filled:
                    values = table[column]
                    if pa.types.is_list(values.type):
                        values = pc.list_value_length(values)
                        filled[column] += pc.sum(pc.greater(values, 0)).as_py() or 0
                    else:
                        filled[column] += len(values) - values.null_count
                writer.write_table(table)
    return filled


def _called(source: str) -> str:
    """The Hub id, or the last part of a local path, since the whole path is meaningless to others."""
    return Path(source).resolve().name if Path(source).exists() else source


def _write_card(run: runs.Run, kind: type[Preparation]) -> None:
    """Writes a dataset card that the Hub and `datasets` can read."""
    record, settings = run.metadata, run.metadata["recipe"]
    total = record["corpus"]["passages"]
    rows = "\n".join(f"| `{name}` | {count} of {total} |" for name, count in record["filled"].items())
    made_by = json.dumps(record["made_by"], indent=2, ensure_ascii=False)
    notes = "".join(f"- {note}\n" for note in record["notes"])
    sources, tokenizer = ", ".join(map(_called, settings["corpus"])), _called(settings["tokenizer"])
    text = f"""---
configs:
- config_name: default
  data_files: passages-*.parquet
---
# {sources}, prepared for {settings["preparation"]}

{(kind.__doc__ or "").strip().splitlines()[0]}

Made by `stzoo prepare {settings["preparation"]}` (stzoo {record["versions"]["stzoo"]})
from {counted(total, "passage")} of {sources}, with the tokenizer of
`{tokenizer}` and seed {settings["seed"]}.
`run.json` is the complete manifest. The rows are under the licence of their source.

| column | filled |
|---|---|
{rows}

{notes}
How the columns were made:

```json
{made_by}
```
"""
    with atomic_file(run.folder / "README.md") as draft:
        draft.write_text(text, encoding="utf-8")
