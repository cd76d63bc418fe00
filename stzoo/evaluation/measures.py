"""Measures by name: those always scored, and whatever ir-measures knows and can compute here."""

import re
from typing import Any, NamedTuple

from stzoo.errors import RecipeError, suggest


class Measure(NamedTuple):
    """A measure by its three names: ours, that of ir-measures, and the key in mteb's results."""

    name: str
    ir: str
    mteb: str

    @property
    def cutoff(self) -> int:
        """How many results of a query it looks at; 0 where it looks at all that there are."""
        found = re.search(r"@(\d+)$", self.name)  # IPrec@0.1 is no cutoff
        return int(found[1]) if found else 0


MEASURES = (
    Measure("nDCG@10", "nDCG@10", "ndcg_at_10"),
    Measure("MRR@10", "RR@10", "mrr_at_10"),
    Measure("MAP@100", "AP@100", "map_at_100"),
    Measure("Recall@100", "R@100", "recall_at_100"),
    Measure("Recall@1000", "R@1000", "recall_at_1000"),
    Measure("P@10", "P@10", "precision_at_10"),
)
_SPELT = {"RR": "MRR", "AP": "MAP", "R": "Recall"}  # ours where it is not that of ir-measures
_MTEB = {"nDCG": "ndcg", "RR": "mrr", "AP": "map", "R": "recall", "P": "precision"}


def parse_measures(text: str) -> tuple[Measure, ...]:
    """Measures by any name that ir-measures knows, with spaces between: "nDCG@10 RR@10 R(rel=2)@1000".

    Raises:
        RecipeError: if there is none, a name is unknown or lacks a cutoff, nothing that is installed computes
            the measure, or it is not defined for every judged query.
    """
    import ir_measures

    found = []
    for word in re.findall(r"(?:\([^)]*\)|\S)+", text):
        try:
            measure = ir_measures.parse_measure(word)
        except (NameError, ValueError, SyntaxError, KeyError, TypeError, AssertionError):
            guess = suggest(re.split(r"\W", word)[0], ir_measures.measures.registry)
            raise RecipeError(
                f"the measure {word!r} is unknown{guess} Expected names of ir-measures, e.g. nDCG@10 "
                "RR@10 R@1000 (https://ir-measur.es/en/latest/measures.html)."
            ) from None
        if reason := _why_not(measure):
            raise RecipeError(f"the measure {word!r} cannot be used: {reason}.")
        ir = str(measure)
        plain = re.fullmatch(r"(nDCG|RR|AP|R|P)@(\d+)", ir)
        name = f"{_SPELT.get(plain[1], plain[1])}@{plain[2]}" if plain else ir
        found.append(Measure(name, ir, f"{_MTEB[plain[1]]}_at_{plain[2]}" if plain else ir))
    if not found:
        raise RecipeError("the list of measures is empty.")
    return tuple(dict.fromkeys(found))


def _why_not(measure: Any) -> str:
    """What keeps a measure from being computed, or ""."""
    import ir_measures
    from ir_measures.providers import registry

    known = measure.SUPPORTED_PARAMS
    for name, value in measure.params.items():
        if name not in known:
            return f"it takes no {name}, only {', '.join(known) or 'its name'}"
        if not known[name].validate(value) or isinstance(value, bool) is not (known[name].dtype is bool):
            expected = known[name].choices if known[name].dtype is str else known[name].dtype.__name__
            return f"{name} is {value!r}; expected {expected}"
    if missing := [name for name, about in known.items() if about.required and name not in measure.params]:
        example = f", as in {measure.NAME}@10" if missing == ["cutoff"] else ""
        return f"it needs {' and '.join(missing)}{example}"
    if measure.params.get("cutoff", 1) < 1:
        return "its cutoff must be at least 1"  # trec_eval would end the process
    if measure.NAME in {supported.NAME for supported in registry["pyndeval"].SUPPORTED_MEASURES}:
        return "it needs judgements by subtopic, which qrels of one grade a document do not hold"
    if measure.NAME == "Accuracy":
        return "it is undefined for queries without a relevant document found, so it has no mean over all"
    if not ir_measures.DefaultPipeline.supports(measure):
        ways = [
            f"{provider.NAME} ({provider.install_instructions()}) takes it with "
            + ", ".join(f"{name}={value}" for name, value in supported.params.items() if str(value) != "ANY")
            for provider in ir_measures.DefaultPipeline.providers
            for supported in provider.SUPPORTED_MEASURES
            if supported.NAME == measure.NAME
        ]
        return "; ".join(["nothing that is installed computes it", *ways])
    try:
        measure.calc_aggregate({"0": {"0": 1}}, {"0": {"0": 1.0}})
    except Exception as error:  # whatever its provider makes of parameters it cannot take
        return f"its provider refuses it ({error})"
    return ""


def wanted_measures(measures: str | None, k: int) -> tuple[Measure, ...]:
    """MEASURES that k results can give, and those asked for.

    Raises:
        RecipeError: if one asked for is unknown or looks deeper than k.
    """
    asked = parse_measures(measures) if measures else ()
    for measure in asked:
        if measure.cutoff > k:
            raise RecipeError(f"{measure.name} looks at more than the {k} results kept; give a larger k.")
    usual = (measure for measure in MEASURES if measure.cutoff <= k)
    found = tuple(dict.fromkeys((*usual, *asked)))
    if not found:
        raise RecipeError(f"k is {k}, and no usual measure looks at so few results; name some by --measures.")
    return found
