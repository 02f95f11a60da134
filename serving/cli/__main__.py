"""`python -m flashlet.serving.cli`."""

from flashlet.serving.cli import main

main()
