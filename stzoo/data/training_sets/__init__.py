"""Training data: read from any of the usual formats, and written by mining.

sets.py           the training set
columns.py        the roles of columns
formats.py        the formats of rows
files.py          the files of rows
resolve_ids.py    rows that name passages by id
builder.py        builds a training set from rows
read.py           reads a training set
mined.py          writes and reads mined files
"""
