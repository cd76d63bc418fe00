import gzip
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stzoo.data.rows import read_jsonl, read_lines, read_rows, row_suffix
from stzoo.errors import DataError


def test_lines_are_numbered_and_blank_ones_passed_over(tmp_path):
    # Other marks that some take for the end of a line are part of it.
    content = "\ufeffone\r\n\n \t\n\ufefftwo\x0b\x85\u2028\nthree".encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    for name in ("a.txt", "a.txt.gz"):
        found = [(at.line, text) for at, text in read_lines(tmp_path / name)]
        assert found == [(1, "one"), (4, "\ufefftwo\x0b\x85\u2028"), (5, "three")]


def test_objects_are_read_line_by_line_and_anything_else_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"b": "é"}\n"c"\n', encoding="utf-8")
    rows = read_jsonl(tmp_path / "a.jsonl")
    path = tmp_path / "a.jsonl"
    assert [next(rows), next(rows)] == [((path, 1), {"a": 1}), ((path, 3), {"b": "é"})]
    with pytest.raises(DataError, match=r"a\.jsonl:4: a JSON str"):
        next(rows)


def test_a_pipe_is_read_as_a_file():
    out, into = os.pipe()
    os.write(into, "".join(f"{i}\n" for i in range(2500)).encode())
    os.close(into)
    assert len(list(read_lines(Path(f"/dev/fd/{out}"), progress=True))) == 2500
    os.close(out)


def test_a_bar_is_shown_when_reading_takes_over_two_seconds(tmp_path, capsys):
    shown, hidden = tmp_path / "shown.jsonl", tmp_path / "hidden.jsonl"
    for path in (shown, hidden):
        path.write_text("x\n" * 2500)
    assert len(list(read_lines(shown, progress=True))) == 2500
    assert capsys.readouterr().err.strip() == ""
    for (at, _), _ in zip(read_lines(shown, True), read_lines(hidden, False), strict=True):
        if at.line == 999:
            time.sleep(2.1)
    bar = capsys.readouterr().err
    assert "Reading shown.jsonl:" in bar
    assert "hidden" not in bar


ROWS = [{"query": "a wing", "pos": "lift"}, {"query": "heat", "pos": "Wärme"}]


@pytest.fixture
def folder(tmp_path):
    """The same rows in each kind of file that has columns."""
    lines = "".join(f'{{"query": "{row["query"]}", "pos": "{row["pos"]}"}}\n' for row in ROWS)
    for name, content in {
        "a.jsonl": lines,
        "a.json": lines,
        "a.csv": "query,pos\n" + "".join(f"{row['query']},{row['pos']}\n" for row in ROWS),
        "a.tsv": "query\tpos\n" + "".join(f"{row['query']}\t{row['pos']}\n" for row in ROWS),
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / f"{name}.GZ").write_bytes(gzip.compress(content.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.Parquet")
    return tmp_path


def test_the_suffix_says_how_the_rows_of_a_file_are_read(folder):
    files = sorted(folder.iterdir())
    assert len(files) == 9
    for file in files:
        read = list(read_rows(file))
        assert [row for _, row in read] == ROWS
        assert [at.file for at, _ in read] == [file, file]
        assert [at.line for at, _ in read] == ([2, 3] if row_suffix(file) in (".csv", ".tsv") else [1, 2])
    assert row_suffix(Path("a.parquet.gz")) == row_suffix(Path("a.bin")) == ""


def test_a_bad_row_is_refused_or_handed_over_and_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{\n[]\n{"a": "\xff"}\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: invalid JSON"):
        list(read_rows(path))
    bad = []
    assert [row for _, row in read_rows(path, on_bad=bad.append)] == [{"a": 1}, {"a": 2}]
    assert [str(error).partition("a.jsonl:")[2][:6] for error in bad] == ["2: inv", "3: a J", "4: byt"]


def test_a_function_is_given_the_share_that_has_been_read(tmp_path):
    (tmp_path / "a.txt").write_text("x\n" * 2500)
    pq.write_table(pa.table({"text": ["x"] * 1200}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.parquet"):
        shares = []
        for _ in read_rows(tmp_path / name, shares.append):
            pass
        assert len(shares) > 1
        assert shares == sorted(shares)
        assert 0 < shares[0] <= shares[-1] <= 1
