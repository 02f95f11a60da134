"""Rules of the source tree: who imports whom, what the base install may need, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"kernels": {"kernels"}, "model": {"kernels", "model"}, "serving": {"kernels", "model", "serving"}}
FOLDERS = [*PACKAGES, "scripts", "tests", "benchmarks"]
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
CPP = sorted(
    path for path in (ROOT / "kernels").rglob("*") if path.suffix in {".cpp", ".hpp", ".h", ".inc", ".cu"}
)
TEXT = [
    path
    for path in (
        *PYTHON,
        *CPP,
        *ROOT.glob("*"),
        *ROOT.glob("docs/**/*"),
        *ROOT.glob("scripts/*"),
        ROOT / ".ci" / "run",
    )
    if path.is_file()
    and path.suffix in {".py", ".cpp", ".hpp", ".h", ".inc", ".cu", ".md", ".toml", ".txt", ".sh", ""}
]
TORCH = {"torch", "transformers", "accelerate", "bitsandbytes"}  # the extra `torch`
TORCH_MODEL = {
    f"model/{name}.py"
    for name in (
        "arithmetic", "decoder", "decoder_module", "draft_module", "draft_transformer", "executor_torch",
        "kv_pool", "rounded_linear", "transformer", "transformer_weights",
    )
}  # fmt: skip
TORCH_SERVING = {
    f"serving/distill/{name}.py"
    for name in (
        "draft_loss", "draft_run", "evaluation", "initial", "shortlist", "student", "target", "training",
        "windows",
    )
}  # fmt: skip
POLICY = {"scheduler.py", "block_manager.py", "sequence.py"}  # plain Python, no arrays
MAX_LINES = 400


def needs_torch(path: Path) -> bool:
    """Whether this file is part of the torch implementation."""
    relative = path.relative_to(ROOT)
    return relative.as_posix() in TORCH_MODEL | TORCH_SERVING or relative.parts[:2] in {
        ("kernels", "gpu"),
        ("kernels", "reference"),
    }


def imported_modules(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Names of the modules that the statements among `nodes` import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""


def import_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no function bodies, nothing under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from import_time_nodes(child)


def parse(path: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def library(package: str) -> list[Path]:
    """Python files of one of our packages."""
    return [path for path in PYTHON if path.relative_to(ROOT).parts[0] == package]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in library(package):
        for module in imported_modules(ast.walk(parse(path))):
            if module.split(".")[0] == "flashlet":
                parts = module.split(".")
                assert len(parts) > 1, f"{path}: import from flashlet.<package>"
                assert parts[1] in PACKAGES[package], f"{path} imports {module}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_packages_are_imported_by_their_full_name(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        bare = {module.split(".")[0] for module in imported_modules(ast.walk(parse(path)))} & PACKAGES.keys()
        assert not bare, f"{path} imports bare {bare}"


def test_only_the_torch_implementation_imports_torch() -> None:
    for package in PACKAGES:
        for path in library(package):
            if not needs_torch(path):
                modules = {name.split(".")[0] for name in imported_modules(import_time_nodes(parse(path)))}
                assert not modules & TORCH, f"{path} imports {modules & TORCH} when it is imported"


def test_base_install_imports_everything_else() -> None:
    names = [
        ".".join(("flashlet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for package in PACKAGES
        for path in library(package)
        if not needs_torch(path)
    ]
    code = f"import sys, importlib\nfor name in {sorted(TORCH)}: sys.modules[name] = None\n"
    code += f"for name in {names}: importlib.import_module(name)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_policy_is_plain_python() -> None:
    for path in library("serving"):
        if path.name in POLICY:
            modules = {name.split(".")[0] for name in imported_modules(ast.walk(parse(path)))}
            assert not modules & (TORCH | {"numpy"}), f"{path} imports arrays"


def test_files_stay_short() -> None:
    long = {
        str(path): count
        for path in (*PYTHON, *CPP)
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long, f"more than {MAX_LINES} lines: {long}"


def test_no_path_of_a_machine() -> None:
    absolute = re.compile(r"(?<![\w.>/])/(home|root|opt|work|mnt|Users)/\w")
    found = [
        f"{path}:{number}"
        for path in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if absolute.search(line)
    ]
    assert not found
