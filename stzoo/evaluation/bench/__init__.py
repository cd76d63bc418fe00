"""Scoring retrievers on data sets with judgements: `stzoo.bench(...)`, `stzoo.score(...)`.

bench.py          bench(): every model on every data set
score.py          score(): run files of other systems
datasets.py       finding data sets and scoring runs on them; kilt_suite.py: the tasks of KILT
systems.py        ways to search with a model: exact search, smaller vectors, FAISS
fused.py          BM25 fused with a model, from the runs of both
results.py        result files, one per model and data set, in mteb's format; tables.py shows them
result_files.py   paths of the result files and TREC runs
beir_model.py     a model with BEIR's interface, for BEIR's scripts
"""
