r"""Words in any script, the normal form of a text, and a key that is equal for equal-looking texts.

Words are those of Unicode's UAX #29 (https://www.unicode.org/reports/tr29/), found by Python's `re`:

- a run of letters, digits and underscores with their combining marks, so that Hindi, Tamil, pointed Hebrew,
  Arabic with vowels and decomposed French stay whole;
- in scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, …) each character
  with its marks.

Words are in the normal form (`normal_form`) and in lower case. In ASCII text they are `\w+`.

Unlike UAX #29:
- punctuation inside a word ends it ("don't", "3.14", "l'été" are two words each), as `\w+` does in BEIR's
  baselines and as French and Italian need; but not in Hebrew's abbreviations (צה״ל), in Ukrainian (п'ять) and
  in Catalan (col·legi), where it belongs to the word;
- katakana is not joined to words: each character is a word, as in the other scripts without spaces.

`re` with these classes is about three times as fast as the word boundaries of the package `regex`.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import islice, pairwise

# Blocks of the scripts without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf\U00011700-\U0001174f"  # Tai Le, New Tai Lue, Tham, Viet, Ahom
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff"  # Han
    "\u3040-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f"  # kana
    "\u3100-\u312f\u31a0-\u31bf"  # bopomofo
    "\ua000-\ua48f\U00017000-\U00018d8f"  # Yi, Tangut, Khitan
)
_HANGUL = "\uac00-\ud7a3"
_SYMBOL = "[\u231a\u231b\u23e9-\u23f3\u25fd\u25fe\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001faff]"
_EMOJI = (  # two letters make a flag; parts of one picture are joined by U+200D
    "[\U0001f1e6-\U0001f1ff]{2}|"
    f"{_SYMBOL}[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d{_SYMBOL}[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]*)*"
)

# Characters without width that do not separate words: soft hyphens, marks of direction, word joiners.
_INVISIBLE = re.compile("[\u00ad\u061c\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]+")
# Ligatures, Arabic presentation forms, half and full widths: old encodings of characters found elsewhere.
_COMPATIBLE = re.compile("[\ufb00-\ufb06\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc\uff01-\uffee]+")
# What searchers leave out: Hebrew points and cantillation, Arabic vowels and tatweel, joiners.
_OPTIONAL = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u065f\u0670\u200c\u200d]+"
)
_ZERO_WIDTH_SPACE = "\u200b"
_JOINTS = re.compile("[\u0400-\u052f]['\u2019\u02bc][\u0400-\u052f]|[lL]\u00b7[lL]")
_QUOTED = re.compile("(?<=[\u0400-\u052f])[\u2019\u02bc](?=[\u0400-\u052f])|[\u05f3\u05f4]")
_QUOTES = str.maketrans("\u2019\u02bc\u05f3\u05f4", "'''\"")
_WORD = re.compile(r"\w+")
# Latin, Greek and Cyrillic text without any of these is in normal form, and its words are `\w+`.
_SPECIAL = re.compile(
    "[\u00ad\u0130\u0300-\u036f\u0374\u037e\u0387\u0483-\u0489\u0590-\u1dff\u1f00-\u1fff"
    "\u2000\u2001\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff\u2126\u212a\u212b\u2329\u232a\u2adc"
    "\u2ce0-\U0010ffff]"
)
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


def normal_form(text: str) -> str:
    """The text in NFC, without invisible characters and without compatibility forms of old encodings.

    Half-width kana, full-width letters, ligatures (one character for "fi") and Arabic presentation forms
    become the usual characters, as in NFKC.

    Unlike NFKC, signs with a meaning of their own stay: "x²" is not "x2", "™" is not "tm".
    """
    if text.isascii() or not _SPECIAL.search(text):
        return text
    text = _INVISIBLE.sub("", text)
    text = _COMPATIBLE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return unicodedata.normalize("NFC", text)


def same_text_key(text: str) -> str:
    """A key that is equal for texts that look the same.

    They may differ in white space, in characters without width, and in what `normal_form` unifies.
    """
    return " ".join(normal_form(text.replace(_ZERO_WIDTH_SPACE, "")).split())


def words(text: str) -> list[str]:
    """The words of a text, in lower case; see the head of this module."""
    text, plain = _folded(text)
    pattern = _WORD if plain else _pattern("words", _UNSPACED, bool(_ASTRAL.search(text)))
    return pattern.findall(text)


def words_and_pairs(text: str) -> list[str]:
    """The words of a text, with pairs of neighbouring characters in place of single ones.

    Scripts without spaces give each pair of neighbouring characters, or a single character without
    neighbours: "大熊猫" gives 大熊 and 熊猫.
    """
    text, plain = _folded(text)
    if plain:
        return _WORD.findall(text)
    return [
        part
        for word, characters in _runs(text, _UNSPACED)
        for part in (map("".join, pairwise(characters)) if len(characters) > 1 else (word,))
    ]


def search_terms(text: str) -> list[str]:
    """The terms for lexical search: words of at least two characters, without optional vowel signs.

    Scripts without spaces, and Korean, whose words end in particles, give each character and each pair of
    neighbouring characters.
    """
    text, plain = _folded(text)
    if plain:
        return [word for word in _WORD.findall(text) if len(word) > 1]
    found = []
    for word, characters in _runs(_OPTIONAL.sub("", text), _UNSPACED + _HANGUL):
        if characters:
            found += characters
            found += map("".join, pairwise(characters))
        elif len(word) > 1:
            found.append(word)
    return found


def has_words(text: str, count: int) -> bool:
    """True if a text has at least this many words; an emoji counts as a word."""
    pattern = _pattern("words and emoji", _UNSPACED, True)
    return sum(1 for _ in islice(pattern.finditer(normal_form(text)), count)) == count


def _folded(text: str) -> tuple[str, bool]:
    r"""The text in normal form and lower case, quotes in words unified; True if its words are `\w+`."""
    if text.isascii() or not (_SPECIAL.search(text) or _JOINTS.search(text)):
        return text.lower(), True
    # "İ" in lower case is an i with a second dot, and some letters have one character in lower case only.
    text = unicodedata.normalize("NFC", normal_form(text).lower().replace("i\u0307", "i"))
    return _QUOTED.sub(lambda found: found[0].translate(_QUOTES), text), False


def _runs(text: str, scripts: str) -> Iterator[tuple[str, list[str]]]:
    """The words of a text, a run of characters of these scripts being one word, with its characters."""
    astral = bool(_ASTRAL.search(text))
    single = _pattern("characters", scripts, astral)
    for match in _pattern("runs", scripts, astral).finditer(text):
        yield match[0], single.findall(match[0]) if match.lastgroup else []


@cache
def _marks(astral: bool) -> str:
    """The combining marks of Unicode, and the joiners, as the inside of a class."""
    places = (*range(0x20000), *range(0xE0100, 0xE01F0)) if astral else range(0x10000)
    spans: list[list[str]] = []
    for mark in (*(c for c in map(chr, places) if unicodedata.category(c)[0] == "M"), "\u200c", "\u200d"):
        if spans and ord(mark) == ord(spans[-1][1]) + 1:
            spans[-1][1] = mark
        else:
            spans.append([mark, mark])
    return "".join(f"{first}-{last}" for first, last in spans)


@cache
def _pattern(kind: str, scripts: str, astral: bool) -> re.Pattern[str]:
    """A pattern for texts with or without characters over U+FFFF, which make it slow.

    Args:
        kind: "words", "words and emoji", "characters" of the scripts, or "runs" of them as one word.
        scripts: Scripts without spaces, as the inside of a character class.
        astral: True for any text; False for texts without characters over U+FFFF.
    """
    if not astral:
        scripts = re.sub("[\U00010000-\U0010ffff]-[\U00010000-\U0010ffff]", "", scripts)
    letter, marks = rf"[^\W{scripts}]", f"[{_marks(astral)}]"
    # Punctuation that belongs to words: quotes in Hebrew and Ukrainian, a dot in Catalan.
    joint = (
        "(?<=[\u0590-\u05ff])[\"'](?=[\u05d0-\u05ea])|(?<=[\u0400-\u052f])'(?=[\u0400-\u052f])"
        "|(?<=l)\u00b7(?=l[aeiou\u00e0\u00e8\u00e9\u00ed\u00f2\u00f3\u00fa])"
    )
    spaced, single = rf"{letter}+(?:(?:{marks}+|{joint}){letter}*)*", rf"(?=\w)[{scripts}]{marks}*"
    return re.compile(
        {
            "words": f"{spaced}|{single}",
            "words and emoji": f"{spaced}|{single}|{_EMOJI}",
            "characters": single,
            "runs": f"{spaced}|(?P<run>(?:{single})+)",
        }[kind]
    )
