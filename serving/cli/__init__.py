"""The command `flashlet`: one module per group of commands, each importing what it needs when it runs."""

from flashlet.serving.cli.app import app, main

__all__ = ["app", "main"]
