"""Fuzz one reader of model files: fuzz.py gguf|cache SECONDS [SEED].

Coverage-guided where atheris (https://github.com/google/atheris) is installed, random damage elsewhere.
Ends with an error, and leaves the input in build/fuzz, if anything but FlashletError is raised, or if one
file takes more than MAX_SECONDS or MAX_BYTES.
"""

from __future__ import annotations

import gc
import importlib.util
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FunctionType

sys.path.insert(0, str(Path(__file__).parent))

from mutations import mutate

MAX_SECONDS = 5
MAX_BYTES = 1 << 30
FINDINGS = Path("build/fuzz")


def main() -> None:
    name, seconds = sys.argv[1], int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    FINDINGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        if importlib.util.find_spec("atheris"):
            run_guided(name, seconds, seed, Path(folder))
        else:
            run_random(name, seconds, seed, Path(folder))


def run_guided(name: str, seconds: int, seed: int, folder: Path) -> None:
    import atheris
    from readers import make_reader
    from seeds import write_seeds

    for item in gc.get_objects():  # the fuzzer's import hook misses modules of an editable installation
        if isinstance(item, FunctionType) and str(item.__module__).startswith("flashlet.model."):
            atheris.instrument_func(item)

    corpus = folder / "corpus"
    corpus.mkdir()
    contents = write_seeds(folder)[name]
    for index, content in enumerate(contents):
        (corpus / str(index)).write_bytes(content)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        generator = random.Random(seed)
        if generator.random() < 0.5:
            return bytes(atheris.Mutate(data, len(data) + 8))[:max_size]
        return mutate(data, generator)[:max_size]

    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-timeout={MAX_SECONDS}",
        f"-rss_limit_mb={MAX_BYTES >> 20}",
        f"-max_len={2 * max(map(len, contents))}",
        f"-artifact_prefix={FINDINGS}/{name}-",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], make_reader(name, folder), custom_mutator=mutator)
    atheris.Fuzz()


def run_random(name: str, seconds: int, seed: int, folder: Path) -> None:
    from readers import make_reader
    from seeds import write_seeds

    contents = write_seeds(folder)[name]
    reader = make_reader(name, folder)
    for content in contents:
        reader(content)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + MAX_BYTES, used + MAX_BYTES))
    generator = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        content = mutate(generator.choice(contents), generator)
        signal.alarm(MAX_SECONDS)  # its default action ends the process
        (FINDINGS / f"{name}-current").write_bytes(content)
        reader(content)
        signal.alarm(0)
        count += 1
    (FINDINGS / f"{name}-current").unlink()
    print(f"{name}: {count} files, nothing but FlashletError")


if __name__ == "__main__":
    main()
