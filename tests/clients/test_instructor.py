"""instructor: pydantic models by its modes for tools and for JSON schemas."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

instructor = pytest.importorskip("instructor", reason="instructor runs in ./scripts/test-clients")


class Animal(BaseModel):
    """An animal."""

    size: Literal["small", "large"]
    legs: Literal[2, 4]


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_models(url: str, model: str, mode: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode[mode])
        messages: Any = [{"role": "user", "content": 'Describe a mouse, as {"size": "small", "legs": 4}.'}]
        animal = client.chat.completions.create(
            model=model,
            messages=messages,
            response_model=Animal,
            temperature=0,
            max_tokens=100,
            max_retries=1,
        )
    assert isinstance(animal, Animal)
