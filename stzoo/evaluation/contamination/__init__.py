"""contamination(): find test queries and relevant passages in training data, and score without them.

The judged queries and the passages judged relevant (grade above 0) are indexed (`overlap.py`), and the
training files are streamed and looked up (`training_texts.py`). A query counts as contaminated if its own
text or any of its relevant passages is found; both counts are reported. One shared n-gram is enough, so a
sentence that ends many abstracts counts too; judge by the similarity in the list. A text shorter than an
n-gram is found only if a whole training text matches it, not inside a longer one.

The output folder has contaminated.jsonl, with a line per test text and way in which it was found and the most
similar training text, and contamination.json with counts, ids, settings and scores.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stzoo.data import registry
from stzoo.data.beir import RetrievalDataset, read_beir
from stzoo.data.corpus_names import check_exists
from stzoo.data.find_datasets import locate
from stzoo.data.near_copies import datasketch_module
from stzoo.errors import DataError, OutputError, RecipeError
from stzoo.evaluation.bench.results import Result, read
from stzoo.evaluation.compare.systems import label, measure_name, scores_of
from stzoo.evaluation.contamination.overlap import WITHOUT_MINHASH, Index
from stzoo.evaluation.contamination.result import CleanScore, Contamination, Hit, as_json
from stzoo.evaluation.contamination.training_texts import TrainingText, find_training, training_texts
from stzoo.evaluation.settings import ContaminationSettings
from stzoo.utils.files import atomic_file, write_json
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public

LIST, REPORT = "contaminated.jsonl", "contamination.json"
_BATCH = 1 << 20  # characters of training text per batch
_EXCERPT = 200  # characters of a text in the list


@public()
def contamination(
    train: Any,
    *,
    data: Any,
    split: str = "test",
    output: str | Path | None = None,
    results: str | Path | Sequence[str | Path] = (),
    measure: str = "nDCG@10",
    ngram: int = 13,
    jaccard: float = 0.8,
    minhash: bool = True,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Contamination:
    """Finds test queries and relevant passages that occur in training data, exactly, in part or nearly.

    Args:
        train: Files or folders with training data; of a BEIR folder, the split "train". Or a list of texts or
            dicts, a data frame, or a datasets.Dataset.
        data: The BEIR folder (or FOLDER/TASK) with the test data, or the dicts (corpus, queries, qrels).
        split: Split of the test data.
        output: Folder for the list and the report; None writes nothing.
        results: Folders with results on this data, to score again without the contaminated queries.
        measure: Measure to score; the results must have it.
        ngram: Number of words in an n-gram; shorter texts are found by exact match only.
        jaccard: Threshold of MinHash, 0.1 to 1.
        minhash: False skips MinHash, which requires datasketch.
        overwrite: True to replace an earlier list and report in `output`.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: If data, training data or results are missing or invalid, or the results are of other data.
        MissingExtraError: If datasketch is not installed.
        OutputError: If `output` has a report already, or cannot be written.
        RecipeError: If an option is invalid.
    """
    settings = ContaminationSettings.check(locals())
    if not settings.train or not all(path.strip() for path in settings.train):
        raise RecipeError(
            "no training data was given, or an empty name; expected files or folders (--train)."
        )
    result_folders = [user_path(path) for path in settings.results]
    if minhash:
        datasketch_module(WITHOUT_MINHASH, "contamination")  # raises before anything is read
    if output is not None:
        output = user_path(output, OutputError)
        _check_output(output, [*settings.train, settings.data, *result_folders], overwrite)
    show_bars = show_progress(progress)
    for name in [str(settings.data), *settings.train]:  # before the first is downloaded
        check_exists(name, on_hub=False)
    data = locate(settings.data, progress=show_bars)
    train_paths = [locate(path, progress=show_bars) for path in settings.train]
    files = [file for path in train_paths for file in find_training(path, show_bars)]
    entry = registry.find(data.resolve().name) if data.is_dir() else None  # not that of FOLDER/TASK
    judged = read_beir(data, split, name=entry.name if entry else None, progress=show_bars)
    scored = _results(judged, result_folders)
    measure = measure_name(measure, scored)
    per_query = [scores_of(result, measure) for result in scored]

    relevant = {d for grades in judged.qrels.values() for d, grade in grades.items() if grade > 0}
    passages = zip(judged.corpus_ids, judged.passages, strict=True)
    tested = [("query", query, text) for query, text in judged.queries.items()]
    tested += [("passage", document, text) for document, text in passages if document in relevant]
    index = Index([text for *_, text in tested], ngram, jaccard if minhash else None)
    hits, texts = _search(tested, index, (text for file in files for text in training_texts(file, show_bars)))

    found = {
        kind: {hit.id for hit in hits if hit.kind == kind and not hit.only_negative}
        for kind in ("query", "passage")
    }
    negatives = {hit.id for hit in hits if hit.kind == "passage"} - found["passage"]
    contaminated = {
        query
        for query, grades in judged.qrels.items()
        if query in found["query"] or any(grades[d] > 0 for d in grades.keys() & found["passage"])
    }
    labels = label([{(row.dataset, row.split): row} for row in scored], [str(row.path) for row in scored])
    report = Contamination(
        dataset=judged.name,
        split=split,
        train=tuple(settings.train),
        texts=texts,
        queries=len(judged.queries),
        passages=len(relevant),
        found_queries=tuple(query for query in judged.queries if query in found["query"]),
        found_passages=tuple(id_ for kind, id_, _ in tested if kind == "passage" and id_ in found[kind]),
        only_negatives=tuple(id_ for kind, id_, _ in tested if kind == "passage" and id_ in negatives),
        contaminated=tuple(query for query in judged.queries if query in contaminated),
        hits=hits,
        ngram=ngram,
        jaccard=jaccard if minhash else None,
        measure=measure,
        scores=tuple(
            CleanScore(
                name,
                str(result.path),
                result.scores.mean[measure],
                _mean(value for query, value in scores.items() if query not in found["query"]),
                _mean(value for query, value in scores.items() if query not in contaminated),
            )
            for name, result, scores in zip(labels, scored, per_query, strict=True)
        ),
    )
    if output is not None:
        _write(report, output)
    return report


def _check_output(output: Path, inputs: list[Any], overwrite: bool) -> None:
    """Checks that the list and the report may be written.

    Raises:
        OutputError: If not.
    """
    check_output(output, kind="results", inputs=inputs)
    for name, keys in (
        (LIST, {"kind", "id", "how"}),
        (REPORT, {"dataset", "split", "train", "contaminated"}),
    ):

        def is_ours(path: Path, keys: set[str] = keys) -> bool:
            try:
                with path.open(encoding="utf-8") as file:
                    text = file.readline() if path.name == LIST else file.read()
                return not text or keys <= json.loads(text).keys()
            except (OSError, ValueError, AttributeError, RecursionError):
                return False

        check_output(output / name, kind="file", is_ours=is_ours, what="of stzoo contamination")
    if os.path.lexists(output / REPORT) and not overwrite:
        raise OutputError(f"{output} already has a report. Use --overwrite, or another --output.")


def _results(judged: RetrievalDataset, folders: Sequence[Path]) -> list[Result]:
    results = []
    for folder in folders:
        rows = read(folder)
        matching = [row for row in rows if row.data == (judged.corpus_fingerprint, judged.fingerprint)]
        if not matching:
            names = dict.fromkeys(f"{row.dataset} ({row.split})" for row in rows)
            raise DataError(
                f"{folder} has no results on {judged.folder} ({judged.split}) in its present form, only on "
                f"{', '.join(names)}. Score it again with `stzoo bench`."
            )
        results += matching
    return results


def _search(
    tested: Sequence[tuple[str, str, str]], index: Index, texts: Iterable[TrainingText]
) -> tuple[tuple[Hit, ...], int]:
    best: dict[tuple[int, str], tuple[bool, float, TrainingText]] = {}
    occurrences: Counter[tuple[int, str]] = Counter()
    negatives: Counter[tuple[int, str]] = Counter()
    count = 0
    for batch in _batches(texts):
        count += len(batch)
        for match in index.find([text.text for text in batch]):
            key = (match.found, match.how)
            source = batch[match.text]
            occurrences[key] += 1
            negatives[key] += source.is_negative
            rank = (not source.is_negative, match.similarity)
            if key not in best or best[key][:2] < rank:
                best[key] = (*rank, source)
    if not count:
        raise DataError("the training data has no text; expected at least one.")
    hits = []
    for (i, how), (_, similarity, source) in sorted(best.items(), key=lambda item: item[0]):
        kind, id_, text = tested[i]
        where = (source.file, source.line, source.field, text[:_EXCERPT], source.text[:_EXCERPT])
        places, negative = occurrences[i, how], negatives[i, how]
        hits.append(Hit(kind, id_, how, similarity, places, negative, *where))
    return tuple(hits), count


def _batches(texts: Iterable[TrainingText]) -> Iterator[list[TrainingText]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _mean(values: Iterable[float]) -> float | None:
    scores = list(values)
    return sum(scores) / len(scores) if scores else None


def _write(report: Contamination, output: Path) -> None:
    (output / REPORT).unlink(missing_ok=True)  # so that an interruption never leaves it next to another list
    with atomic_file(output / LIST) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(hit), ensure_ascii=False) + "\n" for hit in report.hits)
    plain = as_json(report)
    del plain["hits"]
    write_json(output / REPORT, plain)
