"""What the licences of a model's bases and data say against its own: named, for a person to judge."""

from typing import Any

from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from stzoo.hub.api_errors import asking

# they ask for no more than to be named, whatever is made of the work
FREE = {
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "isc", "zlib"),
    *("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "unlicense", "wtfpl", "pddl", "odc-by"),
    *("bsl-1.0", "ncsa", "postgresql", "cdla-permissive-1.0", "cdla-permissive-2.0"),
}


def notes(api: Any, front: dict[str, Any]) -> list[str]:
    """A sentence for each base and data set of a card whose licence asks more than the model's own.

    Args:
        api: huggingface_hub's HfApi.
        front: the card's front matter.

    Raises:
        PublishError: if the Hub does not answer.
    """
    own, found = str(front["license"]), []
    for kind, key, ask in (
        ("base", "base_model", api.model_info),
        ("data set", "datasets", api.dataset_info),
    ):
        named = front.get(key) or []
        for name in [named] if isinstance(named, str) else named:
            licences = _licences(ask, name)
            told = [text for licence in licences or [""] if (text := against(own, licence))]
            found += [
                f"the {kind} {name} {text}. See that {own} may be the model's licence." for text in told
            ]
    return found


def against(own: str, licence: str) -> str:
    """What a licence says that another, the model's own, does not keep; nothing if all is well.

    Args:
        own: by the Hub's names, as "apache-2.0".
        licence: likewise; "" if there is none.
    """
    parts = set(licence.split("-"))
    if licence in ("", "other", "unknown"):
        return "names no licence that the Hub knows"
    if "nd" in parts:
        return f"is under {licence}, which allows no derivatives"
    if "nc" in parts and "nc" not in own.split("-"):
        return f"is under {licence}, which allows no commercial use"
    if own == licence or licence in FREE:
        return ""
    if parts & {"sa", "gpl", "agpl"}:
        return f"is under {licence}, which asks for the same licence"
    return "" if parts >= {"cc", "by", "nc"} else f"is under {licence}, which has terms of its own"


def _licences(ask: Any, name: str) -> list[str]:
    with asking(f"for the licence of {name}"):
        try:
            card = ask(name).card_data
        except (RepositoryNotFoundError, HFValidationError):
            return []
        licences = card.get("license") if card else None
        return [licences] if isinstance(licences, str) else licences or []
