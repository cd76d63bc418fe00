# ruff: noqa: RUF001 - scripts have letters that look like those of others
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stzoo.data.languages import LANGUAGES, check_language, detect_language, stemmer_name, stop_words
from stzoo.data.words import has_words, normal_form, same_text_key, search_terms, words, words_and_pairs
from stzoo.errors import RecipeError

# letters and marks of scripts with spaces, and without; digits, spaces, signs that are part of no word
SPACED = "aÉßИйїعךאकயक가\u0301\u0308\u093f\u094d\u0bbe\u05b7\u05c1\u064e\u0653"
UNSPACED = "大熊猫カナｶﾞㄅกำุເ\u3099\u0e49\U00020000"
SIGNS = "09_ -!\n…"
TEXTS = st.text(alphabet=SPACED + UNSPACED + SIGNS + "’'\"·ﬁ²™\u00ad\u200d\ufeffİIſ😀", max_size=40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी भाषा की लिपि", "हिन्दी भाषा की लिपि"),
        ("தமிழ் மொழி ஆகும்", "தமிழ் மொழி ஆகும்"),
        ("বাংলা ভাষা", "বাংলা ভাষা"),
        ("שָׁלוֹם עֲלֵיכֶם, רַבִּים", "שָׁלוֹם עֲלֵיכֶם רַבִּים"),
        ("כִּתָּה ב׳ צה״ל צה\"ל", "כִּתָּה ב צה\"ל צה\"ל"),
        ("كِتَابٌ جَدِيد", "كِتَابٌ جَدِيد"),
        ("ﻛﺘﺎﺏ", "كتاب"),
        ("می‌خواهم بروم", "می‌خواهم بروم"),
        (unicodedata.normalize("NFD", "Une école élégante"), "une école élégante"),
        (unicodedata.normalize("NFD", "Tiếng Việt"), "tiếng việt"),
        ("П’ять п'ять", "п'ять п'ять"),
        ("col·legi 2 mol·l", "col·legi 2 mol l"),
        ("l’été 3.14 don't U.S.", "l été 3 14 don t u s"),
        ("x² Foo™ ﬁn Ａｂ１ so\u00adft", "x² foo fin ab1 soft"),
        ("İstanbul", "istanbul"),
        ("서울은 수도", "서울은 수도"),
        ("大熊猫，竹子。", "大 熊 猫 竹 子"),
        ("ｶﾞｷﾞ サーバー", "ガ ギ サ ー バ ー"),
        ("ㄅㄆㄇ", "ㄅ ㄆ ㄇ"),
        ("กรุงเก่า", "ก รุ ง เ ก่ า"),
        ("ភាសាខ្មែរ", "ភា សា ខ្ មែ រ"),
        ("ABC日本2008年", "abc 日 本 2008 年"),
        ("\U00020000\U00020001 𐐀𐐁", "\U00020000 \U00020001 𐐨𐐩"),
        ("😀 ok", "ok"),
        ("\u0301 \u0301a", "a"),
    ],
)  # fmt: skip
def test_words_of_many_scripts_are_whole(text, expected):
    assert words(text) == normal_form(expected).split()


@pytest.mark.parametrize(
    ("text", "pairs", "terms"),
    [
        ("大熊猫 a 猫", "大熊 熊猫 a 猫", "大 熊 猫 大熊 熊猫 猫"),
        ("サーバＡ", "サー ーバ a", "サ ー バ サー ーバ"),
        ("서울은 the", "서울은 the", "서 울 은 서울 울은 the"),
        ("שָׁלוֹם", "שָׁלוֹם", "שלום"),
        ("كِتَاب كــتاب", "كِتَاب كــتاب", "كتاب كتاب"),
        ("naïve x 42", "naïve x 42", "naïve 42"),
    ],
)
def test_scripts_without_spaces_are_searched_by_characters_and_pairs(text, pairs, terms):
    assert words_and_pairs(text) == normal_form(pairs).split()
    assert search_terms(text) == terms.split()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("!? …", 0),
        ("हिन्दी", 1),
        ("ｶﾀｶﾅﾃｷｽﾄﾃﾞｽ", 10),
        ("ㄅㄆㄇㄈㄉㄊ", 6),
        ("ｆｕｌｌ ｗｉｄｔｈ", 2),
        ("😀😀😀 👍🏽 🎉🎉 🚀", 7),
        ("👩‍👩‍👧 ❤️ 🇩🇪🇫🇷 1️⃣ ⭐", 6),
        ("© 2024 Foo™", 2),
        ("ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ", 2),
    ],
)
def test_min_words_counts_words_of_any_script_and_emoji(text, count):
    assert has_words(text, max(count, 1)) == (count > 0)
    assert not has_words(text, count + 1)


@given(TEXTS)
@example("ΑΣ\u0301 Σ I\u0307")
def test_composed_and_decomposed_texts_have_the_same_words(text):
    for found in (words, words_and_pairs, search_terms):
        assert found(unicodedata.normalize("NFD", text)) == found(unicodedata.normalize("NFC", text))


@given(TEXTS)
def test_words_put_together_again_are_the_same_words(text):
    found = words(text)
    assert words(" ".join(found)) == found
    assert words(text.replace(" ", " \u200b ")) == found


@given(TEXTS)
def test_no_word_begins_with_a_combining_mark(text):
    for found in (words(text), words_and_pairs(text), search_terms(text)):
        assert not any(
            unicodedata.combining(word[0]) or unicodedata.category(word[0])[0] == "M" for word in found
        )


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_words_of_ascii_are_runs_of_word_characters(text):
    assert words(text) == words_and_pairs(text) == re.findall(r"\w+", text.lower())
    assert search_terms(text) == re.findall(r"\w\w+", text.lower())


@given(st.text(alphabet=SPACED + SIGNS, max_size=40))
def test_words_with_spaces_around_are_those_of_uax_29(text):
    """By another implementation of it."""
    regex = pytest.importorskip("regex")
    text = unicodedata.normalize("NFC", normal_form(text).lower())
    parts = (part for part in regex.split(r"(?wV1)\b", text) if re.search(r"\w", part))
    assert words(text) == [regex.sub(r"^\p{M}+", "", part) for part in parts]  # which begin no word of ours


@given(TEXTS, st.sampled_from(["  ", "\n", "\u00a0", "\u3000", " \u200b"]))
def test_texts_that_look_the_same_have_one_key(text, space):
    other = unicodedata.normalize("NFD", f"\ufeff{space}{text.replace(' ', space)}\n")
    assert same_text_key(other) == same_text_key(text)


def test_texts_that_look_different_have_other_keys():
    texts = ["The answer.", "the answer.", "The answer", "Theanswer.", "x²", "x2", "é", "e", "a-b", "a b", ""]
    assert len(set(map(same_text_key, texts))) == len(texts)


# Languages

CAPITALS = {
    "de": "Die Hauptstadt von Deutschland ist Berlin. Es ist die größte Stadt des Landes und liegt im Osten.",
    "fr": "La capitale de la France est Paris. C'est la plus grande ville du pays et elle est sur la Seine.",
    "es": "La capital de España es Madrid. Es la ciudad más grande del país y está en el centro de ella.",
    "it": "La capitale d'Italia è Roma. È la città più grande del paese e si trova sul Tevere.",
    "pt": "A capital de Portugal é Lisboa. É a maior cidade do país e fica na foz do rio Tejo.",
    "nl": "De hoofdstad van Nederland is Amsterdam. Het is de grootste stad van het land en ligt aan zee.",
    "sv": "Sveriges huvudstad är Stockholm. Det är den största staden i landet och ligger vid Mälaren.",
    "tr": "Türkiye'nin başkenti Ankara'dır. Bu şehir ülkenin ikinci büyük kentidir ve Anadolu'da yer alır.",
    "ru": "Столица России — Москва. Это самый большой город страны, и он стоит на реке Москве."
    " Он был основан в двенадцатом веке.",
    "en": "The capital of England is London. It is the largest city of the country and lies on the Thames.",
    "el": "Πρωτεύουσα της Ελλάδας είναι η Αθήνα.",
    "ja": "日本の首都は東京です。",
    "zh": "中国的首都是北京。",
    "ko": "대한민국의 수도는 서울이다.",
    "th": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "ta": "இந்தியாவின் தலைநகரம் புது தில்லி ஆகும்.",
}  # fmt: skip


def test_a_language_is_detected_or_it_is_none():
    assert {code: detect_language([text]) for code, text in CAPITALS.items()} == {
        code: code for code in CAPITALS
    }
    for unclear in (
        "red shoes nike",
        "",
        "Stolicą Polski jest Warszawa. Jest to największe miasto w kraju i leży nad Wisłą.",
        "Столицата на България е София. Това е най-големият град в страната и се намира в западната част.",
        "Столиця України — Київ. Це найбільше місто країни, і воно стоїть на Дніпрі.",
        "भारत की राजधानी नई दिल्ली है और यह देश के उत्तर में है।",
    ):
        assert detect_language([unclear]) == "none", unclear
    mixed = [CAPITALS["en"]] * 9 + [CAPITALS["zh"]]
    assert detect_language(mixed) == "en"


def test_a_language_goes_by_its_code_or_its_name():
    assert [check_language(name) for name in ("de", " German ", "none")] == ["de", "de", "none"]
    for wrong, offered in (("germann", "german"), ("xx", "")):
        with pytest.raises(
            RecipeError, match=rf"language '{wrong}' is unknown.*{offered}.*fr \(french\).*none"
        ):
            check_language(wrong)
    # both have the list and the stemmer by this name, in the releases that we allow
    assert stemmer_name("hi") == "hindi"
    assert stemmer_name("zh") is stemmer_name("none") is None
    assert {code for code in LANGUAGES if stop_words(code)} == {
        *("da", "de", "en", "es", "fr", "it", "nl", "no", "pt", "ru", "sv", "tr")
    }
