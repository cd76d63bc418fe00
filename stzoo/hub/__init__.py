"""Models on their way out and in: the portable export, and the import of published checkpoints."""
