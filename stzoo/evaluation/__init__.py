"""Measures, scores and significance; bench, compare, contamination, report."""
