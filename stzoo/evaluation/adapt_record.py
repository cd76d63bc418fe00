"""The record of a run of `stzoo adapt`, and its decision in words, for the command and for the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stzoo.utils.inputs import read_json
from stzoo.utils.messages import counted

RECORD, SETTINGS = "adapt.json", "settings.json"
# folders of the run
CORPUS, RESULTS, HELD_OUT, QUESTIONS = "corpus", "results", "held_out", "questions"
MEASURE = "nDCG@10"
BASE, ADAPTED = "base", "adapted"  # systems
LEVEL = 0.05  # of the paired test
FEW = 30  # held-out documents
GENERAL_LOSS = 0.02  # in the general check, which is mentioned


def is_unfinished(folder: Path) -> bool:
    """True for the folder of a run that has stopped before its record was written."""
    if (folder / RECORD).exists():
        return False
    settings = read_json(folder / SETTINGS).get("settings")
    is_adapt = isinstance(settings, dict) and settings.get("command") == "adapt"
    return is_adapt or (folder / CORPUS / "passages.json").is_file()  # a mistake in settings removes them


def reason_to_keep_base(gain: Mapping[str, Any]) -> str:
    """Why the adapted model should not be used; "" if it should.

    Args:
        gain: The paired test of the adapted model against the base, as in adapt.json.
    """
    if gain["high"] < 0:
        return "the adapted model is worse"
    if not (gain["difference"] > 0 and gain["p_value"] < LEVEL):
        return "the gain is not beyond chance"
    return ""


def verdict(record: Mapping[str, Any], adapted: str) -> list[str]:
    """Sentences on the outcome.

    Args:
        record: What adapt.json has.
        adapted: Path of the adapted model, as it is to be shown.
    """
    gain, general, scores, decision = (record[key] for key in ("gain", "general", "scores", "decision"))
    lines = [
        f"The adapted model: {gain['difference']:+.3f} {MEASURE} against the base as the mean over "
        f"{counted(gain['queries'], 'held-out document')}, each counting once (95 % interval "
        f"{gain['low']:+.3f} to {gain['high']:+.3f}, p {gain['p_value']:.4f}); the mean over their questions "
        f"is {scores[BASE]:.3f} before and {scores[ADAPTED]:.3f} after."
    ]
    if gain["queries"] < FEW:
        lines.append(f"{counted(gain['queries'], 'document')} are few to decide by. Adapt to more documents.")
    if record["copied_questions"]:
        lines.append(
            "The questions are words of the passages. This favours BM25, and the adapted model, which learns "
            "from it: the scores show that the model has learned, not how well it answers real questions."
        )
    else:
        lines.append("The questions are generated, so real ones may rank the systems differently.")
    if general[BASE] - general[ADAPTED] > GENERAL_LOSS:
        lines.append(
            f"On other texts its queries find less: {general[BASE]:.3f} before, {general[ADAPTED]:.3f} now."
        )
    if decision == ADAPTED:
        lines.append(f"KEEP adapted: SentenceTransformer({adapted!r}), with encode_query for queries.")
        lines.append("Passages have the same vectors as before, so an index of them stays valid.")
    else:
        lines.append(f"KEEP base: {reason_to_keep_base(gain)}.")
    fused = f"BM25 + {decision}"
    best = max(scores, key=lambda system: scores[system])
    if best == fused:
        lines.append(f"{fused} ranks best ({scores[fused]:.3f}): stzoo search --hybrid.")
    elif scores[best] > scores[decision]:
        lines.append(f"Of all systems, {best} ranks these questions best ({scores[best]:.3f}).")
    return lines
