"""Models on their way out and in: the portable export, and what checks it."""
