"""Checks a model's licence against those of its base models and data, and notes what a person must judge.

The licence of a data set in stzoo's registry is that of the registry; all others are those of the Hub.
"""

from typing import Any

from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from stzoo.data import registry
from stzoo.hub.api_errors import hub_errors

# licences that require no more than attribution
FREE = {
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "isc", "zlib"),
    *("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "unlicense", "wtfpl", "pddl", "odc-by"),
    *("bsl-1.0", "ncsa", "postgresql", "cdla-permissive-1.0", "cdla-permissive-2.0"),
}
# the Hub's identifiers: https://huggingface.co/docs/hub/repositories-licenses
KNOWN = FREE | {
    *("openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"),
    *("bigscience-bloom-rail-1.0", "afl-3.0", "artistic-2.0", "c-uda", "cc", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "ecl-2.0", "epl-1.0"),
    *("epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0"),
    *("lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "h-research", "intel-research", "lppl-1.3c", "ms-pl"),
    *("apple-ascl", "apple-amlr", "mpl-2.0", "odbl", "openmdw-1.0", "osl-3.0", "ofl-1.1", "llama2", "llama3"),
    *("llama3.1", "llama3.2", "llama3.3", "llama4", "grok2-community", "gemma", "deepfloyd-if-license"),
    *("fair-noncommercial-research-license", "unknown", "other"),
}


def notes(api: Any, front: dict[str, Any]) -> list[str]:
    """A note for each base model and data set of a card whose licence may conflict with the model's.

    Args:
        api: huggingface_hub's HfApi.
        front: The card's front matter.

    Raises:
        PublishError: If the Hub does not answer.
    """
    own, notes = str(front["license"]), []
    for kind, key, ask in (
        ("base", "base_model", api.model_info),
        ("data set", "datasets", api.dataset_info),
    ):
        names = front.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            entry = registry.find(name) if kind == "data set" else None
            licences = [entry.licence] if entry and entry.licence else _licences(ask, name)
            conflicts = [text for licence in licences or [""] if (text := conflict(own, licence))]
            notes += [
                f"the {kind} {name} {text}. Check that the model may be under {own}." for text in conflicts
            ]
    return notes


def conflict(own: str, licence: str) -> str:
    """A possible conflict of a licence with the model's own, in words; "" if there is none.

    Args:
        own: The model's licence by the Hub's names, e.g. "apache-2.0".
        licence: The other licence by the Hub's names, or in words; "" for none.
    """
    parts = set(licence.split("-"))
    if licence in ("", "other", "unknown"):
        return "has no licence that the Hub knows"
    if " " in licence:
        return f"has its own terms ({licence})"
    if "nd" in parts:
        return f"is under {licence}, which allows no derivatives"
    if "nc" in parts and "nc" not in own.split("-"):
        return f"is under {licence}, which allows no commercial use"
    if own == licence or licence in FREE:
        return ""
    if parts & {"sa", "gpl", "agpl"}:
        return f"is under {licence}, which requires the same licence"
    return "" if parts >= {"cc", "by", "nc"} else f"is under {licence}, which has its own terms"


def _licences(ask: Any, name: str) -> list[str]:
    with hub_errors(f"reading the licence of {name}"):
        try:
            card = ask(name).card_data
        except (RepositoryNotFoundError, HFValidationError):
            return []
        licences = card.get("license") if card else None
        return [licences] if isinstance(licences, str) else licences or []
