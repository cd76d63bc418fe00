"""Documents: files and rows, read as sections under headings and cut into passages.

find.py       the files of a folder, and those that are skipped
sections.py   a document's sections; readers of Markdown, HTML and plain text
formats.py    a file's document, by its kind; pdf.py reads PDF
tables.py     rows of csv, tsv, jsonl, json and Parquet files, lists and data frames; a row is a document
split.py      passages of a document
language.py   the language of a passage
corpus.py     all of these in one stream, written as a BEIR corpus with a manifest
"""
