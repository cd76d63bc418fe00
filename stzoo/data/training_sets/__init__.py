"""Training data: read from all the forms that they come in, and written by mining.

sets.py           what they are
columns.py        which column of the rows is what
formats.py        a row of each format
files.py          the files of rows
resolve_ids.py    rows that name passages by id
builder.py        rows become a set
read.py           all of it
mined.py          writing and reading what mining made
"""
