"""Scoring retrievers on judged sets: `stzoo.bench(...)`, `stzoo.score(...)`.

bench.py          bench(): all models on all sets
score.py          score(): runs that other systems made
datasets.py       what is scored; kilt_suite.py all files of KILT
systems.py        a model as a system: exact, smaller vectors, FAISS
results.py        one JSON file a model and data set, in mteb's shape; tables.py shows them
beir_model.py     a model with BEIR's interface, for BEIR's scripts
"""
