"""The model card: README.md with the Hub's metadata, the scores in both forms of the Hub, and pictures.

described.py   what the model's folder says of it and of the runs that made it
frontmatter.py the YAML on top
origin.py      which published checkpoint it is, or began from
public.py      keeps places and secrets of the machine out of that
scores.py      results of the benchmark, and the two forms that the Hub reads
card.md.j2     the text

Unlike sentence-transformers' own card: nothing is asked of the Hub, of an earlier README only the metadata
stays, and a card that cannot be made is an error (after a training, a warning).
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from stzoo.data import registry
from stzoo.errors import DataError, ModelError, OutputError, RecipeError, StzooError, first_line
from stzoo.evaluation.report.intervals import RESAMPLES, Interval
from stzoo.hub import frontmatter, redact
from stzoo.hub.base_checkpoint import Origin, read_origin
from stzoo.hub.card_data import Step, read_model, read_steps
from stzoo.hub.card_scores import MEASURE, SHOWN, Scored, eval_results, model_index, read_scores
from stzoo.models.encode.batches import USUAL
from stzoo.training.history import PICTURE, PRETRAINING
from stzoo.utils.files import atomic_file
from stzoo.utils.inputs import user_path
from stzoo.utils.outputs import check_output

README = "README.md"
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense-retrieval", "stzoo"]
ORDER = ["language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "tags"]
ANEW = {"library_name", "pipeline_tag", "metrics", "model-index", "model_name", "eval_results"}
SERVED_BY = """\
@inproceedings{reimers-gurevych-2019-sentence-bert,
  title = {Sentence-{BERT}: Sentence Embeddings using {S}iamese {BERT}-Networks},
  author = {Reimers, Nils and Gurevych, Iryna},
  booktitle = {Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing},
  year = {2019},
  url = {https://arxiv.org/abs/1908.10084}
}"""


def card(
    folder: str | Path,
    *,
    output: str | Path | None = None,
    results: str | Path | None = None,
    repo_id: str = "",
    license: str | None = None,  # noqa: A002 - the Hub's name of it
    language: str | Sequence[str] | None = None,
    overwrite: bool = False,
) -> str:
    """Renders the card of a model, without publishing it.

    Args:
        folder: of the model.
        output: the file to write; None writes none.
        results: an --output of bench, for the scores; reports of contamination may lie in it, too.
        repo_id: ORG/NAME on the Hub, for the usage code.
        license: as the Hub spells it, e.g. "apache-2.0"; None for what the folder's README.md says.
        language: codes ("en"), a list or with commas between; None likewise.
        overwrite: True to replace `output`.

    Returns:
        the text of README.md.

    Raises:
        DataError: if there are no results of this very model, or the folder's README.md does not hold.
        ModelError: if the folder is no export.
        OutputError: if `output` is there, or cannot be written.
        RecipeError: if a field is not as the Hub wants it.
    """
    if output is not None:
        output = check_output(output, kind="file", inputs=[folder], is_ours=_is_text, what="a Markdown file")
        if os.path.lexists(output) and not overwrite:
            raise OutputError(f"{output} is there already. Use --overwrite, or another --output.")
    files = make(
        user_path(folder, ModelError), repo_id=repo_id, results=results, license=license, language=language
    )
    if output is not None:
        with atomic_file(output) as draft:
            draft.write_bytes(files[README])
    return files[README].decode()


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in (".md", ".markdown")


def make(
    folder: Path,
    *,
    repo_id: str = "",
    results: str | Path | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's name of it
    language: str | Sequence[str] | None = None,
    name: str | None = None,
) -> dict[str, bytes]:
    """The files of a model's card by their path in its repository; writes nothing.

    Args:
        folder: of the model.
        repo_id: ORG/NAME on the Hub.
        results: an --output of bench.
        license: see `card`.
        language: see `card`.
        name: of the model; that of the repository or else the folder if None.

    Raises:
        StzooError: see `card`.
    """
    model = read_model(folder)
    steps, known = read_steps(folder)
    origin = read_origin(folder)
    check_repo_id(repo_id)
    name = redact.shown(repo_id.rpartition("/")[2] or name or folder.resolve().name or "model", {})
    scored = None if results is None else read_scores(user_path(results), folder)
    earlier = _earlier(folder / README, known)
    if license is not None:
        earlier = {key: value for key, value in earlier.items() if not key.startswith("license")}
        earlier["license"] = license
    elif origin and origin.license and not origin.trained:
        earlier.setdefault("license", origin.license)
    if language is not None:
        earlier["language"] = language.split(",") if isinstance(language, str) else list(language)
    data = _metadata(name, steps, origin, scored, earlier)
    pictures = [picture for picture in (PRETRAINING, PICTURE) if (folder / picture).is_file()]
    text = _render(
        metadata=frontmatter.dump(_ordered(data.to_dict())).strip(),
        name=name,
        reference=repo_id or "path/of/this/folder",
        model=model,
        tasks=[prompt for prompt in model.prompts if prompt not in USUAL],
        steps=steps,
        origin=origin,
        scored=scored,
        table=_table(scored) if scored else [],
        measure=MEASURE,
        resamples=RESAMPLES,
        pictures=pictures,
        card=data,
        citations=_citations(steps, origin),
    )
    _check(text, data)
    files = {README: text.encode(), **{picture: (folder / picture).read_bytes() for picture in pictures}}
    return files | (eval_results(scored) if scored else {})


def write(folder: Path) -> None:
    """Writes the card of a model that was trained into its folder, or says why it cannot be made."""
    try:
        with atomic_file(folder / README) as draft:
            draft.write_bytes(make(folder)[README])
    except (StzooError, OSError) as error:  # no reason to call hours of training a failure
        print(
            f"stzoo: the model in {folder} is finished, but has no card: {error} Once that is mended: "
            f"stzoo card {folder} --output {folder / README}",
            file=sys.stderr,
        )


def metadata(text: str) -> dict[str, Any]:
    """The front matter of a card as plain values."""
    return dict(json.loads(json.dumps(ModelCard(text).data.to_dict(), default=str)))


def check_repo_id(repo_id: str) -> None:
    """Sees that a name can be one on the Hub; "" is none at all.

    Raises:
        RecipeError: if it cannot.
    """
    try:
        if repo_id:
            validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RecipeError(
            f"the repository {repo_id!r} is none of the Hub: {first_line(error)} Expected ORG/NAME."
        ) from error


# -- metadata


def _earlier(readme: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """What the README that is there says in its front matter, but for what is always made anew."""
    try:
        found = frontmatter.read(readme) if readme.is_file() else {}
    except Exception as error:  # whatever YAML makes of it
        raise DataError(
            f"the metadata of {readme} cannot be read: {first_line(error)}. Mend or remove the lines "
            "between the two ---."
        ) from error
    return redact.shown(
        {k: v for k, v in found.items() if isinstance(k, str) and k not in ANEW and v is not None}, known
    )


def _metadata(
    name: str, steps: list[Step], origin: Origin | None, scored: Scored | None, earlier: dict[str, Any]
) -> Any:
    """The front matter, a `huggingface_hub.ModelCardData`.

    Raises:
        RecipeError: if a field is of a form that the Hub refuses.
    """
    methods = [name for step in steps for kind, name, _ in step.methods if kind in ("objective", "balancer")]
    bases = [base for base in (origin and origin.hub_id, *(step.base_id for step in steps)) if base][:1]
    datasets = [one for step in steps for one in step.datasets]
    results = model_index(scored) if scored else []
    given: dict[str, Any] = {
        "license": _license(earlier.pop("license", None)),
        "language": _languages(_listed("language", earlier)),
        "tags": list(dict.fromkeys([*TAGS, *methods, *_listed("tags", earlier)])),
        "base_model": bases or _listed("base_model", earlier),
        "datasets": list(dict.fromkeys([*datasets, *_listed("datasets", earlier)])),
        "metrics": list(dict.fromkeys(result.metric_type for result in results)),
        **({"eval_results": results, "model_name": name} if results else {}),
    }
    own = {key: value for key, value in given.items() if value}
    for key in given:
        earlier.pop(key, None)
    earlier.pop("ignore_metadata_errors", None)  # an argument of the class
    return ModelCardData(
        library_name="sentence-transformers", pipeline_tag="sentence-similarity", **own, **earlier
    )


def _ordered(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in (*ORDER, *found) if key in found}


def _listed(key: str, found: Mapping[str, Any]) -> list[str]:
    """One text or several, as a list."""
    value = found.get(key) or []
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
        raise RecipeError(f"{key} is {value!r}; expected a text or a list of texts.")
    return several


def _license(given: Any) -> str | None:
    if given is not None and not (
        isinstance(given, str) and re.fullmatch(r"(?=.*[a-z])[a-z0-9][a-z0-9.+-]*", given)
    ):
        raise RecipeError(
            f"the license is {given!r}; expected an identifier of the Hub in small letters, such as "
            "apache-2.0, mit, cc-by-sa-4.0 or other (https://huggingface.co/docs/hub/repositories-licenses)."
        )
    return given


def _languages(given: list[str]) -> list[str]:
    for one in given:
        if one not in ("code", "multilingual") and not re.fullmatch(r"[a-z]{2,3}", one):
            raise RecipeError(
                f"the language is {one!r}; expected a code of two or three small letters (ISO 639: en, "
                "deu), code, or multilingual."
            )
    return given


def _check(text: str, data: Any) -> None:
    """Sees that the Hub's own classes read the front matter back as it was meant.

    Raises:
        DataError: if they do not.
    """
    try:
        same = ModelCard(text).data.to_dict() == data.to_dict()
    except ValueError as error:
        raise DataError(f"huggingface_hub refuses the card's metadata: {first_line(error)}") from error
    if not same:
        raise DataError("the metadata of README.md has values that YAML does not give back; mend them there.")


# -- text


def _render(**given: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 - Markdown; texts go through `plain`, `code` or `fenced`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "plain": _plain,
        "code": _code,
        "fenced": _fenced,
        "yaml": _yaml,
        "settings": _settings,
        "span": _span,
    }
    return environment.get_template("card.md.j2").render(**given)


def _plain(text: Any) -> str:
    """A text of one line that Markdown shows as it is, in a cell of a table, too."""
    return re.sub(r"([\\`*\[\]<>|$~#])", r"\\\1", " ".join(str(redact.shown(text, {})).split()))


def _code(text: str) -> str:
    """Python's spelling of a text, as code within a line."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text!r} {ticks}"


def _fenced(text: str, kind: str) -> str:
    """A block of code, whatever is in it."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{kind}\n{text.rstrip()}\n{ticks}"


def _yaml(value: Any) -> str:
    return frontmatter.dump(value, width=100)


def _settings(found: Mapping[str, Any]) -> str:
    """Settings of a result in a line, without prompts, which have a place of their own."""
    return ", ".join(f"{key} {value}" for key, value in found.items() if key != "prompts")


def _table(scored: Scored) -> list[list[str]]:
    """The scores by data set, a list of cells a row, the head first."""
    measures = [name for name in SHOWN if any(name in row.intervals for row in scored.rows)]
    rows = [["Data set", "Split", "Suites", "Queries", *measures]]
    for row in scored.rows:
        result, means = row.result, row.result.scores.mean
        entry = registry.find(result.dataset)
        suites = [name for name in registry.suites() if entry and entry.name in registry.expand([name])]
        numbers = [f"{means[name]:.4f}" if name in means else "-" for name in measures]
        rows.append([result.dataset, result.split, ", ".join(suites), f"{result.queries:,}", *numbers])
    intervals = ["95 % interval", *(_span(row.intervals[MEASURE]) for row in scored.rows)]
    bm25 = [scored.bm25.get((row.result.dataset, row.result.split)) for row in scored.rows]
    lexical = [f"BM25 {MEASURE}", *("-" if score is None else f"{score:.4f}" for score in bm25)]
    for cells, interval, score in zip(rows, intervals, lexical, strict=True):
        cells.insert(5, interval)
        cells += [score] if scored.bm25 else []
    return rows


def _span(interval: Interval) -> str:
    return "{:.4f} to {:.4f}".format(*interval) if interval else "-"


def _citations(steps: list[Step], origin: Origin | None) -> list[str]:
    parts = [origin and origin.row, *(part for step in steps for _, _, part in step.methods)]
    return list(
        dict.fromkeys([*(part.citation.strip() for part in parts if part and part.citation), SERVED_BY])
    )
