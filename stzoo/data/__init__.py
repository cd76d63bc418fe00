"""Corpora, judged data sets (BEIR, KILT), training sets, runs and qrels, downloads."""
