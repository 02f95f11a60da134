"""Random JSON schemas: whatever a random model writes under their masks is valid once it has ended."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import SliceOutput, Step
from flashlet.model.tokenizer import Tokenizer, load_tokenizer
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.grammar import CompiledGrammar, Grammar
from flashlet.serving.engine.grammar_compiler import GrammarCompiler
from flashlet.serving.engine.request import GenerationRequest, TokenEvent

NUM_SCHEMAS = 200
MAX_TOKENS = 400
FORMATS = ["date-time", "date", "time", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
PATTERNS = ["^[a-z]{2,4}$", "^(yes|no)$", "^[0-9]{3}-[0-9]{2}$", "x+y?z", "^\\d+(\\.\\d+)?$", "^[A-Z][a-z]*$"]


class SchemaWriter:
    """Writes schemas that can be satisfied."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.has_definitions = self.rng.random() < 0.5

    def schema(self) -> dict[str, Any]:
        schema = self._object(3)
        if self.has_definitions:
            tree = {
                "type": "object",
                "properties": {"value": self._scalar(), "next": {"$ref": "#/$defs/tree"}},
                "required": ["value"],
                "additionalProperties": False,
            }
            schema["$defs"] = {"scalar": self._scalar(), "tree": tree}
        return schema

    def _any(self, depth: int) -> dict[str, Any]:
        kinds = [self._scalar, self._scalar, self._constant]
        if self.has_definitions:
            kinds.append(lambda: {"$ref": self.rng.choice(["#/$defs/scalar", "#/$defs/tree"])})
        if depth:
            kinds += [lambda: self._object(depth - 1), lambda: self._array(depth - 1)]
            kinds.append(lambda: {"anyOf": [self._any(depth - 1) for _ in range(self.rng.randint(1, 3))]})
            kinds.append(lambda: {"allOf": [self._object(depth - 1)], "description": "one"})
        return self.rng.choice(kinds)()

    def _object(self, depth: int) -> dict[str, Any]:
        names = self.rng.sample(
            ["a", "b_c", "d e", "é", 'q"', "name", "value", "x-1"], self.rng.randint(0, 4)
        )
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self._any(depth) for name in names},
            "required": [name for name in names if self.rng.random() < 0.6],
        }
        if self.rng.random() < 0.7:
            schema["additionalProperties"] = self.rng.choice([False, False, self._scalar()])
        elif self.rng.random() < 0.3:
            schema["patternProperties"] = {"^[uvw]{3}$": self._scalar()}
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        least = self.rng.randint(0, 3)
        schema: dict[str, Any] = {"type": "array", "items": self._any(depth), "minItems": least}
        if self.rng.random() < 0.6:
            schema["maxItems"] = least + self.rng.randint(0, 3)
        if self.rng.random() < 0.3:
            schema["prefixItems"] = [self._scalar() for _ in range(self.rng.randint(1, 2))]
        return schema

    def _constant(self) -> dict[str, Any]:
        values: list[Any] = [
            "red",
            "grün",
            'a "b"',
            1,
            -2.5,
            True,
            None,
            [1, "x"],
            {"k": [None]},
            "<|im_end|>",
        ]
        if self.rng.random() < 0.5:
            return {"const": self.rng.choice(values)}
        return {"enum": self.rng.sample(values, self.rng.randint(1, 5))}

    def _scalar(self) -> dict[str, Any]:
        return self.rng.choice([self._string, self._string, self._number, self._integer, self._simple])()

    def _simple(self) -> dict[str, Any]:
        return {"type": self.rng.choice(["boolean", "null", ["string", "null"], ["integer", "boolean"]])}

    def _string(self) -> dict[str, Any]:
        kind = self.rng.randrange(4)
        if kind == 0:
            return {"type": "string", "format": self.rng.choice(FORMATS)}
        if kind == 1:
            return {"type": "string", "pattern": self.rng.choice(PATTERNS)}
        least = self.rng.randint(0, 5)
        return {"type": "string"} | ({"minLength": least, "maxLength": least + 4} if kind == 2 else {})

    def _number(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "number"}
        low = self.rng.randint(-50, 50)
        if self.rng.random() < 0.6:
            schema[self.rng.choice(["minimum", "exclusiveMinimum"])] = low + self.rng.choice([0, 0.5])
        if self.rng.random() < 0.6:
            schema[self.rng.choice(["maximum", "exclusiveMaximum"])] = low + self.rng.randint(2, 500)
        return schema | ({"multipleOf": 0.25} if self.rng.random() < 0.2 else {})

    def _integer(self) -> dict[str, Any]:
        low = self.rng.randint(-1000, 1000)
        bounds = {"minimum": low, "maximum": low + self.rng.randint(7, 2000)}
        schema = {"type": "integer"} | (bounds if self.rng.random() < 0.7 else {})
        return schema | ({"multipleOf": self.rng.choice([2, 7])} if self.rng.random() < 0.2 else {})


class RandomModel:
    """Draws from what the mask allows, and likes to close what is open, so that most answers end."""

    name = "random"
    block_size = 16
    num_blocks = 1024
    max_draft_tokens = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.config = ModelConfig(
            architecture="llama", vocab_size=tokenizer.vocab_size, hidden_size=8, intermediate_size=8,
            num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, context_length=512, rms_norm_eps=1e-5,
            rope=RopeConfig(), tie_word_embeddings=True, eos_token_ids=tokenizer.eos_token_ids,
        )  # fmt: skip
        closing = [tokenizer.token_bytes(index)[:1] in b'"]}@.' for index in range(tokenizer.vocab_size)]
        self._closing = np.array(closing) | np.isin(np.arange(len(closing)), tokenizer.eos_token_ids)

    def execute(self, step: Step) -> Sequence[SliceOutput]:
        return [SliceOutput(tuple(self._draw(item) for item in piece.samples)) for piece in step.slices]

    def close(self) -> None:
        pass

    def _draw(self, sample: SampleRequest) -> int:
        assert sample.allowed is not None
        bits = np.unpackbits(sample.allowed.view(np.uint8), bitorder="little")
        assert not bits[len(self._closing) :].any()
        allowed = bits[: len(self._closing)].astype(bool)
        rng = np.random.default_rng((sample.params.seed, sample.position))
        if (allowed & self._closing).any() and rng.random() < 0.6:
            allowed &= self._closing
        return int(rng.choice(np.flatnonzero(allowed)))


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path) -> Tokenizer:
    return load_tokenizer(tiny_model_path)


def compile_all(tokenizer: Tokenizer, schemas: list[dict[str, Any]]) -> list[CompiledGrammar]:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)

    async def run() -> list[CompiledGrammar]:
        return [await compiler.compile(Grammar.json_schema(schema)) for schema in schemas]

    return asyncio.run(run())


def test_every_finished_answer_is_valid(tokenizer: Tokenizer) -> None:
    schemas = [SchemaWriter(seed).schema() for seed in range(NUM_SCHEMAS)]
    engine = Engine(RandomModel(tokenizer), tokenizer, EngineConfig(max_sequences=32))
    texts, reasons = [""] * NUM_SCHEMAS, [""] * NUM_SCHEMAS
    numbers = {
        engine.submit(
            GenerationRequest((1, 5), SamplingParams(seed=number), max_tokens=MAX_TOKENS, grammar=grammar)
        ): number
        for number, grammar in enumerate(compile_all(tokenizer, schemas))
    }
    while engine.has_work:
        for sequence, event in engine.step():
            assert isinstance(event, TokenEvent), (schemas[numbers[sequence]], event)
            texts[numbers[sequence]] += event.text
            reasons[numbers[sequence]] = event.finish_reason or ""
    formats = Draft202012Validator.FORMAT_CHECKER
    for schema, text, reason in zip(schemas, texts, reasons, strict=True):
        if reason == "stop":
            Draft202012Validator(schema, format_checker=formats).validate(json.loads(text))
        assert "\n\n" not in text and " " * 18 not in text
    assert reasons.count("stop") >= 0.9 * NUM_SCHEMAS, reasons.count("stop")
