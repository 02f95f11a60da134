"""The programs of llama.cpp, which this project is measured against."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from flashlet.model.weight_cache import default_cache_dir


class LlamaCpp:
    """A folder of llama.cpp programs."""

    def __init__(self, folder: Path, quantize: Path | None = None) -> None:
        """`quantize` is llama-quantize if it lies elsewhere."""
        self.folder = folder.resolve()
        self._quantize = quantize or self.folder / "llama-quantize"

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which the programs find the libraries beside them."""
        paths = [str(self.folder), os.environ.get("LD_LIBRARY_PATH", "")]
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths))}

    def version(self, program: str) -> str:
        """What a program calls itself."""
        command: list[str | Path] = [self.folder / program, "--version"]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        lines = (result.stdout + result.stderr).splitlines()
        return next(
            (line.removeprefix("version: ") for line in lines if line.startswith("version")), "unknown"
        )

    def run(self, program: str, *arguments: str | Path) -> str:
        """Standard output of a program; raises CalledProcessError if it fails."""
        command = [self.folder / program, *arguments]
        result = subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            text=True,
        )
        return result.stdout

    def requantized(self, gguf: Path, kind: str) -> Path:
        """The model in another format, made once and kept in the cache folder."""
        folder = default_cache_dir() / "benchmarks"
        target = folder / f"{gguf.stem}.{kind}.gguf"
        if not target.exists() or target.stat().st_mtime < gguf.stat().st_mtime:
            folder.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            command: list[str | Path] = [self._quantize, "--allow-requantize", gguf, partial, kind]
            subprocess.run(command, env=self.environment, capture_output=True, check=True)
            partial.replace(target)
        return target
