"""A conversation in another dialect as the messages of a chat."""

from __future__ import annotations

from dataclasses import dataclass, field

from flashlet.serving.api.schema.chat import Message, Role
from flashlet.serving.api.schema.tools import FunctionCall, ToolCall


@dataclass
class _Turn:
    role: Role
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None


class Transcript:
    """Collects turns; the assistant's text and its calls next to it become one message."""

    def __init__(self, names: dict[str, str]) -> None:
        """`names`: as `fields_renamed` takes them; those of the messages are added."""
        self.names = names
        self._turns: list[_Turn] = []

    @property
    def messages(self) -> list[Message]:
        """The conversation so far; texts of one turn are separated by a line break."""
        return [
            Message(
                role=turn.role,
                content="\n".join(turn.texts) if turn.texts or not turn.calls else None,
                tool_calls=turn.calls or None,
                tool_call_id=turn.tool_call_id,
            )
            for turn in self._turns
        ]

    def add_text(self, role: Role, text: str, place: str | None, *, joined: bool = False) -> None:
        """`place`: where the request says it; None: it does not. `joined`: go on with a turn of this role."""
        turn = self._turn(role, place) if joined else self._begin(role, place)
        turn.texts.append(text)

    def add_call(self, call_id: str, name: str, arguments: str, place: str | None, field_name: str) -> None:
        """A call of the assistant; the field `field_name` at `place` has its arguments."""
        turn = self._turn("assistant", place)
        if place is not None:
            path = f"messages[{len(self._turns) - 1}].tool_calls[{len(turn.calls)}].function"
            self.names[path] = place
            self.names[f"{path}.arguments"] = f"{place}.{field_name}"
        function = FunctionCall(name=name, arguments=arguments)
        turn.calls.append(ToolCall(id=call_id, type="function", function=function))

    def add_result(self, call_id: str, text: str, place: str | None) -> None:
        """What a call returned."""
        turn = self._begin("tool", place)
        turn.texts.append(text)
        turn.tool_call_id = call_id

    def _turn(self, role: Role, place: str | None) -> _Turn:
        """The last turn if it is of this role, or a new one."""
        if self._turns and self._turns[-1].role == role:
            return self._turns[-1]
        return self._begin(role, place)

    def _begin(self, role: Role, place: str | None) -> _Turn:
        if place is not None:
            self.names[f"messages[{len(self._turns)}]"] = place
        self._turns.append(_Turn(role))
        return self._turns[-1]
