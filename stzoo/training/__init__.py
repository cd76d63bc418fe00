"""Settings and recipes, the run folder, the trainer, its checkpoints and history."""
