"""Search: which passages of a corpus lie nearest to a query.

ranking.py      what is kept of all that is found, and in which order
exact.py        every query with every passage; exact_kernels.py is how it is fast
binary.py       the same over one bit a dimension, with candidates by Hamming distance
faiss_index.py  approximate, through FAISS indexes; faiss_build.py makes them
retriever.py    a model with its embedding stores
search.py       search(): questions to a model, or to a store
"""
