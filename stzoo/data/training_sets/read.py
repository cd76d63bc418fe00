"""Training data of any form, read into one."""

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
from stzoo.data.texts import Texts
from stzoo.data.training_sets.builder import TrainingSetWriter, free_name, text_key
from stzoo.data.training_sets.columns import Given
from stzoo.data.training_sets.files import SUFFIXES, Table, find_tables
from stzoo.data.training_sets.formats import Blanks, Example, Understood, examples, understand
from stzoo.data.training_sets.mined import made_of
from stzoo.data.training_sets.resolve_ids import Corpus, with_pages, with_texts
from stzoo.data.training_sets.sets import Candidate, TrainingSet
from stzoo.errors import DataError, RecipeError
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import notify


def read_training(
    data: str | Path,
    split: str = "train",
    *,
    corpus: str | Path | None = None,
    columns: str | Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> TrainingSet:
    """Reads queries with their positives and negatives, in any of the forms that `formats.describe_formats`
    lists.

    The names of the columns, over all rows, decide the form and what each column is. This is shown to the
    user and kept in `TrainingSet.columns`. A row may say of its passages which are positive: by labels (0 or
    1), or by a grade of relevance (above 0 is positive); then queries without a positive are left out. Rows
    of one query are joined, a passage is kept once, and
    of a corpus only what is named is kept, though it is held whole while it is read.

    Args:
        data: a BEIR folder, or FOLDER/TASK of one; a file as jsonl, Parquet, csv or tsv (.gz, too); a
            folder of such files; what `datasets` saved to disk; or a Hub id (org/name:config:split).
        split: of a BEIR folder, or of a data set that has several.
        corpus: what rows that name ids name: a BEIR folder, its corpus.jsonl(.gz), or a folder with
            collection.tsv and queries*.tsv.
        columns: what columns are that their names do not say, as `column_roles.parse_columns` reads it:
            "query=question,positive=passage", or {"query": "question", "positive": "passage"}.
        progress: True for progress bars on stderr after two seconds; None shows them on a terminal only.

    Raises:
        DataError: if it is not there or of no known form, it is ambiguous what a column is, a row is invalid
            (named by file and line), a query has no positive, or a passage is both positive and negative of
            one query.
        RecipeError: if `columns` is invalid, or given for a BEIR folder.

    Unlike sentence-transformers: columns go by their names, not by their order. Unlike FlagEmbedding: a row's
    "prompt" and "type" are not read. Unlike KILT: each passage of an evidence page is positive, since
    passages other than KILT's own have no paragraph numbers.
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
    """Reads what mining searches: queries, a corpus, and which passages of it are relevant.

    A BEIR folder is read as `stzoo.data.beir.read_beir` reads it. Other data are searched over their own
    passages, or over `corpus`: there every passage with the text of a positive is relevant, and positives
    that it lacks are searched beside it.

    Args:
        data: see `read_training`.
        split: see `read_training`.
        corpus: see `read_training`; for a BEIR folder what is searched in place of its own corpus.
        columns: see `read_training`.
        progress: see `read_training`.

    Raises:
        DataError: see `read_training`.
    """
    given = parse_columns(columns)
    if corpus is None and names_beir(data):
        _refuse_columns(data, given)
        return read_beir(data, split, progress=progress)
    held = Corpus(corpus, progress) if corpus is not None else None
    training = _read(data, split, held, given, progress)
    return training.judged(split) if held is None else _over(training, split, held)


def from_judged(judged: RetrievalDataset) -> TrainingSet:
    """The judged queries with their relevant passages; what is not relevant to any query is not kept.

    Raises:
        DataError: if no passage is relevant.
    """
    relevant = {name for grades in judged.qrels.values() for name, grade in grades.items() if grade > 0}
    places = {name: place for place, name in enumerate(judged.corpus_ids) if name in relevant}
    writer, left_out = TrainingSetWriter(), 0
    for query, grades in judged.qrels.items():
        found = [(name, judged.passages[places[name]]) for name in grades if name in places]
        positives = [Candidate(text, name) for name, text in found if grades[name] > 0 and text]
        if positives:
            writer.add(judged.queries[query], positives, query_id=query)
        else:
            left_out += 1
    if left_out == len(judged.qrels):
        raise DataError(
            f"{judged.folder}, split {judged.split}: no judgement above 0 has a passage, nothing to train on."
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
                f"{table.file} has only ids ({understood.form.name}); name the corpus that has the texts."
            )
        elif understood.form.named == "pages":
            rows = with_pages(read, table.file, corpus, notes)
        else:
            rows = with_texts(read, corpus)
        for at, example in blanks.without(rows):
            writer.add(*example, at=at)
    notes += blanks.notes()
    made = made_of(tables[0]) if len(tables) == 1 else None
    columns = {one.columns.sentence(): one.columns.facts() for one in all_understood}
    training = writer.finish(
        _name(source),
        source,
        leave_out=any(one.columns.marks_positives for one in all_understood),
        notes=tuple(notes),
        made=made,
        columns=tuple(columns.values()),
    )
    for said in [*(columns if made is None else ()), *training.notes]:  # stzoo's own columns are known
        notify(f"{training.name}: {said}.")
    return training


def _refuse_columns(data: str | Path, given: Given) -> None:
    if given:
        raise RecipeError(f"columns (--columns) is about files of training rows; {data} is a BEIR folder.")


def _refuse_two_meanings(tables: list[Table], all_understood: list[Understood]) -> None:
    """Sees that labels and scores mean the same in all files of a folder."""
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
    names: dict[int, list[str]] = {}
    for name, text in zip(ids, texts, strict=True):
        if (place := place_of.get(text_key(text))) is not None:
            names.setdefault(place, []).append(name)
    if lacking := sorted(positives.difference(names)):
        taken = set(ids)
        for place in lacking:
            names[place] = [free_name(training.passage_ids[place], taken)]
            taken.update(names[place])
        ids = Texts(chain(ids, (names[place][0] for place in lacking)))
        texts = Texts(chain(texts, (training.passages[place] for place in lacking)))
        notes += (f"{len(lacking)} positives that are not in {corpus.file.name} are searched beside it",)
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
    """A file's name without what says how it is packed; a folder's whole name."""
    name = source.name
    for suffix in (".gz", *SUFFIXES):
        name = name.removesuffix(suffix)
    return name
