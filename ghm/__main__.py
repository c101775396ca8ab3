"""`python -m ghm` is the command `ghm`."""

from ghm.cli import main

main()
