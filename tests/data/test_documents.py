import json
import os
import random
import re
import string

import datasets
import docx
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen import canvas
from support.helpers import cli

import stzoo
from stzoo.data.corpus import load_corpus
from stzoo.data.documents.sections import html_document, markdown_document
from stzoo.data.documents.split import PassageSplitter, count_words
from stzoo.errors import DataError, MissingExtraError, OutputError, RecipeError

MARKDOWN = """---
title: Staff handbook
---
Everybody who works here should read this page before the first day at work, and keep it at hand later.

# Handbook

The handbook has the rules that the staff and the managers agreed on in the spring of last year, in short
and in plain words, and nothing that is not on these pages binds anybody.

## Leave

Employees have twenty days of leave in each calendar year, and those who are older than fifty have
thirty; a day that falls on a public holiday is not counted.

```sh
# not a heading
leave --days 20 --from monday --to friday --why "because the sea is warm and the office is not" --please yes
```

### Parental *leave*

| parent | weeks |
|--------|-------|
| first  | 52    |
| second | 26, of which two begin on the day of the birth and cannot be moved to another time of the year |

Travel
======

Trains are booked by the office, and whoever prefers to fly asks the manager for a reason that is good enough.
"""
GERMAN = (
    "Die Elternzeit beträgt höchstens drei Jahre. Väter und Mütter können sie gemeinsam nehmen, wenn sie es "
    "wünschen, und kehren danach auf ihre frühere Stelle zurück."
)
ENGLISH = (
    "The committee decides on requests for leave in the order in which they arrive, and answers each of them "
    "in writing within two weeks, with the reasons if it does not agree."
)
PAGE = f"""<!doctype html><html><head><title>Canteen</title><style>p {{color: red}}</style>
<script>var hidden = "tracking code";</script></head><body>
<header>Company intranet</header><nav><a href="/">Home</a> <a href="/x">Directory</a></nav>
<main><h1>Canteen<a class="headerlink" href="#x">¶</a></h1><p>{ENGLISH}</p>
<h2>Menu</h2><p>This is what the cook has for all of you in this week, as long as there is enough of it:</p>
<table><tr><th>Day</th><th>Meal</th></tr>
<tr><td><p>Monday</p></td><td>Soup with <b>bread</b></td></tr></table>
<pre>if hungry:
    eat()</pre></main>
<footer>Imprint</footer></body></html>"""


def rows(made):
    if isinstance(made.corpus, list):
        return made.corpus
    return [json.loads(line) for line in made.corpus.read_text("utf-8").splitlines()]


def texts(made):
    return {row["_id"]: row["text"] for row in rows(made)}


def titles(made):
    return {row["_id"]: row["title"] for row in rows(made)}


def write_pdf(path, pages, *, title="", headings=(), encrypt=None):
    page = canvas.Canvas(str(path), encrypt=encrypt)
    page.setTitle(title)
    for number, lines in enumerate(pages):
        if number < len(headings):
            page.bookmarkPage(f"p{number}")
            page.addOutlineEntry(headings[number], f"p{number}", 0)
        for place, line in enumerate(lines):
            page.drawString(72, 780 - 20 * place, line)
        page.showPage()
    page.save()


def write_docx(path):
    made = docx.Document()
    made.add_heading("Safety rules", 0)
    made.add_heading("Fire", 1)
    made.add_paragraph(ENGLISH)
    made.add_heading("Exits", 2)
    made.add_paragraph(
        "All of the exits are at the ends of the corridor, and none of them may be locked by day."
    )
    table = made.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "North exit", "Stairs that lead to the yard by the gate"
    made.save(str(path))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "docs"
    (made / "sub").mkdir(parents=True)
    (made / "handbook.md").write_text(MARKDOWN, "utf-8")
    (made / "sub" / "canteen.html").write_text(PAGE, "utf-8")
    (made / "sub" / "eltern_zeit.txt").write_bytes(GERMAN.encode("latin-1"))
    write_docx(made / "safety.docx")
    pages = [[f"Chapter {n}", "Parental leave lasts at most three years in all, as the par-", "ents agree.",
              f"Page {n} of 2"] for n in (1, 2)]  # fmt: skip
    write_pdf(made / "leave.pdf", pages, title="Leave", headings=["Chapter 1", "Chapter 2"])
    return made


# --- kinds of files


def test_markdown_is_split_at_its_headings_but_not_at_those_in_code(folder):
    made = stzoo.read_documents(folder / "handbook.md", copies="keep")
    assert titles(made) == {
        "handbook.md#1": "Staff handbook",
        "handbook.md#2": "Handbook",
        "handbook.md#3": "Handbook > Leave",
        "handbook.md#4": "Handbook > Leave > Parental leave",
        "handbook.md#5": "Travel",
    }
    found = texts(made)
    assert "# not a heading\nleave --days 20" in found["handbook.md#3"]
    assert "| first  | 52    |" in found["handbook.md#4"]
    assert "title:" not in "".join(found.values())


def test_html_is_read_without_navigation_and_scripts(folder):
    made = stzoo.read_documents(folder / "sub" / "canteen.html")
    assert titles(made) == {"canteen.html#1": "Canteen", "canteen.html#2": "Canteen > Menu"}
    found = texts(made)
    assert found["canteen.html#1"] == ENGLISH
    assert found["canteen.html#2"].endswith("Day | Meal\nMonday | Soup with bread\n\nif hungry:\n    eat()")


def test_html_without_a_main_part_and_broken_html_are_read():
    made = html_document(
        "x.html", "<p>Grüße<br>an <i>alle</i><nav>menu</nav> Leute<h3>B</h3><div>c".encode(), "x"
    )
    assert [(one.headings, one.text) for one in made.sections] == [
        ((), "Grüße\nan alle Leute"),
        (("x", "B"), "c"),
    ]


def test_docx_has_headings_and_tables(folder):
    made = stzoo.read_documents(folder / "safety.docx")
    assert titles(made) == {
        "safety.docx#1": "Safety rules > Fire",
        "safety.docx#2": "Safety rules > Fire > Exits",
    }
    assert texts(made)["safety.docx#2"].endswith("North exit | Stairs that lead to the yard by the gate")


def test_pdf_has_its_outline_as_headings_and_no_page_numbers(folder):
    made = stzoo.read_documents(folder / "leave.pdf", copies="keep")
    assert titles(made) == {"leave.pdf#1": "Chapter 1", "leave.pdf#2": "Chapter 2"}
    assert set(texts(made).values()) == {
        "Parental leave lasts at most three years in all, as the parents agree."
    }


def test_headers_and_footers_of_a_pdf_are_left_out(tmp_path):
    body = ["alpha beta gamma", "delta epsilon", "zeta eta theta", "iota kappa", "lambda mu"]
    pages = [["ACME internal paper", f"{line} of the page.", "More of it.", "Draft 2024"] for line in body]
    write_pdf(tmp_path / "a.pdf", pages)
    made = stzoo.read_documents(tmp_path / "a.pdf")
    (text,) = texts(made).values()
    assert "ACME" not in text
    assert "Draft" not in text
    assert all(line in text for line in body)


def test_text_that_is_not_utf_8_is_read_and_named(folder):
    made = stzoo.read_documents(folder / "sub" / "eltern_zeit.txt")
    assert rows(made) == [
        {
            "_id": "eltern_zeit.txt#1",
            "title": "eltern zeit",
            "text": GERMAN,
            "metadata": {"document": "eltern_zeit.txt", "language": "de"},
        }
    ]
    assert made.guessed == ["eltern_zeit.txt"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_decides_the_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_text(GERMAN, encoding)
    made = stzoo.read_documents(tmp_path / "a.txt")
    assert (texts(made), made.guessed) == ({"a.txt#1": GERMAN}, [])


def test_a_page_names_its_encoding(tmp_path):
    page = f'<meta charset="koi8-r"><p>{"Отпуск длится двадцать дней. " * 3}</p>'
    (tmp_path / "a.html").write_text(page, "koi8-r")
    made = stzoo.read_documents(tmp_path / "a.html")
    assert texts(made)["a.html#1"].startswith("Отпуск длится")
    assert made.languages == {"ru": 1}


def test_text_is_in_nfc_without_control_characters(tmp_path):
    (tmp_path / "a.txt").write_text("Cafe\u0301 \ufb01ne\u00ad\x07 bar", "utf-8")
    assert list(texts(stzoo.read_documents(tmp_path / "a.txt")).values()) == ["Café fine bar"]


# --- rows


ROWS = [{"id": "a", "title": "Leave", "text": ENGLISH}, {"id": "b", "title": "", "text": GERMAN}]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "jsonl.gz"])
def test_a_row_is_a_document_and_keeps_its_id(tmp_path, kind):
    path, frame = tmp_path / f"rows.{kind}", pd.DataFrame(ROWS)
    if kind in ("csv", "tsv"):
        frame.to_csv(path, sep="," if kind == "csv" else "\t", index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=kind != "json")
    made = stzoo.read_documents(path)
    assert [(row["_id"], row["title"], row["text"]) for row in rows(made)] == [
        ("a", "Leave", ENGLISH),
        ("b", "", GERMAN),
    ]
    assert [row["metadata"] for row in rows(made)] == [
        {"document": "a", "language": "en"},
        {"document": "b", "language": "de"},
    ]
    in_folder = stzoo.read_documents(tmp_path)
    assert list(texts(in_folder)) == [f"rows.{kind}:a", f"rows.{kind}:b"]


@pytest.mark.parametrize(
    "given", [pd.DataFrame, pl.DataFrame, pa.Table.from_pylist, datasets.Dataset.from_list, list],
    ids=["pandas", "polars", "arrow", "datasets", "list"],
)  # fmt: skip
def test_data_in_python_are_rows_too(given):
    made = stzoo.read_documents(given(ROWS))
    assert texts(made) == {"a": ENGLISH, "b": GERMAN}
    assert (made.documents, made.passages, made.languages) == (2, 2, {"en": 1, "de": 1})


def test_a_list_of_texts_is_numbered():
    made = stzoo.read_documents([ENGLISH, "", GERMAN])
    assert texts(made) == {"1": ENGLISH, "3": GERMAN}
    assert made.empty == ["2"]


def test_columns_of_other_names_are_given(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"key,body\nx,{json.dumps(ENGLISH)}\n", "utf-8")
    with pytest.raises(DataError, match=r"no column 'text' \(there are: key, body\).*--columns text=COLUMN"):
        stzoo.read_documents(path)
    assert texts(stzoo.read_documents(path, columns="text=body,id=key")) == {"x": ENGLISH}
    with pytest.raises(RecipeError, match="there is no role in columns 'txt'; did you mean 'text'"):
        stzoo.read_documents(path, columns="txt=body")


def test_a_long_row_is_split_unless_it_is_to_stay():
    long = " ".join(f"Sentence number {n} is here." for n in range(100))
    data = [{"_id": "long", "title": "T", "text": long}, {"_id": "short", "text": ENGLISH}]
    made = stzoo.read_documents(data)
    assert [one for one in texts(made) if one != "short"] == [f"long#{n}" for n in range(1, made.passages)]
    assert {row["metadata"]["document"] for row in rows(made)} == {"long", "short"}
    assert texts(stzoo.read_documents(data, split_rows=False)) == {"long": long, "short": ENGLISH}


def test_of_a_beir_folder_only_the_corpus_is_read(judged):
    made = stzoo.read_documents(judged, split_rows=False, copies="keep")
    lines = (judged / "corpus.jsonl").read_text("utf-8").splitlines()
    assert texts(made) == {row["_id"]: row["text"] for row in map(json.loads, lines)}
    assert made.skipped == []


def test_bad_rows_are_counted_with_the_first_reason(tmp_path):
    lines = [json.dumps({"id": n, "text": f"{n} {ENGLISH}"}) for n in range(3)]
    bad = ["{not json", json.dumps({"id": 9}), json.dumps({"id": 1, "text": "again"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines + bad), "utf-8")
    made = stzoo.read_documents(tmp_path / "a.jsonl", copies="keep")
    assert made.passages == 3
    (skipped,) = made.skipped
    assert skipped.rows == 3
    assert skipped.reason.startswith("line 4: invalid JSON")


# --- what is skipped


def test_whatever_cannot_be_read_is_skipped_with_its_reason(folder):
    (folder / "broken.pdf").write_bytes((folder / "leave.pdf").read_bytes()[:300])
    (folder / "not.docx").write_bytes(b"\xd0\xcf\x11\xe0 an older file, or an encrypted one")
    (folder / "damaged.docx").write_bytes((folder / "safety.docx").read_bytes()[:-900])
    write_pdf(folder / "scanned.pdf", [[]])
    write_pdf(folder / "secret.pdf", [["text"]], encrypt=StandardEncryption("word"))
    (folder / "binary.txt").write_bytes(b"\x00\x01\x02" * 50)
    (folder / "odd.txt").write_bytes("Grüße".encode("latin-1") + b"\x81\x8d")
    (folder / "settings.json").write_text('{\n  "lr": 1\n}')
    (folder / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    (folder / "blank.md").write_text(" \n\n")
    (folder / "empty.txt").touch()
    (folder / "huge.txt").write_text("word " * 300_000)
    (folder / "a.png").write_bytes(b"x")
    (folder / "README").write_text("x")
    (folder / ".hidden").mkdir()
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "gone.md").symlink_to(folder / "nowhere.md")
    os.mkfifo(folder / "pipe.txt")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    made = stzoo.read_documents(folder, max_file_mib=1)
    reasons = {one.file: one.reason for one in made.skipped}
    expected = {
        "broken.pdf": "not a readable PDF",
        "not.docx": "not a readable docx; it may be encrypted",
        "damaged.docx": "not a readable docx",
        "scanned.pdf": "no text; run OCR first",
        "secret.pdf": "encrypted with a password",
        "binary.txt": "not text: it has NUL bytes",
        "odd.txt": "neither UTF-8 nor windows-1252; convert it to UTF-8",
        "settings.json": "a single JSON object; expected a list of objects",
        "cut.parquet": "cannot be read",
        "empty.txt": "empty",
        "huge.txt": "1.4 MiB, over the limit of 1; split it, or raise --max-file-mib",
        "a.png": ".png files are not read",
        "README": "a file without an extension",
        ".hidden/": "a hidden folder",
        "sub/loop/": "a link to a folder that is read already",
        "gone.md": "a link to nothing",
        "pipe.txt": "is a named pipe",
        "caf\\xe9.txt": "its name is not UTF-8",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reasons[name].startswith(reason), name
    assert made.empty == ["blank.md"]
    assert made.documents == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_skipped(folder):
    (folder / "handbook.md").chmod(0)
    (folder / "sub").chmod(0)
    made = stzoo.read_documents(folder)
    (folder / "sub").chmod(0o755)
    assert {one.file: one.reason for one in made.skipped} == {
        "handbook.md": "cannot be read: Permission denied",
        "sub/": "cannot be read: Permission denied",
    }


def test_a_folder_without_text_is_an_error(tmp_path):
    write_pdf(tmp_path / "scanned.pdf", [[]])
    with pytest.raises(DataError, match=r"no document with text.*scanned\.pdf: no text; run OCR first"):
        stzoo.read_documents(tmp_path)
    for source, error in (
        (tmp_path / "nowhere", "there is no file or folder"),
        ([], "the list has no document"),
        ([3], "an int; expected a text, or a dict with a text"),
        (3, "an object of type int was given; expected a list of texts or dicts, a pandas"),
        (pd.DataFrame({"x": ["a"]}), "no column 'text'"),
    ):
        with pytest.raises(DataError, match=error):
            stzoo.read_documents(source)


# --- passages


def test_ids_of_other_documents_stay_when_one_is_edited(folder):
    before = texts(stzoo.read_documents(folder))
    (folder / "handbook.md").write_text(f"# New\n\n{ENGLISH} Again.\n\n{MARKDOWN}", "utf-8")
    (folder / "aaa.txt").write_text("A new document that has a text of its own, which is not in any other.")
    after = texts(stzoo.read_documents(folder))
    kept = {name: text for name, text in before.items() if not name.startswith("handbook.md")}
    assert kept.items() <= after.items()
    assert len(kept) >= 5


def test_small_sections_are_merged_under_their_heading_and_never_across_a_top_level_one():
    text = "# A\n\n## One\n\nshort one\n\n## Two\n\nshort two\n\n# B\n\n## Three\n\nshort three\n"
    made = PassageSplitter(200).passages(markdown_document("x.md", text, "x"))
    assert [(one.id, one.title, one.text) for one in made] == [
        ("x.md#1", "A", "One\nshort one\n\nTwo\nshort two"),
        ("x.md#2", "B > Three", "short three"),
    ]


def test_headings_below_the_first_level_get_the_name_of_the_file(tmp_path):
    (tmp_path / "sick-leave.md").write_text(f"{GERMAN}\n\n## Doctor\n\n{ENGLISH}")
    made = stzoo.read_documents(tmp_path)
    assert list(titles(made).values()) == ["sick leave", "sick leave > Doctor"]


WORDS = st.text(string.ascii_lowercase + "éßжあ", min_size=1, max_size=12)


@st.composite
def documents(draw):
    """A Markdown text whose body has the words w0x, w1x, …, and its headings the word heading."""
    number, blocks = 0, []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["heading", "text", "text", "code", "list", "table"]))
        if kind == "heading":
            blocks.append("#" * draw(st.integers(1, 6)) + " heading")
            continue
        count = draw(st.integers(1, 60))
        found = [f"w{n}x{draw(WORDS)}" for n in range(number, number + count)]
        number += count
        joined = draw(st.sampled_from([" ", ". ", "\n", ", "])).join(found)
        table = "| a | b |\n|---|---|\n" + "\n".join(f"| {word} | |" for word in found)
        lists = "\n".join(f"- {word}" for word in found)
        code = f"```\n# {joined}\n```"
        blocks.append({"text": joined, "code": code, "list": lists, "table": table}[kind])
    return "\n\n".join(blocks), number


@pytest.mark.parametrize("markdown", [True, False])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(document=documents(), limit=st.integers(8, 80))
def test_each_word_of_a_document_is_in_one_passage_within_the_limit(markdown, document, limit):
    text, number = document
    if not number:
        return
    name = "a.md" if markdown else "a.txt"
    if markdown:
        read = markdown_document(name, text, "a")
    else:
        read = html_document(name, f"<pre>{text}</pre>".encode(), "a")
    passages = list(PassageSplitter(limit).passages(read))
    found = [int(one) for passage in passages for one in re.findall(r"\bw(\d+)x", passage.text)]
    assert found == list(range(number))
    assert max(count_words(passage.text) for passage in passages) <= limit


def test_passages_are_within_the_limit_in_tokens_of_a_model(base, folder):
    from transformers import AutoTokenizer

    made = stzoo.read_documents(folder, tokenizer=base, passage_tokens=24)
    tokenizer = AutoTokenizer.from_pretrained(base)
    sizes = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts(made).values()]
    assert max(sizes) <= 24
    assert len(sizes) > 15


@pytest.mark.parametrize("text", ["ไทย" * 3000, "大熊猫" * 1000, "x" * 9000, "=-" * 4000])
def test_text_without_spaces_is_split(text):
    made = stzoo.read_documents([text], copies="keep")
    assert "".join(texts(made).values()) == text
    assert max(map(count_words, texts(made).values())) <= 200


# --- copies and languages


def test_copies_are_left_out_and_named():
    draw = random.Random(0)
    words = [f"word{draw.randrange(900)}" for _ in range(120)]
    near = [*words[:60], "changed", *words[61:]]
    other = [f"word{draw.randrange(900)}" for _ in range(120)]
    data = [" ".join(one) for one in (words, near, other)] + ["  ".join(words)]
    made = stzoo.read_documents(data)
    assert list(texts(made)) == ["1", "3"]
    assert [(copy.id, copy.of) for copy in made.copies] == [("2", "1"), ("4", "1")]
    assert 0.9 < made.copies[0].similarity < 1
    assert made.copies[1].similarity == 1
    assert list(texts(stzoo.read_documents(data, copies="exact"))) == ["1", "2", "3"]
    assert list(texts(stzoo.read_documents(data, jaccard=1))) == ["1", "2", "3"]
    assert list(texts(stzoo.read_documents(data, copies="keep"))) == ["1", "2", "3", "4"]


def test_short_answers_under_other_titles_are_no_copies():
    data = [{"title": f"May I take leave in {month}?", "text": "Yes."} for month in ("May", "June", "May")]
    made = stzoo.read_documents(data)
    assert list(texts(made)) == ["1", "2"]


def test_languages_are_detected_or_given():
    spanish = "El comité decide sobre las solicitudes de vacaciones en el orden en que llegan."
    chinese = "委员会按照申请到达的顺序决定休假,并在两周内以书面形式答复每一份申请。"
    made = stzoo.read_documents([ENGLISH, GERMAN, spanish, chinese, "7 + 4 = 11"])
    assert [row["metadata"]["language"] for row in rows(made)] == ["en", "de", "es", "zh", "none"]
    assert stzoo.read_documents([ENGLISH], language="german").languages == {"de": 1}


def test_a_short_passage_has_the_language_of_its_document(tmp_path):
    (tmp_path / "a.md").write_text(f"# Urlaub\n\n{GERMAN}\n\n# Telefon\n\nFax 4711", "utf-8")
    made = stzoo.read_documents(tmp_path)
    assert made.languages == {"de": 2}


# --- the output and the command line


def test_the_command_writes_a_corpus_and_a_manifest(folder):
    (folder / "x.png").write_bytes(b"x")
    (folder / "y.png").write_bytes(b"x")
    output = folder / "passages"  # in the source, where it must not be read by the next run
    done = cli("read", str(folder), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "x.png and others, 2 in all: .png files are not read" in done.stdout
    assert f"all that was left out is in {output / 'passages.json'}." in done.stderr
    made = [json.loads(line) for line in (output / "corpus.jsonl").read_text("utf-8").splitlines()]
    manifest = json.loads((output / "passages.json").read_text("utf-8"))
    assert manifest["passages"] == len(made) == sum(manifest["languages"].values())
    assert manifest["documents"] == 5
    assert manifest["files"]["md"] == {"files": 1, "documents": 1, "passages": 5}
    assert manifest["settings"]["passage_tokens"] == 200
    assert [one["file"] for one in manifest["skipped"]] == ["x.png", "y.png"]
    assert sorted(path.name for path in output.iterdir()) == ["corpus.jsonl", "passages.json"]

    again = cli("read", str(folder), "--output", str(output))
    assert again.returncode == 2
    assert "already has a corpus. Use --overwrite" in again.stderr
    before = (output / "corpus.jsonl").read_bytes()
    done = cli("read", str(folder), "--output", str(output), "--overwrite", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passages"] == len(made)
    assert (output / "corpus.jsonl").read_bytes() == before
    assert len(load_corpus(output).rows) == len(made)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nowhere"], "there is no file or folder nowhere"),
        (["docs/a.png"], "docs/a.png has an unknown type; expected csv, docx"),
        (["docs"], "docs has no document with text that can be read. a.png: .png files are not read"),
        (["docs", "--passage-tokens", "2"], "passage_tokens is '2'"),
        (["docs", "--encoding", "nonsense"], "encoding is 'nonsense': "),
        (["docs", "--copies", "none"], "copies is 'none'; expected one of near, exact, keep"),
    ],
)
def test_bad_input_ends_the_command_with_a_clear_sentence(tmp_path, words, error):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.png").write_bytes(b"x")
    done = cli("read", *words, "--output", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_not_replaced(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "corpus.jsonl").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="has files that `stzoo read` has not written"):
            stzoo.read_documents([ENGLISH], output, overwrite=overwrite)
    (output / "corpus.jsonl").unlink()
    stzoo.read_documents([ENGLISH], output)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"does not replace: notes\.txt"):
        stzoo.read_documents([GERMAN], output, overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="contains"):
        stzoo.read_documents(output / "corpus.jsonl", output, overwrite=True)


def test_a_failed_run_leaves_the_earlier_corpus(tmp_path):
    output = tmp_path / "out"
    stzoo.read_documents([ENGLISH], output)
    with pytest.raises(DataError):
        stzoo.read_documents([" "], output, overwrite=True)
    assert "committee" in (output / "corpus.jsonl").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    write_pdf(tmp_path / "a.pdf", [["text"]])
    with pytest.raises(MissingExtraError, match=r"pypdfium2 is not installed.*stzoo\[documents\]"):
        stzoo.read_documents(tmp_path)


def test_a_parquet_file_without_text_is_skipped(folder):
    pq.write_table(pa.table({"a": [1]}), folder / "a.parquet")
    made = stzoo.read_documents(folder)
    assert [one.reason[:18] for one in made.skipped] == ["no column 'text' ("]
