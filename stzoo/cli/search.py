"""stzoo search."""

from stzoo.cli.flags import Json, command
from stzoo.cli.settings import SearchSettings
from stzoo.cli.shared import print_json, show_answers


@command(SearchSettings)
def search_command(settings: SearchSettings, as_json: Json = False) -> None:
    """Ask a model questions, and print the nearest passages."""
    from stzoo.retrieval.search.search import search

    answers = search(**settings.arguments())
    print_json(answers) if as_json else show_answers(answers)
