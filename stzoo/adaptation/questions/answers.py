"""Reads what a language model answers, and decides whether a text can be a query.

Whatever comes back is only ever the text of a query, or is rejected with a reason. This is also the defence
against passages that give orders to the model: the worst that they can do is a bad query.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

from stzoo.adaptation.questions.generator import Answer, Passage
from stzoo.data.languages import stop_words
from stzoo.data.words import words

MIN_WORDS, MAX_WORDS, MAX_CHARACTERS = 2, 40, 400
COPIED_WORDS = 5  # consecutive words of a passage that count as copied
_FENCE = re.compile(r"^\s*```\w*\s*|\s*```\s*$")
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_LABEL = re.compile(
    r"^\s*(?:[-*•]\s+|\(?\d{1,2}[.):]\s+)?(?:\*\*)?"
    r"(?:search query|query|question|keywords?|statement|claim|title|answer|q)(?:\s*\d{1,2})?"
    r"\s*(?:\*\*)?[:\uff1a]\s*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)])\s+")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|```|\*\*|\[[^\]]*\]\([^)]*\)|^#{1,6} |[{}]|\\[nrtu\"]|<\|")
_URL = re.compile(r"(?:https?:|ftp:)?//\S+|\bwww\.\S+|\b(?:javascript|data):\S+", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^(?:i(?: a|')m (?:sorry|unable|not able|an? (?:ai|language|assistant))|sorry\b|as an? (?:ai|language)|"
    r"i (?:can(?:no|')t|can not|could not|won't|will not|do not|don't) |"
    r"i apologi[sz]e|unfortunately,? i |(?:here (?:is|are)|sure\b|certainly\b|of course\b)(?:,|!| ).*)",
    re.IGNORECASE,
)
_ECHO = re.compile(
    r"\bthe passage\b|\bthis passage\b|\bsearch quer(?:y|ies)\b|\bprevious instructions\b|\bsystem prompt\b|"
    r"\bwrite (?:a|one) (?:question|query)\b",
    re.IGNORECASE,
)


def parse_queries(text: str, expected: int) -> list[Answer]:
    """Reads the queries from the answer of a language model.

    The answer should be a JSON object with a list `queries`. A bare list, JSON in a code fence or after other
    text, JSON that is cut off, and plain lines are understood too.

    Args:
        text: The answer, which may be anything.
        expected: Number of queries.

    Returns:
        That many answers; those that are missing have a reason.
    """
    text = _FENCE.sub("", _THOUGHTS.sub("", text).strip())
    found = _from_json(text)
    if found is None:
        found = [_BULLET.sub("", line) for line in text.splitlines() if line.strip()]
    reason = "no answer" if not text else "too few queries in the answer"
    answers = [Answer(one) for one in found[:expected]]
    return answers + [Answer(text[:MAX_CHARACTERS], reason)] * (expected - len(answers))


def _from_json(text: str) -> list[str] | None:
    """The queries of an answer in JSON; None if it is not JSON."""
    start = next((place for place, letter in enumerate(text) if letter in "{["), None)
    if start is None:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
    except (ValueError, RecursionError):
        _, key, rest = text.partition('"queries"')  # of an object that was cut off
        return [_unescaped(one) for one in _STRING.findall(rest)] if key else None
    if isinstance(value, Mapping):
        value = value.get("queries", value.get("query", next(iter(value.values()), [])))
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence):
        return []
    texts = (one.get("query", one.get("text")) if isinstance(one, Mapping) else one for one in value)
    return [one if isinstance(one, str) else "" for one in texts]


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text


def clean(text: str) -> str:
    """The text without a label ("Question: …"), a number or quotation marks around it."""
    text = unicodedata.normalize("NFC", text).strip()
    text = _BULLET.sub("", _LABEL.sub("", text, count=1)).strip()
    for first, last in ('""', "''", "“”", "«»", "„“", "「」", "``"):
        if len(text) > 2 and text[0] == first and text[-1] == last and text.count(first) <= 2:
            text = text[1:-1].strip()
    return re.sub(r"[ \t\u00a0]+", " ", text)


def check_query(text: str, passage: Passage, *, copies: bool = False) -> str:
    """Says why a text cannot be a query for a passage.

    Args:
        text: The text, as `clean` returns it.
        passage: The passage.
        copies: True if the query is meant to be a part of the passage.

    Returns:
        The reason in a few words; "" if it can be a query.
    """
    if not text:
        return "no answer"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp", "Cn", "Co") for letter in text):
        return "several lines or control characters"
    found = words(text)
    if len(found) < MIN_WORDS:
        return "too short"
    if len(found) > MAX_WORDS or len(text) > MAX_CHARACTERS:
        return "too long"
    if copies:
        return ""
    whole = passage.full
    if any(url not in whole for url in _URL.findall(text)):
        return "a URL that the passage does not have"
    if any(mark not in whole for mark in _MARKUP.findall(text)):
        return "markup"
    if _REFUSAL.search(text):
        return "a refusal or talk to the user"
    if _ECHO.search(text):
        return "an echo of the prompt"
    if len(set(found)) < len(found) / 3 or re.search(r"(\b.{4,}?)\1\1", text):
        return "a repetition"
    if not _same_language(text, found, passage):
        return "another language"
    if copies_span(text, whole, share=1.0):
        return "a copy of the passage"
    return ""


def copies_span(query: str, passage: str, *, run: int = COPIED_WORDS, share: float = 0.8) -> bool:
    """True if most of a query is copied from its passage, word by word.

    Args:
        query: The query.
        passage: Its passage, with the title.
        run: Consecutive words that count as copied; a query with fewer words is not a copy.
        share: Least share of the query's words that are in such runs.

    Example:
        >>> copies_span("why the lift of a wing", "We measured the lift of a wing.")
        True
        >>> copies_span("how much lift has a wing", "We measured the lift of a wing.")
        False
    """
    asked, there = words(query), words(passage)
    known = {tuple(there[place : place + run]) for place in range(len(there) - run + 1)}
    copied: set[int] = set()
    for place in range(len(asked) - run + 1):
        if tuple(asked[place : place + run]) in known:
            copied.update(range(place, place + run))
    return bool(copied) and len(copied) >= share * len(asked)


def _same_language(text: str, found: Sequence[str], passage: Passage) -> bool:
    """False if a query is clearly in another script, or has the stop words of another language only."""
    whole = passage.full[:2000]
    if (script := _script(text)) and script not in {_script(word) for word in words(whole)}:
        return False
    own = stop_words(passage.language)
    there = set(words(whole))
    if not own:
        return True
    number = sum(len(word) > 1 and word in own for word in found)
    strange = [word for word in found if len(word) > 1 and word not in there]
    others = (sum(word in stop_words(code) - own for word in strange) for code in _LISTED)
    return max(others) < max(2, number + 1)


_LISTED = ("da", "de", "en", "es", "fr", "it", "nl", "no", "pt", "ru", "sv", "tr")


def _script(text: str) -> str:
    """The first word of the Unicode names of most letters, e.g. "LATIN"; "" if there are no letters."""
    names = [unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha()]
    names = ["CJK" if name in ("HIRAGANA", "KATAKANA") else name for name in names]
    return max(sorted(set(names)), key=names.count) if names else ""
