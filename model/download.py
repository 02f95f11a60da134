"""Files over HTTP: resumed where an earlier try stopped, and refused unless size and SHA-256 are right."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from flashlet.model.errors import ChecksumError, DownloadError

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

ATTEMPTS = 5
BACKOFF_SECONDS = 0.5  # doubles from one attempt to the next
CHUNK_BYTES = 1 << 20


def download(
    client: httpx.Client, url: str, part: Path, *, size: int, sha256: str, progress: Progress | None = None
) -> None:
    """Fetch `url` into `part`, going on from the bytes that are there already.

    Raises ChecksumError if the source serves other bytes than promised, which deletes `part`; DownloadError
    if the source cannot be reached or refuses, which keeps `part`, or if the disk is full, which deletes it.
    """
    resumed = part.exists()
    _fetch(client, url, part, size, progress)
    try:
        verify(part, size=size, sha256=sha256)
    except ChecksumError:
        part.unlink()
        if not resumed:
            raise
        download(client, url, part, size=size, sha256=sha256, progress=progress)


def verify(path: Path, *, size: int, sha256: str) -> None:
    """Raise ChecksumError, with expected and found, unless the file has this size and hash."""
    if path.stat().st_size != size:
        raise ChecksumError(f"{path.name}: expected {size} bytes, found {path.stat().st_size}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    check_hash(path.name, digest.hexdigest(), sha256)


def check_hash(name: str, found: str, expected: str) -> None:
    """Raise ChecksumError unless the two hex digests are equal."""
    if found != expected:
        raise ChecksumError(f"{name}: expected SHA-256 {expected}, found {found}")


@contextlib.contextmanager
def removed_if_disk_full(part: Path) -> Iterator[None]:
    """Turn ENOSPC into a DownloadError and give the space of `part` back."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
        raise DownloadError(f"{part.parent}: the disk is full; nothing was kept of {part.name}") from error


def check_free_space(folder: Path, needed: int) -> None:
    """Raise DownloadError unless the file system of `folder` has `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(f"{folder}: expected {needed} bytes of free space, found {free}")


def _fetch(client: httpx.Client, url: str, part: Path, size: int, progress: Progress | None) -> None:
    import httpx

    for attempt in range(ATTEMPTS):
        begin = part.stat().st_size if part.exists() else 0
        if begin == size:
            return
        if begin > size:
            part.unlink()
            begin = 0
        if attempt:
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        try:
            _fetch_rest(client, url, part, begin, size, progress)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status < 500 and status not in (408, 429):
                raise DownloadError(f"{public(url)}: the server answered {status}") from error
            problem: Exception = error
        except httpx.TransportError as error:
            problem = error
        else:
            return
    raise DownloadError(
        f"{public(url)}: gave up after {ATTEMPTS} attempts ({problem or type(problem).__name__}); "
        "what arrived is kept, try again to resume"
    ) from problem


def _fetch_rest(
    client: httpx.Client, url: str, part: Path, begin: int, size: int, progress: Progress | None
) -> None:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # the server has fewer bytes than we do
            part.unlink()
            raise ChecksumError(f"{public(url)}: expected {size} bytes, the server has {begin} or fewer")
        response.raise_for_status()
        if response.status_code != 206:
            begin = 0
        offered = _offered_size(response, begin)
        if offered is not None and offered != size:
            part.unlink(missing_ok=True)
            raise ChecksumError(f"{public(url)}: expected {size} bytes, the server offers {offered}")
        with removed_if_disk_full(part), part.open("ab" if begin else "wb") as file:
            _write(file, response.iter_raw(), begin, size, progress)


def _offered_size(response: httpx.Response, begin: int) -> int | None:
    """Size of the whole file by the response's headers."""
    length = response.headers.get("Content-Length", "")
    return begin + int(length) if length.isdecimal() else None


def _write(file: BinaryIO, chunks: Iterator[bytes], done: int, size: int, progress: Progress | None) -> None:
    """Append `chunks`, at most one byte more than `size`, which tells an endless answer."""
    for chunk in chunks:
        file.write(chunk[: size + 1 - done])
        done += len(chunk)
        if done > size:
            return
        if progress:
            progress(done, size)


def public(url: str) -> str:
    """`url` without user name and password."""
    import httpx

    return str(httpx.URL(url).copy_with(username=None, password=None))
