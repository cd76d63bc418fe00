"""Hard-negative mining: finds passages that a model ranks high for a query but that do not answer it.

known_positives.py         the known answers of each query, as indices into the corpus
searchers.py               search with a dense model and its embedding store, or with BM25
rules.py                   which results may be negatives, and which of those are used
cross_encoder_filter.py    filters candidates by the scores of a cross-encoder
manifest.py                the settings and inputs that mined negatives depend on
shards.py                  mines in parts, so that an interrupted run can resume, and writes the file
mine.py                    `stzoo mine`
"""
