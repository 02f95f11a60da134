"""What a start with cached weights leaves out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flashlet.serving.config import MemoryAmount
from flashlet.serving.loading import LoadOptions, load_engine

LOAD = """
import sys
from pathlib import Path
from flashlet.serving.config import MemoryAmount
from flashlet.serving.loading import LoadOptions, load_engine

loaded = load_engine(Path(sys.argv[1]), LoadOptions(threads=1, kv_cache=MemoryAmount(1 << 24)))
print(loaded.tokenizer.encode("the weather in the city"))
loaded.executor.close()
"""
READERS = ["gguf", "safetensors", "sentencepiece", "flashlet.model.gguf", "flashlet.model.hf_folder"]


def imported(code: str, *names: str, arguments: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Lines that `code` prints in a fresh process, and those of the modules `names` that it imports."""
    code += f"\nimport sys; print(*sorted(set({names!r}) & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    *lines, modules = done.stdout.split("\n")[:-1]
    return lines, modules.split()


def test_the_command_line_alone_imports_no_arrays_and_no_http() -> None:
    heavy = ("numpy", "fastapi", "pydantic", "uvicorn", "httpx", "jinja2", "tokenizers", "rich", "torch")
    assert imported("import flashlet.serving.cli", *heavy) == ([], [])


def test_a_second_start_imports_no_reader_of_models(tiny_model_path: Path) -> None:
    loaded = load_engine(tiny_model_path, LoadOptions(threads=1, kv_cache=MemoryAmount(1 << 24)))
    loaded.executor.close()
    heavy = (*READERS, "torch", "transformers", "huggingface_hub", "httpx", "rich", "fastapi")
    lines, modules = imported(LOAD, *heavy, arguments=(str(tiny_model_path),))
    assert modules == []
    assert lines == [str(loaded.tokenizer.encode("the weather in the city"))]


def test_serving_imports_no_http_client() -> None:
    assert imported("import flashlet.serving.api.http_server", "httpx", "rich", "torch") == ([], [])
