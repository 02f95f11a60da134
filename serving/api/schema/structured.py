"""Fields that say what an answer must match."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from flashlet.serving.api.schema.base import WireModel, kind_of

MAX_CHOICES = 4096
MAX_SOURCE = 1 << 17  # characters of a grammar, a pattern or a choice

Source = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE)]


class TextFormat(WireModel):
    """Free text, which is the default."""

    type: Literal["text"]


class JsonObjectFormat(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(WireModel):
    """A schema with its name. The answer always keeps to the schema, whatever `strict` says."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Without effect.")]
    description: str | None = Field(None, description="Without effect.")
    definition: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Without effect: an answer always matches.")


class JsonSchemaFormat(WireModel):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def _format_type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) and kind in {"text", "json_object", "json_schema"} else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("text")]
    | Annotated[JsonObjectFormat, Tag("json_object")]
    | Annotated[JsonSchemaFormat, Tag("json_schema")],
    Discriminator(
        _format_type,
        custom_error_type="response_format_type",
        custom_error_message="Input should be an object with type text, json_object or json_schema",
    ),
]
GuidedJson = Annotated[
    Annotated[Source, Tag("string")] | Annotated[dict[str, Any], Tag("object")],
    Discriminator(
        lambda value: kind_of(value, {str: "string", dict: "object"}),
        custom_error_type="guided_json_type",
        custom_error_message="Input should be a JSON schema, as an object or as text",
    ),
]


class StructuredFields(WireModel):
    """At most one of them may be given, besides `{"type": "text"}`.

    The whole answer matches it, unless a token limit, a stop string or a stop token ends it early. It may end
    before `min_tokens`, and with `ignore_eos`, where the grammar allows nothing more.
    """

    response_format: ResponseFormat | None = None
    guided_json: GuidedJson | None = Field(None, description="A JSON schema.")
    guided_regex: Source | None = Field(
        None, description="A regular expression without look-around, matched as a whole."
    )
    guided_choice: Annotated[list[Source], Field(min_length=1, max_length=MAX_CHOICES)] | None = Field(
        None, description="Texts, one of which is the answer."
    )
    guided_grammar: Source | None = Field(
        None, description="A grammar in the Lark dialect of llguidance; it begins at the rule `start`."
    )
