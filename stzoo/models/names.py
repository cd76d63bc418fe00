"""Names of models: NAME=FOLDER_OR_HUB_ID, and the folder name for results."""

import re

from stzoo.errors import ModelError, RecipeError
from stzoo.utils.inputs import user_path


def parse_name(text: str) -> tuple[str, str]:
    """Splits NAME=FOLDER_OR_HUB_ID. The default name is that of the folder, or the Hub id.

    Returns:
        The name, and the folder or Hub id.

    Raises:
        RecipeError: If the text contains no name.
    """
    name, equals, source = text.partition("=")
    path = user_path(text, ModelError)
    if not equals or path.exists():
        name, source = path.resolve().name if path.is_dir() else text, text
    if not slug(name) or not source:
        raise RecipeError(
            f"the model {text!r} has no name; expected FOLDER, HUB_ID or NAME=FOLDER_OR_HUB_ID."
        )
    return name, source


def slug(name: str) -> str:
    """Turns a model's name into a folder name: "/" becomes "__", other unsafe characters "-"."""
    return re.sub(r"[^\w.-]+", "-", name.replace("/", "__")).lstrip(".")
