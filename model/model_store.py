"""Where pulled models lie: one .gguf file or one folder each, complete or not there at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flashlet.model.errors import ModelNotFoundError

MAX_NAME_BYTES = 200
_SLASH = "--"  # ORG/REPO is stored as ORG--REPO


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model in the store; `size` in bytes, all files together."""

    name: str
    path: Path
    size: int


def home_folder() -> Path:
    """What is kept for the user: $FLASHLET_HOME, $XDG_DATA_HOME/flashlet, or ~/.local/share/flashlet."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(os.environ.get("FLASHLET_HOME") or Path(data, "flashlet"))


class ModelStore:
    """The subfolder `models` of the home folder.

    A model appears by one rename within the file system; unfinished work lies in the subfolder .partial.
    """

    def __init__(self) -> None:
        self.folder = home_folder() / "models"

    def find(self, name: str) -> Path | None:
        """Path of the model pulled as `name`."""
        if not _is_name(name):
            return None
        return next((path for path in self._paths(name) if path.exists()), None)

    def models(self) -> list[PulledModel]:
        """Every pulled model, by name."""
        if not self.folder.is_dir():
            return []
        paths = sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))
        return [PulledModel(_name(path), path, _size(path)) for path in paths]

    def partial(self, filename: str) -> Path:
        """Path for unfinished work under this name."""
        folder = self.folder / ".partial"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / filename.replace("/", _SLASH)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One process and thread at a time works on `name`; the others wait.

        Raises ModelNotFoundError for what cannot be a name.
        """
        if not _is_name(name):
            raise ModelNotFoundError(f"{name[:MAX_NAME_BYTES]!r} cannot be the name of a model")
        with self.partial(f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def publish(self, partial: Path, name: str) -> Path:
        """Make the finished file or folder `partial` the model `name`, in place of what was there."""
        file, folder = self._paths(name)
        path, other = (folder, file) if partial.is_dir() else (file, folder)
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
        _delete(other)
        return path

    def remove(self, name: str) -> bool:
        """Delete the model pulled as `name`; False if there is none."""
        path = self.find(name)
        if path is not None:
            _delete(path)
        return path is not None

    def _paths(self, name: str) -> tuple[Path, Path]:
        """Where `name` lies if it is a GGUF file, and if it is a folder."""
        stem = name.replace("/", _SLASH)
        return self.folder / f"{stem}.gguf", self.folder / stem


def _is_name(name: str) -> bool:
    return (
        bool(name)
        and name[0] not in "./"
        and "\0" not in name
        and len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
    )


def _name(path: Path) -> str:
    return path.name.removesuffix(".gguf").replace(_SLASH, "/")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
