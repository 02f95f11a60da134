"""`python -m flashlet.serving.cli`."""

from flashlet.serving.cli import main

if __name__ == "__main__":
    main()
