"""What decides the numbers that a model gives, in one short text."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from flashlet.model.executor import ExecutorOptions
from flashlet.model.weight_cache import default_cache_dir, find_int8
from flashlet.model.weights import open_weights, source_hash, source_identity

NUMERICS_VERSION = 1  # raise it whenever what docs/numerics.md defines gives other numbers
_DIGITS = {"weights": 8, "formats": 4, "kernels": 4, "template": 4, "version": 4}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Equal ones give equal answers. `str()` is short; which parts of two such texts differ can be told."""

    weights: str  # hash of their contents and of the configuration
    formats: str  # of weights and KV cache
    kernels: str  # the numerics; of float kernels also who computes, for those round differently
    template: str = ""  # that makes prompts of conversations
    version: str = ""  # of flashlet

    def __str__(self) -> str:
        parts = asdict(self).items()
        return "fp_" + "_".join(_short(text, _DIGITS[name]) for name, text in parts)

    @property
    def numbers(self) -> str:
        """What decides the numbers of a given prompt, whichever version of flashlet computes them."""
        return "\n".join((self.weights, self.formats, self.kernels))

    def differing(self, other: str) -> list[str]:
        """Names of the parts that differ from the text of another one; all for a text that is none."""
        own, others = str(self).split("_")[1:], other.split("_")[1:]
        if not other.startswith("fp_") or len(own) != len(others):
            others = [""] * len(own)
        return [name for name, mine, yours in zip(_DIGITS, own, others, strict=True) if mine != yours]


def fingerprint_of(
    path: Path, options: ExecutorOptions, template: str = "", version: str = ""
) -> Fingerprint:
    """The fingerprint of the model at `path`, run with `options`.

    Cheap: int8 weights carry their checksum, others are hashed once. Raises what opening the weights raises.
    """
    return Fingerprint(
        weights=_int8_hash(path) if options.weights == "int8" else _float_hash(path),
        formats=f"{options.weights} weights, {options.kv_dtype} KV",
        kernels=_kernels(options),
        template=template,
        version=version,
    )


def is_exact(options: ExecutorOptions) -> bool:
    """Whether results are the same to the bit on every machine and with every compiler."""
    return options.weights == "int8" and options.device == "cpu"


def _kernels(options: ExecutorOptions) -> str:
    numerics = f"numerics {NUMERICS_VERSION}"
    if is_exact(options):
        return numerics
    from flashlet.model.arithmetic import float_kernels

    return f"{numerics}, {float_kernels(options.device)}"


def _int8_hash(path: Path) -> str:
    cached = find_int8(path)
    if cached is None:  # it was deleted since the model was loaded
        return _float_hash(path)
    return cached.sha256 + msgspec.json.encode(cached.config).decode()


def _float_hash(path: Path) -> str:
    """Hash of the files, kept in the cache because reading all of them takes seconds."""
    kept = default_cache_dir() / "hashes" / source_identity(path)
    try:
        return kept.read_text()
    except OSError:
        digest = source_hash(path)
    source = open_weights(path)
    digest += msgspec.json.encode(source.config).decode()
    source.close()
    try:
        write_atomically(kept, digest)
    except OSError:
        return digest  # hashed again at the next start
    return digest


def write_atomically(path: Path, text: str) -> None:
    """Write a small file that is there as a whole, or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _short(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
