"""The recipes of stzoo, as package data."""
