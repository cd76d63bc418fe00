"""The recipes of stzoo-taco, as package data."""
