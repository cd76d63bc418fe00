"""`python -m stzoo`."""

from .cli import main

main()
