"""Training data of any form, read into one."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from ..errors import DataError
from ..judged import JudgedSet, names_beir, read_beir
from ..texts import Texts
from .collect import TrainingSetWriter, free_name, text_key
from .forms import Example, Form, described, examples, form_of
from .mined import made_of
from .named import Corpus, with_pages, with_texts
from .sets import Candidate, TrainingSet
from .tables import SUFFIXES, Table, find_tables
from .values import At


def read_training(
    data: str | Path,
    split: str = "train",
    *,
    corpus: str | Path | None = None,
    progress: bool | None = None,
) -> TrainingSet:
    """Reads queries with their positives and negatives, in any of the forms that `FORMS` describes.

    The form is told by what the first row holds. Rows of one query are joined, a passage is kept once, and
    of a corpus only what is named is kept, though it is held whole while it is read.

    Args:
        data: a BEIR folder, or FOLDER/TASK of one; a file as jsonl, Parquet, csv or tsv (.gz, too); a
            folder of such files; what `datasets` saved to disk; or a Hub id (org/name:config:split).
        split: of a BEIR folder, or of a data set that has several.
        corpus: what rows that name ids name: a BEIR folder, its corpus.jsonl(.gz), or a folder with
            collection.tsv and queries*.tsv.
        progress: True for progress bars on stderr after two seconds; None shows them on a terminal only.

    Raises:
        DataError: if it is not there or of no known form, a row does not hold (named by file and line), a
            query has no positive, or a passage is both positive and negative of one query.

    Unlike sentence-transformers: columns go by their names, not by their order. Unlike FlagEmbedding: a row's
    "prompt" and "type" are not read. Unlike KILT: each passage of an evidence page is positive, since
    passages other than KILT's own have no paragraph numbers.
    """
    return _read(data, split, Corpus(corpus, progress) if corpus is not None else None, progress)


def read_judged(
    data: str | Path,
    split: str = "train",
    *,
    corpus: str | Path | None = None,
    progress: bool | None = None,
) -> JudgedSet:
    """Reads what mining searches: queries, a corpus, and which passages of it are relevant.

    A BEIR folder is read as `stzoo.judged.read_beir` reads it. Other data are searched over their own
    passages, or over `corpus`: there every passage with the text of a positive is relevant, and positives
    that it lacks are searched beside it.

    Args:
        data: see `read_training`.
        split: see `read_training`.
        corpus: see `read_training`; for a BEIR folder what is searched in place of its own corpus.
        progress: see `read_training`.

    Raises:
        DataError: see `read_training`.
    """
    if corpus is None and names_beir(data):
        return read_beir(data, split, progress=progress)
    held = Corpus(corpus, progress) if corpus is not None else None
    training = _read(data, split, held, progress)
    return training.judged(split) if held is None else _over(training, split, held)


def from_judged(judged: JudgedSet) -> TrainingSet:
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
    notes = judged.notes
    if left_out:
        notes += (f"{left_out} of {len(judged.qrels)} queries have no relevant passage and are left out",)
    return writer.finish(judged.name, judged.folder, notes=notes)


def _read(data: str | Path, split: str, corpus: Corpus | None, progress: bool | None) -> TrainingSet:
    if names_beir(data):
        return from_judged(read_beir(data, split, progress=progress))
    source = Path(data).expanduser()
    tables = find_tables(data, split, progress)
    writer = TrainingSetWriter()
    notes: list[str] = []
    for table in tables:
        line, row = next(table.read(), (0, None))
        if row is None:
            raise DataError(f"{table.file} holds no row; expected training data:\n{described()}")
        form = form_of(row, At(table.file, line))
        read = partial(_examples, form, table)
        if not form.named:
            rows = read()
        elif corpus is None:
            raise DataError(f"{table.file} has only ids ({form.name}); name the corpus that has the texts.")
        elif form.named == "pages":
            rows = with_pages(read, table.file, corpus, notes)
        else:
            rows = with_texts(read, table.file, corpus)
        for line, example in rows:
            writer.add(*example, file=table.file, line=line)
    made = made_of(tables[0]) if len(tables) == 1 else None
    return writer.finish(_name(source), source, notes=tuple(notes), made=made)


def _over(training: TrainingSet, split: str, corpus: Corpus) -> JudgedSet:
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


def _examples(form: Form, table: Table) -> Iterator[tuple[int, Example]]:
    return examples(form, table.read(), table.file)


def _name(source: Path) -> str:
    """A file's name without what says how it is packed; a folder's whole name."""
    name = source.name
    for suffix in (".gz", *SUFFIXES):
        name = name.removesuffix(suffix)
    return name
