"""Measures by name: the default ones, and all that ir-measures knows and can compute here."""

import re
from typing import Any, NamedTuple

from stzoo.errors import RecipeError, suggest


class Measure(NamedTuple):
    """A measure and its three names.

    Attributes:
        name: stzoo's name, e.g. "MRR@10".
        ir: ir-measures' name, e.g. "RR@10".
        mteb: Key in mteb's results, e.g. "mrr_at_10".
    """

    name: str
    ir: str
    mteb: str

    @property
    def cutoff(self) -> int:
        """Number of results per query that the measure looks at; 0 for all."""
        cutoff = re.search(r"@(\d+)$", self.name)  # the 0.1 of IPrec@0.1 is not a cutoff
        return int(cutoff[1]) if cutoff else 0


MEASURES = (
    Measure("nDCG@10", "nDCG@10", "ndcg_at_10"),
    Measure("MRR@10", "RR@10", "mrr_at_10"),
    Measure("MAP@100", "AP@100", "map_at_100"),
    Measure("Recall@100", "R@100", "recall_at_100"),
    Measure("Recall@1000", "R@1000", "recall_at_1000"),
    Measure("P@10", "P@10", "precision_at_10"),
)
_NAMES = {"RR": "MRR", "AP": "MAP", "R": "Recall"}  # stzoo's names where they differ from ir-measures'
_MTEB = {"nDCG": "ndcg", "RR": "mrr", "AP": "map", "R": "recall", "P": "precision"}


def parse_measures(text: str) -> tuple[Measure, ...]:
    """Parses names of ir-measures separated by spaces: "nDCG@10 RR@10 R(rel=2)@1000".

    Raises:
        RecipeError: If there are none, a name is unknown or lacks a cutoff, no installed package computes
            the measure, or it is not defined for every judged query.
    """
    import ir_measures

    parsed = []
    for word in re.findall(r"(?:\([^)]*\)|\S)+", text):
        try:
            measure = ir_measures.parse_measure(word)
        except (NameError, ValueError, SyntaxError, KeyError, TypeError, AssertionError):
            guess = suggest(re.split(r"\W", word)[0], ir_measures.measures.registry)
            raise RecipeError(
                f"the measure {word!r} is unknown{guess} Expected names of ir-measures, e.g. nDCG@10 "
                "RR@10 R@1000 (https://ir-measur.es/en/latest/measures.html)."
            ) from None
        if reason := _obstacle(measure):
            raise RecipeError(f"the measure {word!r} cannot be used: {reason}.")
        ir = str(measure)
        plain = re.fullmatch(r"(nDCG|RR|AP|R|P)@(\d+)", ir)
        name = f"{_NAMES.get(plain[1], plain[1])}@{plain[2]}" if plain else ir
        parsed.append(Measure(name, ir, f"{_MTEB[plain[1]]}_at_{plain[2]}" if plain else ir))
    if not parsed:
        raise RecipeError("the list of measures is empty; name at least one, e.g. nDCG@10.")
    return tuple(dict.fromkeys(parsed))


def _obstacle(measure: Any) -> str:
    """The reason why a measure cannot be computed; "" if it can."""
    import ir_measures
    from ir_measures.providers import registry

    known = measure.SUPPORTED_PARAMS
    for name, value in measure.params.items():
        if name not in known:
            return f"it has no parameter {name}; its parameters are: {', '.join(known) or 'none'}"
        if not known[name].validate(value) or isinstance(value, bool) is not (known[name].dtype is bool):
            expected = known[name].choices if known[name].dtype is str else known[name].dtype.__name__
            return f"{name} is {value!r}; expected {expected}"
    if missing := [name for name, spec in known.items() if spec.required and name not in measure.params]:
        example = f", as in {measure.NAME}@10" if missing == ["cutoff"] else ""
        return f"it needs {' and '.join(missing)}{example}"
    if measure.params.get("cutoff", 1) < 1:
        return "its cutoff must be at least 1"  # otherwise trec_eval ends the process
    if measure.NAME in {supported.NAME for supported in registry["pyndeval"].SUPPORTED_MEASURES}:
        return "it needs judgements by subtopic, but these qrels have one grade per document"
    if measure.NAME == "Accuracy":
        return "it is undefined for queries without a retrieved relevant document, so it has no overall mean"
    if not ir_measures.DefaultPipeline.supports(measure):
        ways = [
            f"{provider.NAME} ({provider.install_instructions()}) computes it with "
            + ", ".join(f"{name}={value}" for name, value in supported.params.items() if str(value) != "ANY")
            for provider in ir_measures.DefaultPipeline.providers
            for supported in provider.SUPPORTED_MEASURES
            if supported.NAME == measure.NAME
        ]
        return "; ".join(["no installed package computes it", *ways])
    try:
        measure.calc_aggregate({"0": {"0": 1}}, {"0": {"0": 1.0}})
    except Exception as error:  # providers raise errors of many kinds for unsupported parameters
        return f"its provider rejects it ({error})"
    return ""


def choose_measures(measures: str | None, k: int) -> tuple[Measure, ...]:
    """The default measures whose cutoff is at most k, and those requested.

    Args:
        measures: Names of ir-measures separated by spaces, or None.
        k: Number of results per query.

    Raises:
        RecipeError: If a requested measure is unknown or looks deeper than k.
    """
    requested = parse_measures(measures) if measures else ()
    for measure in requested:
        if measure.cutoff > k:
            raise RecipeError(f"{measure.name} needs more results than k = {k}; use a larger k.")
    default = (measure for measure in MEASURES if measure.cutoff <= k)
    chosen = tuple(dict.fromkeys((*default, *requested)))
    if not chosen:
        raise RecipeError(f"k is {k}, but all default measures look deeper; name others by --measures.")
    return chosen
