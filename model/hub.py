"""Model folders from the Hugging Face hub; HF_TOKEN, HF_ENDPOINT and proxy variables count."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from flashlet.model.download import Progress, check_free_space, verify
from flashlet.model.errors import DownloadError, FlashletError, ModelFormatError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

WANTED = ("model*.safetensors", "*.json", "tokenizer.model", "*.jinja")  # never pickled weights (*.bin, *.pt)
PROGRESS_SECONDS = 0.2


def download_repository(repo: str, revision: str, folder: Path, progress: Progress | None = None) -> None:
    """Put the weights, configuration and tokenizer of `repo` into `folder`, resuming what is there.

    Raises DownloadError if the hub cannot be reached or refuses, ChecksumError if a file is not what the hub
    lists, ModelFormatError if the repository has no safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    with _hub_errors(repo):
        info = _model_info(repo, revision)
        files = _wanted_files(info, repo)
        total = sum(file.size or 0 for file in files)
        folder.mkdir(parents=True, exist_ok=True)
        check_free_space(folder, total - _bytes_in(folder))
        disable_progress_bars()
        with _reported(folder, total, progress):
            snapshot_download(
                repo, revision=info.sha, local_dir=folder, allow_patterns=[file.rfilename for file in files]
            )
    for file in files:
        if file.lfs is not None:
            verify(folder / file.rfilename, size=file.lfs.size, sha256=file.lfs.sha256)


def _model_info(repo: str, revision: str) -> ModelInfo:
    from huggingface_hub import HfApi

    return HfApi().model_info(repo, revision=revision, files_metadata=True)


def _wanted_files(info: ModelInfo, repo: str) -> list[RepoSibling]:
    files = [file for file in info.siblings or [] if any(fnmatch(file.rfilename, name) for name in WANTED)]
    files = [file for file in files if "/" not in file.rfilename]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        found = ", ".join(file.rfilename for file in info.siblings or []) or "nothing"
        raise ModelFormatError(f"{repo}: expected model*.safetensors, found {found}")
    return files


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    try:
        yield
    except FlashletError:
        raise
    except Exception as error:  # huggingface_hub also passes on what its HTTP library raises
        raise DownloadError(f"{repo}: {error}") from error


@contextlib.contextmanager
def _reported(folder: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Call `progress` from time to time with the bytes that `folder` holds."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def report() -> None:
        while not done.wait(PROGRESS_SECONDS):
            progress(min(_bytes_in(folder), total), total)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    progress(total, total)


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed while we look
            total += file.stat().st_size if file.is_file() else 0
    return total
