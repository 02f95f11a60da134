"""Two tools, and calls as a model writes them."""

from __future__ import annotations

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "weather?"}
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather.", "parameters": WEATHER_SCHEMA},
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
WEATHER_CHOICE = {"type": "function", "function": {"name": "get_weather"}}
PARIS = '{"city": "Paris", "days": 3}'


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
