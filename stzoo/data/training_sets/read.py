"""Reads training data of any format."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from stzoo.data.beir import RetrievalDataset, notes_on_queries, read_beir
from stzoo.data.beir_layout import names_beir
from stzoo.data.column_roles import parse_columns
from stzoo.data.row_location import RowLocation
from stzoo.data.texts import Texts, indices_of
from stzoo.data.training_sets.builder import TrainingSetWriter, free_name, text_key
from stzoo.data.training_sets.columns import Given
from stzoo.data.training_sets.files import SUFFIXES, Table, find_tables
from stzoo.data.training_sets.formats import Blanks, Example, Understood, examples, understand
from stzoo.data.training_sets.mined import made_of
from stzoo.data.training_sets.resolve_ids import Corpus, with_pages, with_texts
from stzoo.data.training_sets.sets import Candidate, TrainingSet
from stzoo.data.words import same_text_key
from stzoo.errors import DataError, RecipeError
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import counted, notify


def read_training(
    data: str | Path,
    split: str = "train",
    *,
    corpus: str | Path | None = None,
    columns: str | Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> TrainingSet:
    """Reads queries with their positives and negatives, in any format of `formats.describe_formats`.

    The names of the columns in all rows decide the format and the role of each column. The roles are shown to
    the user and kept in `TrainingSet.columns`. A column may mark the positive passages: labels (0 or 1), or a
    grade of relevance (above 0 is positive); then queries without a positive are left out. Rows of the same
    query are joined, and each passage is kept once. Of a corpus only passages that rows refer to are kept,
    but all of it is in memory while it is read.

    Args:
        data: Path of a BEIR folder, or FOLDER/TASK; a jsonl, Parquet, csv or tsv file (also .gz); a folder of
            such files; a folder that `datasets` saved to disk; or a Hub id (org/name:config:split).
        split: Split of a BEIR folder, or of a data set with splits.
        corpus: The corpus of rows that refer to passages by id: a BEIR folder, its corpus.jsonl(.gz), or a
            folder with collection.tsv and queries*.tsv.
        columns: Roles of columns with unusual names, see `column_roles.parse_columns`:
            "query=question,positive=passage", or {"query": "question", "positive": "passage"}.
        progress: True for progress bars on stderr after two seconds; None shows them on a terminal only.

    Raises:
        DataError: If the data do not exist or have an unknown format, the role of a column is ambiguous, a
            row is invalid (named by file and line), a query has no positive, or a passage is both positive
            and negative for one query.
        RecipeError: If `columns` is invalid, or given for a BEIR folder.

    Unlike sentence-transformers: columns are recognised by their names, not by their order. Unlike
    FlagEmbedding: a row's "prompt" and "type" are not read. Unlike KILT: each passage of an evidence page is
    positive, since passages other than KILT's own have no paragraph numbers.
    """
    held = Corpus(corpus, progress) if corpus is not None else None
    return _read(data, split, held, parse_columns(columns), progress)


def read_judged(
    data: str | Path,
    split: str = "train",
    *,
    corpus: str | Path | None = None,
    columns: str | Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> RetrievalDataset:
    """Reads the data for mining: queries, a corpus, and its relevant passages.

    A BEIR folder is read by `stzoo.data.beir.read_beir`. For other data, the corpus is their own passages, or
    `corpus`: every passage in it with the text of a positive is relevant, and the one with its id if it
    contains the text (the rows may lack titles). Positives that it lacks are added to it, with a note.

    Args:
        data: See `read_training`.
        split: See `read_training`.
        corpus: See `read_training`; for a BEIR folder, the corpus to use in place of its own.
        columns: See `read_training`.
        progress: See `read_training`.

    Raises:
        DataError: See `read_training`.
    """
    given = parse_columns(columns)
    if corpus is None and names_beir(data):
        _refuse_columns(data, given)
        return read_beir(data, split, progress=progress)
    held = Corpus(corpus, progress) if corpus is not None else None
    training = _read(data, split, held, given, progress)
    return training.judged(split) if held is None else _over(training, split, held)


def from_judged(judged: RetrievalDataset) -> TrainingSet:
    """The queries with their relevant passages; other passages are not kept.

    Raises:
        DataError: If no passage is relevant.
    """
    relevant = judged.relevant
    places = indices_of(chain.from_iterable(relevant.values()), judged.corpus_ids)
    writer, left_out = TrainingSetWriter(), 0
    for query, names in relevant.items():
        found = [Candidate(judged.passages[places[name]], name) for name in names if name in places]
        positives = [one for one in found if one.text]
        if positives:
            writer.add(judged.queries[query], positives, query_id=query)
        else:
            left_out += 1
    if left_out == len(judged.qrels):
        raise DataError(
            f"{judged.folder}, split {judged.split}: no judgement above 0 has a passage, so there is nothing "
            "to train on."
        )
    of_scores = set(notes_on_queries(judged))
    notes = tuple(note for note in judged.notes if note not in of_scores)
    if left_out:
        notes += (f"{left_out} of {len(judged.qrels)} queries have no relevant passage and are left out",)
        notify(f"{judged.name}: {notes[-1]}.")
    return writer.finish(judged.name, judged.folder, notes=notes, columns=judged.columns)


def _read(
    data: str | Path, split: str, corpus: Corpus | None, given: Given, progress: bool | None
) -> TrainingSet:
    if names_beir(data):
        _refuse_columns(data, given)
        return from_judged(read_beir(data, split, progress=progress))
    source = user_path(data)
    tables = find_tables(data, split, progress, given)
    all_understood = [understand(table.file, table.names, table.read, given) for table in tables]
    _refuse_two_meanings(tables, all_understood)
    writer, blanks = TrainingSetWriter(), Blanks()
    notes: list[str] = []
    for table, understood in zip(tables, all_understood, strict=True):
        read = partial(_examples, understood, table)
        if not understood.form.named:
            rows = read()
        elif corpus is None:
            raise DataError(
                f"{table.file} has only ids ({understood.form.name}); give the corpus with the texts "
                "(--corpus)."
            )
        elif understood.form.named == "pages":
            rows = with_pages(read, table.file, corpus, notes)
        else:
            rows = with_texts(read, corpus)
        for at, example in blanks.without(rows):
            writer.add(*example, at=at)
    notes += blanks.notes()
    made = made_of(tables[0]) if len(tables) == 1 else None
    columns = {one.columns.sentence(): one.columns.record() for one in all_understood}
    training = writer.finish(
        _name(source),
        source,
        leave_out=any(one.columns.marks_positives for one in all_understood),
        notes=tuple(notes),
        made=made,
        columns=tuple(columns.values()),
    )
    # The columns of mined files are always the same.
    for note in [*(columns if made is None else ()), *training.notes]:
        notify(f"{training.name}: {note}.")
    return training


def _refuse_columns(data: str | Path, given: Given) -> None:
    if given:
        raise RecipeError(f"{data} is a BEIR folder, on which columns (--columns) has no effect; drop it.")


def _refuse_two_meanings(tables: list[Table], all_understood: list[Understood]) -> None:
    """Checks that labels and scores mean the same in all files of a folder."""
    first = all_understood[0].columns.meaning
    for table, understood in zip(tables, all_understood, strict=True):
        if understood.columns.meaning != first:
            raise DataError(
                f"{table.file} has {understood.columns.meaning or 'no labels'}, and {tables[0].file} has "
                f"{first or 'none'}; expected the same in all files of a folder."
            )


def _over(training: TrainingSet, split: str, corpus: Corpus) -> RetrievalDataset:
    """The positives of a training set among all passages of a corpus."""
    ids, texts, notes = corpus.passages
    positives = set(training.positives.places.tolist())
    place_of = {text_key(training.passages[place]): place for place in positives}
    ids_of = {place: training.corpus_ids[place] for place in positives}
    by_id = {name: place for place, name in ids_of.items() if name.lstrip("_") != str(place)}  # of the rows
    names: dict[int, list[str]] = {}
    for name, text in zip(ids, texts, strict=True):
        place = place_of.get(text_key(text))
        if place is None and (named := by_id.get(name)) is not None:
            # the rows may have its text without the title
            inside = f" {same_text_key(training.passages[named])} "
            place = named if inside in f" {same_text_key(text)} " else None
        if place is not None:
            names.setdefault(place, []).append(name)
    if lacking := sorted(positives.difference(names)):
        taken = set(ids)
        for place in lacking:
            names[place] = [free_name(training.corpus_ids[place], taken)]
            taken.update(names[place])
        ids = Texts(chain(ids, (names[place][0] for place in lacking)))
        texts = Texts(chain(texts, (training.passages[place] for place in lacking)))
        notes += (f"added {counted(len(lacking), 'positive')} that {corpus.file.name} does not have",)
        notify(f"{training.name}: {notes[-1]}, by the text (the first: {names[lacking[0]][0]}).")
    return replace(
        training.judged(split),
        corpus_ids=ids,
        passages=texts,
        qrels={
            query: {name: 1 for place in training.positives[number].tolist() for name in names[place]}
            for number, query in enumerate(training.query_ids)
        },
        notes=(*training.notes, *notes),
    )


def _examples(understood: Understood, table: Table) -> Iterator[tuple[RowLocation, Example]]:
    return examples(understood, table.read())


def _name(source: Path) -> str:
    """A file's name without its suffixes, or a folder's name."""
    name = source.name
    for suffix in (".gz", *SUFFIXES):
        name = name.removesuffix(suffix)
    return name
