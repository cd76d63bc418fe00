"""How models are named: NAME=FOLDER_OR_HUB_ID, and the folder of a name."""

import re

from stzoo.errors import ModelError, RecipeError
from stzoo.utils.inputs import user_path


def parse_name(text: str) -> tuple[str, str]:
    """Splits NAME=FOLDER_OR_HUB_ID; without NAME it is the folder's own name, or the Hub id.

    Raises:
        RecipeError: if there is no name in it.
    """
    name, equals, given = text.partition("=")
    path = user_path(text, ModelError)
    if not equals or path.exists():
        name, given = path.resolve().name if path.is_dir() else text, text
    if not slug(name) or not given:
        raise RecipeError(
            f"the model {text!r} has no name; expected FOLDER, HUB_ID or NAME=FOLDER_OR_HUB_ID."
        )
    return name, given


def slug(name: str) -> str:
    """A model's name as a folder's: "/" becomes "__", other unsafe characters "-"."""
    return re.sub(r"[^\w.-]+", "-", name.replace("/", "__")).lstrip(".")
