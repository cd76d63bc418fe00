"""stzoo search."""

from typing import Any

from stzoo.cli.flags import Json, settings_as_flags
from stzoo.cli.settings import SearchSettings
from stzoo.cli.shared import command, print_json, show_answers


@command("search")
@settings_as_flags(SearchSettings)
def search_command(
    recipe: str | None,
    settings: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Ask a model questions, and print the nearest passages."""
    given = SearchSettings.read(recipe, settings)
    from stzoo.retrieval.search.search import search

    answers = search(**given.arguments())
    print_json(answers) if as_json else show_answers(answers)
