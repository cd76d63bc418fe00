"""The model card: README.md with the Hub's metadata, scores in both formats of the Hub, and pictures.

card_data.py        reads the model's folder and the records of the training runs
frontmatter.py      the YAML block at the top
base_checkpoint.py  the published checkpoint that the model is, or was trained from
redact.py           keeps local paths and secrets out of the card
card_scores.py      results of the benchmark, in the two formats that the Hub reads
card.md.j2          the text

Unlike sentence-transformers' own card: it makes no requests to the Hub, keeps only the metadata of an earlier
README, and raises an error if it cannot be made (after training, it prints a warning).
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from stzoo.data import registry
from stzoo.data.beir_layout import folder_name
from stzoo.errors import DataError, ModelError, OutputError, RecipeError, StzooError, first_line, suggest
from stzoo.evaluation.report.intervals import RESAMPLES, Interval
from stzoo.hub import frontmatter, licences, redact
from stzoo.hub.base_checkpoint import Origin, read_origin
from stzoo.hub.card_data import OWN_CLASS, Step, read_model, read_steps
from stzoo.hub.card_scores import MEASURE, SHOWN, Scored, eval_results, model_index, read_scores
from stzoo.hub.settings import CardSettings
from stzoo.models.encode.batches import USUAL
from stzoo.training.history import PICTURE, PRETRAINING
from stzoo.utils.files import atomic_file
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import counted, notify
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public

README = "README.md"
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense-retrieval", "stzoo"]
ORDER = ["language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "tags"]
RENEWED = {"library_name", "pipeline_tag", "metrics", "model-index", "model_name", "eval_results"}
SERVED_BY = """\
@inproceedings{reimers-gurevych-2019-sentence-bert,
  title = {Sentence-{BERT}: Sentence Embeddings using {S}iamese {BERT}-Networks},
  author = {Reimers, Nils and Gurevych, Iryna},
  booktitle = {Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing},
  year = {2019},
  url = {https://arxiv.org/abs/1908.10084}
}"""


@public()
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
    """Renders the card of a model without publishing it.

    Args:
        folder: Path to the model folder.
        output: File to write; None writes none.
        results: An --output of bench with the model's scores, and optionally reports of contamination.
        repo_id: ORG/NAME on the Hub, used in the code example.
        license: Licence as the Hub spells it, e.g. "apache-2.0"; None keeps that of the folder's README.md.
        language: Language codes ("en"), as a list or separated by commas; None keeps those of the folder's
            README.md.
        overwrite: True to replace `output`.

    Returns:
        The text of README.md.

    Raises:
        DataError: If there are no results of this model, or the folder's README.md is invalid.
        ModelError: If the folder is not an exported model.
        OutputError: If `output` exists already, or cannot be written.
        RecipeError: If an option is invalid, or the Hub does not accept a field's value.
    """
    settings = CardSettings.check(locals()).arguments()
    if output is not None:
        output = check_output(output, kind="file", inputs=[folder], is_ours=_is_text, what="a Markdown file")
        if os.path.lexists(output) and not overwrite:
            raise OutputError(f"{output} exists already. Use --overwrite, or another --output.")
    files = make(user_path(settings.pop("folder"), ModelError), **settings)
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
    results: Path | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's name of it
    language: Sequence[str] | None = None,
    name: str | None = None,
) -> dict[str, bytes]:
    """Makes the files of a model's card, by their path in the repository, without writing them.

    Args:
        folder: Path to the model folder.
        repo_id: ORG/NAME on the Hub.
        results: An --output of bench.
        license: Licence; see `card`.
        language: Language codes; see `card`.
        name: Name of the model; None uses that of the repository, or else of the folder.

    Raises:
        StzooError: As in `card`.
    """
    model = read_model(folder)
    steps, known = read_steps(folder)
    origin = read_origin(folder)
    name = redact.shown(repo_id.rpartition("/")[2] or name or folder_name(folder) or "model", {})
    ids = (origin and origin.hub_id, *(step.base_id for step in steps), model.adapted.get("base_id"))
    base_id = next((one for one in ids if one), None)
    scored = None if results is None else read_scores(user_path(results), folder, base_id)
    earlier = _earlier(folder / README, known)
    if license is not None:
        earlier = {key: value for key, value in earlier.items() if not key.startswith("license")}
        earlier["license"] = license
    elif origin and origin.license and not origin.trained:
        earlier.setdefault("license", origin.license)
    if language is not None:
        earlier["language"] = list(language)
    data = _metadata(name, steps, base_id, scored, earlier, model.adapted.get("datasets", ()))
    pictures = [picture for picture in (PRETRAINING, PICTURE) if (folder / picture).is_file()]
    text = _template().render(
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
        base_id=base_id,
        data_licences=[
            (entry.licence, name)
            for name in data.datasets or ()
            if (entry := registry.find(name)) and entry.licence
        ],
        citations=_citations(steps, origin),
    )
    _check(text, data)
    files = {README: text.encode(), **{picture: (folder / picture).read_bytes() for picture in pictures}}
    return files | (eval_results(scored) if scored else {})


def write(folder: Path) -> None:
    """Writes the card of a trained model into its folder, or prints why it cannot be made."""
    try:
        with atomic_file(folder / README) as draft:
            draft.write_bytes(make(folder)[README])
    except (StzooError, OSError) as error:  # not a reason to report hours of training as failed
        print(
            f"stzoo: the model in {folder} is finished, but its card could not be made: {error} After fixing "
            f"this, run: stzoo card {quote(str(folder))} --output {quote(str(folder / README))}",
            file=sys.stderr,
        )


def metadata(text: str) -> dict[str, Any]:
    """The front matter of a card as plain values."""
    return dict(json.loads(json.dumps(ModelCard(text).data.to_dict(), default=str)))


# -- metadata


def _earlier(readme: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """The front matter of an existing README, without the fields that are always renewed."""
    try:
        fields = frontmatter.read(readme) if readme.is_file() else {}
    except Exception as error:  # YAML raises errors of many kinds
        raise DataError(
            f"the metadata of {readme} cannot be read: {first_line(error)}. Correct or remove the lines "
            "between the two ---."
        ) from error
    return redact.shown(
        {k: v for k, v in fields.items() if isinstance(k, str) and k not in RENEWED and v is not None}, known
    )


def _metadata(
    name: str,
    steps: list[Step],
    base_id: str | None,
    scored: Scored | None,
    earlier: dict[str, Any],
    adapted_to: Sequence[str],
) -> Any:
    """The front matter, a `huggingface_hub.ModelCardData`.

    Raises:
        RecipeError: If the Hub does not accept a field's value.
    """
    methods = [
        name
        for step in steps
        for kind, name, component in step.methods
        if kind in ("objective", "balancer") and component is not OWN_CLASS
    ]
    datasets = [*(one for step in steps for one in step.datasets), *adapted_to]
    results = model_index(scored) if scored else []
    fields: dict[str, Any] = {
        "license": _license(earlier.pop("license", None)),
        "language": _languages(_listed("language", earlier)),
        "tags": list(dict.fromkeys([*TAGS, *methods, *_listed("tags", earlier)])),
        "base_model": [base_id] if base_id else _listed("base_model", earlier),
        "datasets": list(dict.fromkeys([*datasets, *_listed("datasets", earlier)])),
        "metrics": list(dict.fromkeys(result.metric_type for result in results)),
        **({"eval_results": results, "model_name": name} if results else {}),
    }
    for key in fields:
        earlier.pop(key, None)
    earlier.pop("ignore_metadata_errors", None)  # an argument of the class, not a field
    fields = {key: value for key, value in fields.items() if value}
    return ModelCardData(
        library_name="sentence-transformers", pipeline_tag="sentence-similarity", **fields, **earlier
    )


def _ordered(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: fields[key] for key in (*ORDER, *fields) if key in fields}


def _listed(key: str, fields: Mapping[str, Any]) -> list[str]:
    """A field with one text or several, as a list."""
    value = fields.get(key) or []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RecipeError(f"{key} is {value!r}; expected a text or a list of texts.")
    return texts


def _license(name: Any) -> str | None:
    if name is not None and not (
        isinstance(name, str) and re.fullmatch(r"(?=.*[a-z])[a-z0-9][a-z0-9.+-]*", name)
    ):
        raise RecipeError(
            f"the license is {name!r}; expected an identifier of the Hub in lower case, such as "
            "apache-2.0, mit, cc-by-sa-4.0 or other (https://huggingface.co/docs/hub/repositories-licenses)."
        )
    if name is not None and name not in licences.KNOWN:
        notify(f"the Hub lists no licence {name!r}{suggest(name, licences.KNOWN)}")
    return name


def _languages(codes: list[str]) -> list[str]:
    for code in codes:
        if code not in ("code", "multilingual") and not re.fullmatch(r"[a-z]{2,3}", code):
            raise RecipeError(
                f"the language is {code!r}; expected a code of two or three lower-case letters (ISO 639: en, "
                "deu), code, or multilingual."
            )
    return codes


def _check(text: str, data: Any) -> None:
    """Checks that huggingface_hub reads the same metadata back from the front matter.

    Raises:
        DataError: If it does not.
    """
    try:
        same = ModelCard(text).data.to_dict() == data.to_dict()
    except ValueError as error:
        raise DataError(f"huggingface_hub rejects the card's metadata: {first_line(error)}") from error
    if not same:
        raise DataError(
            "the metadata of README.md has values that change when written as YAML; correct them there."
        )


# -- text


@cache
def _template() -> jinja2.Template:
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
        "counted": counted,
        "fenced": _fenced,
        "yaml": _yaml,
        "settings": _settings,
        "span": _span,
    }
    return environment.get_template("card.md.j2")


def _plain(text: Any) -> str:
    """A text on one line, escaped for Markdown and its tables."""
    return re.sub(r"([\\`*\[\]<>|$~#])", r"\\\1", " ".join(str(redact.shown(text, {})).split()))


def _code(text: str) -> str:
    """A text as a Python literal in inline code."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text!r} {ticks}"


def _fenced(text: str, kind: str) -> str:
    """A code block with a fence longer than any in the text."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{kind}\n{text.rstrip()}\n{ticks}"


def _yaml(value: Any) -> str:
    return frontmatter.dump(value, width=100)


def _settings(settings: Mapping[str, Any]) -> str:
    """Settings of a result on one line, without the prompts, which the card lists separately."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "prompts")


def _table(scored: Scored) -> list[list[str]]:
    """The scores by data set, as rows of cells, the header first."""
    measures = [name for name in SHOWN if any(name in row.intervals for row in scored.rows)]
    rows = [["Data set", "Split", "Suites", "Queries", *measures]]
    for row in scored.rows:
        result, means = row.result, row.result.scores.mean
        entry = registry.find(result.dataset)
        suites = [name for name in registry.suites() if entry and entry.name in registry.expand([name])]
        numbers = [f"{means[name]:.4f}" if name in means else "-" for name in measures]
        rows.append([result.dataset, result.split, ", ".join(suites), f"{result.queries:,}", *numbers])
    intervals = ["95 % interval", *(_span(row.intervals[MEASURE]) for row in scored.rows)]
    for cells, interval in zip(rows, intervals, strict=True):
        cells.insert(5, interval)
    for name, scores in scored.others.items():
        found = [scores.get((row.result.dataset, row.result.split)) for row in scored.rows]
        column = [f"{name} {MEASURE}", *("-" if score is None else f"{score:.4f}" for score in found)]
        rows = [[*cells, cell] for cells, cell in zip(rows, column, strict=True)]
    return rows


def _span(interval: Interval) -> str:
    return "{:.4f} to {:.4f}".format(*interval) if interval else "-"


def _citations(steps: list[Step], origin: Origin | None) -> list[str]:
    parts = [origin and origin.row, *(part for step in steps for _, _, part in step.methods)]
    return list(
        dict.fromkeys([*(part.citation.strip() for part in parts if part and part.citation), SERVED_BY])
    )
