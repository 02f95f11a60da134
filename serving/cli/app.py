"""The command line's root: commands, global options and the help text."""

from __future__ import annotations

import os
from importlib.metadata import version as package_version
from typing import Annotated

import typer

from flashlet.serving.cli.batch import batch
from flashlet.serving.cli.bench import bench
from flashlet.serving.cli.chat import chat
from flashlet.serving.cli.distill import distill
from flashlet.serving.cli.doctor import doctor
from flashlet.serving.cli.errors import CommandGroup
from flashlet.serving.cli.generate import generate
from flashlet.serving.cli.models import inspect, models, pull
from flashlet.serving.cli.selftest import selftest
from flashlet.serving.cli.serve import serve

EPILOG = (
    "Exit codes: 0 done, 1 the model, download or run failed, 2 wrong usage, 3 no such model, "
    "69 cannot listen on the address, 130 interrupted. A MODEL is a name from `flashlet models`, an ORG/REPO "
    "of the Hugging Face hub, a .gguf file or a folder; without one, the default model is used."
)

app = typer.Typer(
    cls=CommandGroup,
    help="Serve a small quantized language model from this machine.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(rich_help_panel="Run a model")(serve)
app.command(rich_help_panel="Run a model")(chat)
app.command(rich_help_panel="Run a model")(generate)
app.command(rich_help_panel="Run a model")(batch)
app.command(rich_help_panel="Manage models")(pull)
app.command(rich_help_panel="Manage models")(models)
app.command(rich_help_panel="Manage models")(inspect)
app.add_typer(distill, name="distill", rich_help_panel="Manage models")
app.command(rich_help_panel="Measure")(bench)
app.command(rich_help_panel="Measure")(doctor)
app.command(rich_help_panel="Measure")(selftest)


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="FLASHLET_DEBUG", help="Show tracebacks instead of one-line errors."),
    ] = False,
) -> None:
    """Serve a small quantized language model from this machine."""


@app.command(rich_help_panel="About")
def version() -> None:
    """Print the version."""
    print(f"flashlet {package_version('flashlet')}")


def main() -> None:
    """Entry point of the console script."""
    # numpy multiplies no matrices here; its threads would only spin for a while when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app(prog_name="flashlet")
