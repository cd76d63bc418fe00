"""The recipes of stzoo-master, as package data."""
