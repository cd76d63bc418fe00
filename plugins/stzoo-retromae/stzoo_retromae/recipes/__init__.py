"""The recipes of stzoo-retromae, as package data."""
