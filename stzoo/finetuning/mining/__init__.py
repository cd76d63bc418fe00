"""Hard negatives: passages that a model ranks high for a query though they do not answer it.

known_positives.py         the known answers of each query, as places in the corpus
searchers.py               who searches: a dense model over its embedding store, or BM25
rules.py                   which of the results may be negatives, and which of those are taken
cross_encoder_filter.py    a cross-encoder as the judge of them
manifest.py                what mined negatives depend on
shards.py                  mining some hundred queries at a time, so that a kill loses little; the file
mine.py                    `stzoo mine`
"""
