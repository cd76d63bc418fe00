"""Embedding stores, exact and FAISS search, BM25."""
