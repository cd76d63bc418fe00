"""Search: finding the passages of a corpus that are nearest to a query.

exact.py        exact search; exact_kernels.py has its two passes
faiss_index.py  approximate search by FAISS indexes; faiss_build.py builds them
retriever.py    a model with its embedding stores
search.py       search(): ask questions of a model or a store
"""
