"""The languages of lexical search: their stemmers, their stop words, and how they are detected.

Stemmers are Snowball's (PyStemmer), and stop words are those of bm25s. Chinese, Japanese, Korean and Thai
have neither: they are searched by characters and pairs of characters (`words.search_terms`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from stzoo.data.words import words
from stzoo.errors import RecipeError, suggest

NONE = "none"  # no stemmer and no stop words, for any language
LANGUAGES = {
    "ar": "arabic", "hy": "armenian", "eu": "basque", "ca": "catalan", "zh": "chinese", "cs": "czech",
    "da": "danish", "nl": "dutch", "en": "english", "eo": "esperanto", "et": "estonian", "fi": "finnish",
    "fr": "french", "de": "german", "el": "greek", "hi": "hindi", "hu": "hungarian", "id": "indonesian",
    "ga": "irish", "it": "italian", "ja": "japanese", "ko": "korean", "lt": "lithuanian", "ne": "nepali",
    "no": "norwegian", "fa": "persian", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "sr": "serbian", "es": "spanish", "sv": "swedish", "ta": "tamil", "th": "thai", "tr": "turkish",
    "yi": "yiddish",
}  # fmt: skip
_WITH_STOP_WORDS = ("da", "de", "en", "es", "fr", "it", "nl", "no", "pt", "ru", "sv", "tr")

# The share of stop words in a text from which it counts as being in the language. The lists have different
# lengths (English 33 words, Spanish 313), and related languages share words: in translations of programs'
# messages, Spanish stop words are 0.30 to 0.34 of Catalan, Dutch ones 0.30 of Afrikaans, Italian ones 0.25 of
# Friulian.
_SHARE = dict.fromkeys(_WITH_STOP_WORDS, 0.28) | {
    "en": 0.15,
    "es": 0.35,
    "nl": 0.33,
    "pt": 0.25,
    "ru": 0.15,
    "tr": 0.08,
}
_CLEARER = 2.5  # least ratio of stop words of the first language alone to those of the second alone
_SAMPLE, _CHARACTERS = 500, 300  # number of texts, and of characters of each
_SCRIPTS = {  # letters of one language only; without kana, Han characters count as Chinese
    name: re.compile(f"[{letters}]")
    for name, letters in {
        "ja": "\u3040-\u30ff\uff66-\uff9d",
        "zh": "\u3400-\u9fff\uf900-\ufaff",
        "ko": "\uac00-\ud7a3",
        "th": "\u0e00-\u0e7f",
        "el": "\u0370-\u03ff\u1f00-\u1fff",
        "hy": "\u0530-\u058f",
        "ta": "\u0b80-\u0bff",
    }.items()
}
_KANA = 0.05  # least share of kana in Japanese; its encyclopedias have 0.3 or more


def check_language(language: str) -> str:
    """The code of a language, by its code ("de") or its English name ("German"); "none" for none.

    Raises:
        RecipeError: If it is unknown.
    """
    codes = {name: code for code, name in LANGUAGES.items()} | {code: code for code in (*LANGUAGES, NONE)}
    if (code := codes.get(language.strip().lower())) is None:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise RecipeError(
            f"the language {language!r} is unknown{suggest(language, codes)} "
            f"Known languages: {known}; use none for any other language."
        )
    return code


def stemmer_name(language: str) -> str | None:
    """The name of a language's Snowball stemmer, by its code; None if the installed release has none."""
    import Stemmer

    name = LANGUAGES.get(language)
    return name if name in Stemmer.algorithms() else None


def stop_words_name(language: str) -> str | None:
    """The name of a language's list of stop words in bm25s, by its code; None if there is none."""
    return LANGUAGES[language] if language in _WITH_STOP_WORDS else None


@cache
def stop_words(language: str) -> frozenset[str]:
    """The stop words of a language, split as by `stzoo.data.words.words`; empty if there is no list.

    Contractions such as "l'" are split into their parts, except in English, whose list is used unchanged.
    """
    from bm25s.tokenization import Tokenizer

    listed = Tokenizer(stopwords=stop_words_name(language)).stopwords
    return (
        frozenset(listed) if language == "en" else frozenset(part for word in listed for part in words(word))
    )


def detect_language(texts: Sequence[str]) -> str:
    """The code of the language of most of the texts; "none" if that is not clear.

    Languages with a script of their own are detected by their letters, and the twelve languages with stop
    words by the number of stop words. Other languages are not detected.

    Args:
        texts: At least one text; an evenly spaced sample is used.
    """
    found: Counter[str] = Counter()  # words
    letters: Counter[str] = Counter()  # by script
    for place in range(0, len(texts), max(1, len(texts) // _SAMPLE)):
        text = texts[place][:_CHARACTERS]
        found.update(word for word in words(text) if len(word) > 1)
        letters["all"] += sum(map(str.isalpha, text))
        letters.update({name: len(script.findall(text)) for name, script in _SCRIPTS.items()})
    if letters["ja"] + letters["zh"] > letters["all"] / 2:
        return "ja" if letters["ja"] > _KANA * letters["all"] else "zh"
    for name in ("ko", "th", "el", "hy", "ta"):
        if letters[name] > letters["all"] / 2:
            return name
    return _by_stop_words(found) if found else NONE


def _by_stop_words(found: Counter[str]) -> str:
    def count(listed: Iterable[str]) -> int:
        return sum(found[word] for word in listed)

    counts = {code: count(stop_words(code)) for code in _WITH_STOP_WORDS}
    first, second = sorted(counts, key=lambda code: -counts[code])[:2]
    own, others = (count(stop_words(a) - stop_words(b)) for a, b in ((first, second), (second, first)))
    clear = counts[first] >= _SHARE[first] * found.total() and own >= _CLEARER * others
    if first == "ru":  # Bulgarian, Serbian and Ukrainian share its words, but have no yery or have a dotted i
        yery, dotted = (count(word for word in found if letter in word) for letter in "\u044b\u0456")
        clear &= yery > dotted
    return first if clear else NONE
