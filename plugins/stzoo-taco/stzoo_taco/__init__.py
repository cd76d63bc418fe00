"""TACO for stzoo."""
