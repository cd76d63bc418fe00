"""RetroMAE and DupMAE for stzoo."""
