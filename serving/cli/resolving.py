"""From what the user calls a model to its path, pulling it with a progress bar where that is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flashlet.model.errors import ModelNotFoundError
from flashlet.model.registry import DEFAULT_MODEL, pull, resolve

if TYPE_CHECKING:
    from flashlet.model.download import Progress as ProgressFunction
    from flashlet.serving.loading import LoadedEngine, LoadOptions


def resolve_model(name: str | None) -> Path:
    """Path of the model, or of the default one; known models and ORG/REPO are pulled if they are missing."""
    name = name or DEFAULT_MODEL
    try:
        return resolve(name)
    except ModelNotFoundError:
        return pull_with_progress(name)


def served_name(name: str | None) -> str:
    """Name under which requests find the model: that of its file or folder if it was given by path."""
    name = name or DEFAULT_MODEL
    path = Path(name).expanduser()
    if not path.exists():
        return name
    return path.resolve().name.removesuffix(".gguf")


def pull_with_progress(name: str) -> Path:
    """Pull a model, with a progress bar on stderr if that is a terminal; raises what `pull` raises."""
    with _progress_bar(name) as progress:
        return pull(name, progress)


@contextmanager
def local_engine(model: str | None, options: LoadOptions) -> Iterator[LoadedEngine]:
    """Load a model into this process, and free it at the end."""
    from flashlet.serving.loading import load_engine

    loaded = load_engine(resolve_model(model), options)
    try:
        yield loaded
    finally:
        loaded.executor.close()


@contextmanager
def _progress_bar(name: str) -> Iterator[ProgressFunction]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task: TaskID | None = None

        def update(done: int, total: int) -> None:
            nonlocal task
            if task is None:  # nothing is shown before there is something to pull
                task = bar.add_task(f"Pulling {name}", total=total)
                if not console.is_terminal:
                    print(f"Pulling {name}", file=sys.stderr)
            bar.update(task, completed=done, total=total)

        yield update
