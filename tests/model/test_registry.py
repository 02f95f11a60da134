"""Names, the store, local files and the Hugging Face hub (a local server stands in for it)."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flashlet.model import registry
from flashlet.model.errors import (
    ChecksumError,
    DownloadError,
    ModelFormatError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from flashlet.model.model_store import ModelStore
from flashlet.model.sources import HubSource, WheelSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("FLASHLET_HOME", str(home))
    return home


def test_the_registry_is_sound() -> None:
    entries = registry.known_models()
    assert len({entry.name for entry in entries}) == len(entries)
    default = next(entry for entry in entries if entry.name == registry.DEFAULT_MODEL)
    assert isinstance(default.sources[0], WheelSource)
    for entry in entries:
        assert entry.architecture in ("llama", "mistral", "qwen2", "qwen3")
        assert entry.description
        assert entry.license
        assert entry.parameters > 0
        for source in entry.sources:
            if isinstance(source, WheelSource):
                assert len(bytes.fromhex(source.sha256)) == len(bytes.fromhex(source.member_sha256)) == 32
            else:
                assert source.repo.count("/") == 1


def test_the_store_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ModelStore().folder == tmp_path / "home" / "models"
    monkeypatch.delenv("FLASHLET_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert ModelStore().folder == tmp_path / "data" / "flashlet" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert ModelStore().folder == Path.home() / ".local/share/flashlet/models"


def test_unknown_names_get_suggestions() -> None:
    for function in (registry.resolve, registry.pull, registry.remove):
        with pytest.raises(ModelNotFoundError, match="did you mean smollm2-135m-instruct") as error:
            function("smollm2-135m-instrct")
        assert "qwen3-0.6b" in str(error.value)


def test_known_but_not_pulled() -> None:
    with pytest.raises(ModelNotFoundError, match="flashlet pull smollm2-135m-instruct"):
        registry.resolve("smollm2-135m-instruct")


@pytest.mark.parametrize(
    "name", ["../evil", "a/b/c", "/no/such/path", "", ".", "a\0b", "~nobody/x", ".lock", "x" * 300]
)
def test_names_cannot_leave_the_store(name: str, home: Path) -> None:
    kept = home / "models" / "kept.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    (home / "evil").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError):
        registry.remove(name)
    if name != ".":  # a path that is there
        with pytest.raises(ModelNotFoundError):
            registry.resolve(name)
        with pytest.raises(ModelNotFoundError):
            registry.pull(name)
    assert kept.exists()
    assert (home / "evil").exists()


def test_pull_of_a_local_folder(tiny_model_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "my-model"
    shutil.copytree(tiny_model_path, source)
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "notes.txt").write_text("x")
    path = registry.pull(str(source))
    assert path == ModelStore().folder / "my-model"
    assert {file.name for file in path.iterdir()} == {file.name for file in tiny_model_path.iterdir()}
    assert registry.resolve("my-model") == path
    (source / "chat_template.jinja").write_text("new")
    assert (registry.pull(str(source)) / "chat_template.jinja").read_text() == "new"
    assert [model.name for model in registry.pulled_models()] == ["my-model"]
    registry.remove("my-model")
    assert registry.pulled_models() == []
    assert (source / "config.json").exists()


def test_pull_of_a_local_gguf(default_model_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "copy.gguf"
    source.symlink_to(default_model_path)
    path = registry.pull(str(source))
    assert path.stat().st_size == default_model_path.stat().st_size
    name = path.stem
    assert registry.pull(str(path)) == path
    assert [model.name for model in registry.pulled_models()] == [name]
    assert registry.resolve(str(source)) == source


def test_broken_local_models_are_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"GGUF\3\0\0\0")
    folder = tmp_path / "no-tokenizer"
    shutil.copytree(tiny_model_path, folder)
    (folder / "tokenizer.json").unlink()
    cut = tmp_path / "cut"
    shutil.copytree(tiny_model_path, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_model_path, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for path in (gguf, folder, cut, pickled):
        with pytest.raises((ModelFormatError, UnsupportedModelError)):
            registry.pull(str(path))
    assert registry.pulled_models() == []


def test_a_file_cannot_take_the_name_of_a_known_model(tmp_path: Path) -> None:
    path = tmp_path / f"{registry.DEFAULT_MODEL}.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match="rename the file"):
        registry.pull(str(path))


class HubHandler(BaseHTTPRequestHandler):
    """The part of the hub's interface that a download uses."""

    def __init__(self, files: dict[str, bytes], lie: dict[str, str], *args: Any) -> None:
        self.files = files
        self.lie = lie
        super().__init__(*args)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            self.reply(
                json.dumps(
                    [{"type": "file", "path": name, **self.blob(name)} for name in self.files]
                ).encode()
            )
        elif path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": name, **self.blob(name)} for name in self.files]
            self.reply(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            data = self.files[path.rpartition("/")[2]]
            self.reply(
                data,
                body=body,
                headers={"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'},
            )
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

    def blob(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        entry: dict[str, Any] = {"size": len(data), "oid": "0" * 40, "blobId": "0" * 40}
        if name.endswith(".safetensors"):
            digest = self.lie.get(name) or hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"size": len(data), "sha256": digest, "oid": digest, "pointerSize": 1}
        return entry

    def reply(self, data: bytes, *, body: bool = True, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, bytes], dict[str, str]]]:
    """(files of the repository org/tiny, wrong checksums to list); huggingface_hub talks to this server."""
    from huggingface_hub import constants

    files = {path.name: path.read_bytes() for path in tiny_model_path.iterdir()}
    files["pytorch_model.bin"] = b"pickle"
    lie: dict[str, str] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(HubHandler, files, lie))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield files, lie
    server.shutdown()
    server.server_close()
    thread.join()


def test_pull_from_the_hub(hub: tuple[dict[str, bytes], dict[str, str]]) -> None:
    files, _ = hub
    seen: list[tuple[int, int]] = []
    path = registry.pull("org/tiny", lambda done, total: seen.append((done, total)))
    assert {file.name for file in path.iterdir()} == files.keys() - {"pytorch_model.bin"}
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    total = sum(len(data) for name, data in files.items() if name != "pytorch_model.bin")
    assert seen[-1] == (total, total)
    assert [model.name for model in registry.pulled_models()] == ["org/tiny"]
    assert registry.resolve("org/tiny") == path


def test_hub_problems(hub: tuple[dict[str, bytes], dict[str, str]]) -> None:
    files, lie = hub
    with pytest.raises(DownloadError, match="org/other"):
        registry.pull("org/other")
    lie["model.safetensors"] = "0" * 64
    with pytest.raises(ChecksumError, match="expected SHA-256 0000"):
        registry.pull("org/tiny")
    del files["model.safetensors"]
    with pytest.raises(ModelFormatError, match=r"expected model\*\.safetensors, found .*pytorch_model\.bin"):
        registry.pull("org/tiny")
    assert registry.pulled_models() == []


def test_the_hub_is_asked_when_the_index_fails(
    hub: tuple[dict[str, bytes], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashlet.model.package_index import IndexOptions

    wheel = WheelSource("p", "1", "p.whl", 1, "0" * 64, "m", 1, "0" * 64)
    entry = registry.ModelEntry("tiny", "", "", "llama", 1, (wheel, HubSource("org/tiny")))
    monkeypatch.setattr(registry, "known_models", lambda: [entry])
    monkeypatch.setattr(IndexOptions, "from_pip", lambda: IndexOptions(("http://127.0.0.1:9/simple",)))
    path = registry.resolve("tiny", pull_missing=True)
    assert path == ModelStore().folder / "tiny"
    assert (path / "config.json").exists()


def test_importing_stays_light() -> None:
    """A server start that has its model must not pay for the means to download one."""
    code = (
        "import sys, flashlet.model.registry, flashlet.model.tokenizer, flashlet.model.chat_template\n"
        "print(*{'torch', 'transformers', 'huggingface_hub', 'httpx', 'sentencepiece'} & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
