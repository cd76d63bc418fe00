"""`python -m stzoo`."""

from stzoo.cli import main

main()
