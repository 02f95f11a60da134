"""Compiles grammars to see whether that is possible, in a process of its own: see grammar_checker.py.

Reads `[source, schema]` as JSON, a line each, and answers what is wrong, or "", likewise.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llguidance import LLMatcher, LLTokenizer

from flashlet.serving.engine.grammar import Grammar, parser_limits
from flashlet.serving.engine.grammar_vocabulary import index_tokens

CPU_SECONDS = 2  # for one grammar
LOCATE_SECONDS = 0.5  # to find the part of a schema that is wrong
MEMORY = 1 << 30  # bytes of address space beyond what an idle worker has
STACK = 1 << 20  # bytes; the server's threads have several times that
NICENESS = 3
MAX_MESSAGE = 300  # characters

_EOS = 256
_RECURSIVE = ("properties", "patternProperties", "$defs", "definitions")  # name -> schema
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "contains", "additionalItems")


def check(vocabulary: LLTokenizer, source: str) -> str:
    """Compile `source` and compute the first mask; "" or what is wrong."""
    matcher = LLMatcher(vocabulary, source, log_level=0, limits=parser_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return explain(matcher.get_error())


def explain(error: str) -> str:
    """llguidance's message without the excerpt of the source that follows it, and on one line."""
    if error.startswith("panic"):
        return "it is too large"
    message = re.split(r"\n +\d+ \| |\n<", error, maxsplit=1)[0]
    message = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", message)
    message = re.sub(r" while processing json-schema:\S+", "", message)
    return " ".join(message.split())[:MAX_MESSAGE]


def locate(schema: Any, error: str) -> str:
    """What is wrong with the deepest part of `schema` that cannot be compiled by itself, and where it is."""
    root = _moved(schema)
    pointer, path = "#/$defs/root", "$"
    deadline = time.thread_time() + LOCATE_SECONDS
    while True:
        for keys, child in _children(schema):
            if time.thread_time() > deadline:
                return f"at {path}: {error}"
            deeper = pointer + "".join("/" + _escaped(key) for key in keys)
            grammar = Grammar.json_schema({"$ref": deeper, "$defs": {"root": root}})
            if message := LLMatcher.validate_grammar(grammar.source, limits=parser_limits()):
                pointer, schema, error = deeper, child, explain(message)
                path += "".join(_step(key) for key in keys)
                break
        else:
            return f"at {path}: {error}"


def _children(schema: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The schemas directly inside `schema`, each with where it is; definitions come last."""
    if not isinstance(schema, dict):
        return
    for key in _SINGLE:
        if isinstance(schema.get(key), dict):
            yield (key,), schema[key]
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            yield from (((key, index), child) for index, child in enumerate(schema[key]))
    for key in _RECURSIVE:
        if isinstance(schema.get(key), dict):
            yield from (((key, name), child) for name, child in schema[key].items())


def _moved(value: Any) -> Any:
    """`value` with its references as they are once the schema lies in #/$defs/root."""
    if isinstance(value, list):
        return [_moved(item) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _moved(item) for key, item in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = "#/$defs/root" + reference[1:]
    return moved


def _escaped(key: str | int) -> str:
    """A step of a JSON pointer (RFC 6901) inside a URI."""
    return quote(str(key).replace("~", "~0").replace("/", "~1"), safe="~")


def _step(key: str | int) -> str:
    """A step of a path as people read it."""
    return f".{key}" if isinstance(key, str) and key.lstrip("$").isidentifier() else f"[{json.dumps(key)}]"


def _limit_cpu() -> None:
    """The kernel ends this process if the next grammar takes longer."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + 1 + CPU_SECONDS, hard))


def _serve() -> None:
    vocabulary = index_tokens([bytes([byte]) for byte in range(_EOS)] + [b""], [_EOS], [_EOS])
    for line in sys.stdin:
        source, schema = json.loads(line)
        _limit_cpu()
        error = check(vocabulary, source)
        if error and schema:
            _limit_cpu()
            error = locate(json.loads(schema), error)
        print(json.dumps(error), flush=True)


def main() -> None:
    """Answer until the input ends, with little stack and memory."""
    os.nice(NICENESS)
    in_use = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
