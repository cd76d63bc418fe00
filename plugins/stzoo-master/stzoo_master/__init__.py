"""MASTER for stzoo."""
