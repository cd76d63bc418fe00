"""The HTML page."""

from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from stzoo.evaluation.adapt_record import HELD_OUT, MEASURE
from stzoo.evaluation.report import charts
from stzoo.evaluation.report.content import Content, amount, cost_of, distinct, pairs
from stzoo.evaluation.report.data import COST, Group
from stzoo.evaluation.report.intervals import RESAMPLES
from stzoo.training.history import shortened
from stzoo.utils.messages import duration
from stzoo.utils.pages import html_template
from stzoo.utils.tables import cut

HERE = Path(__file__).parent
QUERY_BYTES = 900_000  # of single queries' scores and texts in the page
TEXT_LENGTH = 160  # characters of a query in the page


def as_html(content: Content) -> str:
    """The page."""
    page = content.page
    inline = {name: (HERE / f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    queries = _affordable([_queries(content, group) for group in page.groups])
    return _template().render(
        page=page,
        adaptation=content.adaptation,
        leaderboard=content.leaderboard,
        letters=content.letters,
        suite_letters=content.suite_letters,
        means=[charts.means_axis(group, page.measure) for group in page.groups],
        costs=[_costs(group, page.measure) for group in page.groups],
        training={name: charts.training(history) for name, history in page.runs.items()},
        settings=distinct(row.result.details["settings"] for row in page.rows),
        made=distinct(row.made for row in page.rows),
        cost=COST,
        resamples=RESAMPLES,
        plotted=_plotted(content, queries),
        queries=queries,
        left_out=[
            group.name
            for group, one in zip(page.groups, queries, strict=True)
            if not one and len(group.rows) > 1
        ],
        textless=[
            group.name for group, one in zip(page.groups, queries, strict=True) if one and not one["texts"]
        ],
        measure_of_adapt=MEASURE,
        held_out=HELD_OUT,
        inline={name: Markup(text) for name, text in inline.items()},  # noqa: S704 - no user's text
    )


def _template() -> jinja2.Template:
    return html_template(
        HERE / "report.html.j2",
        amount=amount,
        cost_of=cost_of,
        duration=duration,
        pairs=pairs,
        shortened=shortened,
        pictures=charts.pictures,
    )


def _costs(group: Group, measure: str) -> list[charts.Cost | None]:
    """Charts of the time per query and of the bytes searched."""
    return [
        charts.cost(group, measure, ["ms_per_query"], "ms per query", lambda value: f"{value:g}"),
        charts.cost(
            group,
            measure,
            ["index_bytes", "vector_bytes"],
            "size of what is searched",
            lambda value: amount(value, "bytes"),
        ),
    ]


def _queries(content: Content, group: Group) -> dict[str, Any]:
    """Ids, texts and scores of single queries, the scores by system and rounded to four digits."""
    rows = [row.result.scores.per_query[content.page.measure] for row in group.rows]
    ids, texts = list(rows[0]), content.texts(group)
    scores = [[_rounded(row[query]) for query in ids] for row in rows]
    axis = charts.axis((value for row in scores for value in row), beyond_zero=True)
    return {
        "ids": ids,
        "texts": [cut(texts.get(query, ""), TEXT_LENGTH) for query in ids] if texts else None,
        "scores": scores,
        "ticks": [(axis.at(value), label) for value, label in axis.ticks],
        "range": (axis.low, axis.high),
    }


def _rounded(value: float) -> float:
    value = round(value, 4)
    return int(value) if value == int(value) else value


def _affordable(queries: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The single queries of as many data sets as the page has room for, the small ones first."""
    left, kept = QUERY_BYTES, dict[int, dict[str, Any]]()
    sizes = [len(htmlsafe_json_dumps(one)) for one in queries]
    for place in sorted(range(len(queries)), key=sizes.__getitem__):
        if len(queries[place]["scores"]) > 1 and sizes[place] <= left:
            kept[place] = queries[place]
            left -= sizes[place]
    return [kept.get(place) for place in range(len(queries))]


def _plotted(content: Content, queries: list[dict[str, Any] | None]) -> dict[str, Any]:
    """What report.js needs of the data sets whose queries are in the page, and which one it shows first.

    That is the held-out questions of adapt, or else the one with most systems, and of those the one with most
    queries.
    """
    page = content.page
    systems = page.systems
    shown = [place for place, one in enumerate(queries) if one]

    def weight(place: int) -> tuple[bool, int, int]:
        group = page.groups[place]
        return content.is_held_out(group), len(group.rows), group.data.queries

    return {
        "measure": page.measure,
        "systems": systems,
        "names": [group.name for group in page.groups],
        "groups": {
            place: {
                "name": page.groups[place].name,
                "rows": [systems.index(row.system) for row in page.groups[place].rows],
                "pair": content.pair(page.groups[place]),
            }
            for place in shown
        },
        "first": max(shown, key=weight, default=None),
    }
