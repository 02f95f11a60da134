"""Tool calling of one request: what is shown to the model, what it may write, and how that is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flashlet.serving.api.structured import compile_grammar, requested_grammar
from flashlet.serving.api.tools.answer import Answer
from flashlet.serving.api.tools.convention import convention_of, special_trigger
from flashlet.serving.api.tools.grammar import answer_grammar
from flashlet.serving.api.tools.parser import CallParser
from flashlet.serving.api.tools.tool_use import arguments_schema, tool_use
from flashlet.serving.engine.grammar import CompiledGrammar, Grammar
from flashlet.serving.errors import GrammarError, InvalidRequestError

if TYPE_CHECKING:
    from flashlet.serving.api.loaded_model import LoadedModel
    from flashlet.serving.api.schema.chat import ChatRequest
    from flashlet.serving.api.schema.tools import FunctionDefinition
    from flashlet.serving.api.tools.tool_use import ToolUse
    from flashlet.serving.engine.request import GenerationRequest


class Calling:
    """Made for requests that give tools, also where `tool_choice` is none."""

    def __init__(self, use: ToolUse, model: LoadedModel, formatted: tuple[str, Grammar] | None) -> None:
        """`formatted`: the field that restricts answers without calls, and its grammar."""
        self._use = use
        self._model = model
        self._formatted = formatted
        self._convention = convention_of(model.tokenizer.chat_template)
        self._trigger_id = special_trigger(self._convention, model.tokenizer)

    @classmethod
    def of(cls, body: ChatRequest, model: LoadedModel) -> Calling | None:
        """None if the request gives no tools.

        Raises InvalidRequestError for tools that contradict each other, the choice or other fields.
        """
        use = tool_use(body)
        if use is None:
            return None
        calling = cls(use, model, requested_grammar(body))
        if calling._formatted is not None and use.choice == "auto" and calling._convention.anchored:
            param = calling._formatted[0]
            raise InvalidRequestError(
                f"{param}: not available beside tools with this model, whose calls look like JSON answers; "
                "set tool_choice to 'none' or 'required'",
                param,
            )
        return calling

    @property
    def shown(self) -> Sequence[FunctionDefinition]:
        """Functions that the prompt describes."""
        return () if self._use.choice == "none" else self._use.functions

    async def grammar(self) -> CompiledGrammar:
        """What the answer must match.

        Raises:
            GrammarError: a schema cannot be compiled; names the tool.
            InvalidRequestError, QueueFullError.
        """
        if self._formatted is not None and self._use.choice == "none":
            return await compile_grammar(self._model, self._formatted[1], self._formatted[0])
        rule = None if self._formatted is None else self._formatted[1].as_rule("answer")
        grammar = Grammar(answer_grammar(self._use, self._convention, self._trigger_id, rule))
        try:
            return await compile_grammar(self._model, grammar, "tools")
        except GrammarError:
            await self._check_parts()
            raise

    def constrained(self, request: GenerationRequest) -> GenerationRequest:
        """`request`, whose stop strings and stop tokens end text but no calls."""
        if self._use.forced:
            return replace(request, stop=(), stop_token_ids=())
        trigger = self._convention.trigger if self._trigger_id is None else self._trigger_id
        return replace(request, free_start=self._formatted is None, stops_before=trigger)

    def answer(self) -> Answer:
        """What collects one answer."""
        if self._use.choice == "none":
            return Answer()
        anchored = self._convention.anchored or self._formatted is not None
        return Answer(CallParser(self._convention, trigger_id=self._trigger_id, anchored=anchored))

    async def _check_parts(self) -> None:
        """Raise GrammarError if one of the schemas cannot even be compiled alone."""
        if self._formatted is not None:
            await compile_grammar(self._model, self._formatted[1], self._formatted[0])
        for index in self._use.callable:
            param = f"tools[{index}].function.parameters"
            schema = arguments_schema(self._use.functions[index], param)
            await compile_grammar(self._model, Grammar.json_schema(schema), param)
