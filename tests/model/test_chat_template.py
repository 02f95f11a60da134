"""Chat templates render as transformers renders them, and hostile ones are stopped."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from flashlet.model import template_budget
from flashlet.model.chat_template import MAX_SOURCE_CHARACTERS, ChatTemplate
from flashlet.model.errors import ChatTemplateError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# In the manner of Llama 3.x: macros, namespaces, tools, dates, loop controls, generation tags.
RICH = """
{{- bos_token }}
{%- macro describe(tool, indent=2) -%}
    {{ tool.function.name ~ ': ' ~ tool.function.description }}
    {{- tool.function.parameters | tojson(indent=indent) }}
{%- endmacro %}
{%- set ns = namespace(system=none, count=0) %}
{%- for message in messages if message.role == 'system' %}
    {%- set ns.system = message['content'] %}
    {%- break %}
{%- endfor %}
{%- if ns.system is not none %}{{ ns.system.split('|')[0] | upper }}{% endif %}
{%- if tools %}
    {%- for tool in tools %}{{ describe(tool) }}{{ ',' if not loop.last }}{% endfor %}
{%- endif %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message.content is string %}
        {%- generation %}{{ loop.index0 }}/{{ loop.length }} {{ message.content.strip().replace('a', 'bb') }}
        {%- endgeneration %}
    {%- else %}
        {%- for part in message.content | selectattr('type', 'eq', 'text') | map(attribute='text') %}
            {{- part | indent(3) }}
        {%- endfor %}
    {%- endif %}
    {%- for key, value in message.items() | sort %}{{ key }}={{ value is mapping }};{% endfor %}
{%- endfor %}
{%- set joined %}{{ messages | map(attribute='role') | join('+') }}{% endset %}
{{ joined }} {{ ns.count % 2 }} {{ 7 // 2 ** 2 }} {{ [1, 2.5, none, true] }} {{ {'k': (1, 'é')} }}
{{ strftime_now('%Y') | int > 2000 }} {{ missing }} {{ enable_thinking | default(true) }}
{%- filter lower %}ÀB{% endfilter %} {{ '<x>' | e }} {{ range(3) | join }} {{ dict(a=1).get('a') }}
"""
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind|and short"},
    {"role": "user", "content": "  banana \n{{ 7 * 7 }} <|im_end|> 日本\u2028 "},
    {"role": "assistant", "content": [{"type": "text", "text": "a\nb"}, {"type": "image"}]},
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d<>&'", "parameters": {"x": [1, "é"]}}}
]


def render(source: str, messages: Any = MESSAGES, **options: Any) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, **options)


def reference(source: str, messages: Any = MESSAGES, **options: Any) -> str:
    texts, _ = render_jinja_template(
        [messages], chat_template=source, bos_token="<s>", eos_token="</s>", **options
    )
    return str(texts[0])


@pytest.mark.parametrize("source", [CHATML, RICH])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_renders_as_transformers_does(source: str, tools: Any, add_generation_prompt: bool) -> None:
    messages = MESSAGES[:2] if source == CHATML else MESSAGES
    expected = reference(source, messages, tools=tools, add_generation_prompt=add_generation_prompt)
    assert render(source, messages, tools=tools, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("content", ["It is", "It is  ", [{"type": "text", "text": "It is"}]])
def test_continues_the_final_message(content: Any) -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if m.content is string else m.content[0].text }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": content}]
    expected = reference(source, messages, continue_final_message=True)
    assert render(source, messages, continue_final_message=True) == expected
    assert messages[-1]["content"] == content


def test_what_is_not_rendered_cannot_be_continued() -> None:
    with pytest.raises(ChatTemplateError, match="cannot be continued"):
        render("{{ messages[0].content }}", MESSAGES[:2], continue_final_message=True)
    with pytest.raises(ChatTemplateError, match="ends in text"):
        render(CHATML, [], continue_final_message=True)


def test_extra_variables() -> None:
    assert render("{{ enable_thinking }} {{ n + 1 }}", extra={"enable_thinking": False, "n": 1}) == "False 2"
    with pytest.raises(ChatTemplateError, match="messages cannot be set"):
        render("", extra={"messages": []})
    with pytest.raises(ChatTemplateError, match="plain data"):
        render("", extra={"callback": print})


def test_the_templates_own_message() -> None:
    with pytest.raises(ChatTemplateError, match="^roles must alternate: system$"):
        render("{{ raise_exception('roles must alternate: ' + messages[0].role) }}")


def test_missing_tokens_are_undefined() -> None:
    template = ChatTemplate("[{{ bos_token }}{{ eos_token is defined }}]", bos_token=None, eos_token=None)
    assert template.render([]) == "[False]"


def test_long_chats_are_not_held_back() -> None:
    """What a long conversation needs stays far below the limits, appended text included."""
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set ns.text = ns.text + m.role + ': ' ~ m.content %}{% endfor %}{{ ns.text }}"
    )
    messages = [{"role": "user", "content": "word " * 200}] * 300
    assert len(render(source, messages)) == 300 * 1006


def repeated(start: str, expression: str) -> str:
    loop = f"{{% for i in range(99) %}}{{% set n.x = {expression} %}}{{% endfor %}}"
    return f"{{% set n = namespace(x={start}) %}}{loop}"


LOOP = "{% for i in range(99999) %}"
MACRO = "{% macro m(n) %}{% if n %}"
OVER_LIMITS = {
    "loops": LOOP + LOOP + "{% endfor %}{% endfor %}",
    "loop with output": LOOP + LOOP + "{{ i }}{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in [1,2,3] recursive %}{{ loop([1,2,3]) }}{% endfor %}",
    "wide recursive loop": "{% for x in range(9999) recursive %}"
    "{% if loop.depth < 4 %}{{ loop(range(9999)) }}{% endif %}{% endfor %}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching macro": MACRO + "{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "branching caller": MACRO + "{% call m(n-1) %}{{ caller() }}{% endcall %}{{ m(n-1) }}"
    "{% endif %}{% endmacro %}{% call m(60) %}x{% endcall %}",
    "string product": "{{ 'a' * 10**9 }}",
    "product from the right": "{{ 10**9 * 'a' }}",
    "list product": "{{ ([1] * 10**9) | length }}",
    "tuple product": "{% set x = (1, 2) * 10**9 %}",
    "big power": "{% set x = 9 ** 99999999 %}",
    "repeated square": repeated("3", "n.x * n.x"),
    "doubling sum": repeated("'ab'", "n.x + n.x"),
    "doubling concat": repeated("'ab'", "n.x ~ n.x"),
    "doubling block": "{% set n = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "doubling macro": "{% macro m(x, n) %}{% if n %}{{ m(x ~ x, n - 1) }}{% endif %}{% endmacro %}"
    "{{ m('ab', 99) }}",
    "doubling join": repeated("'ab'", "[n.x, n.x] | join(n.x)"),
    "string join": "{% set s = 'a' * 99999 %}{{ s.join(range(99999) | map('string')) }}",
    "doubling replace": repeated("'ab'", "n.x.replace('a', n.x)"),
    "replace nothing": "{{ ('a' * 99999) | replace('', 'b' * 99999) }}",
    "doubling filter": "{% macro d(x) %}{% filter replace('a', x) %}{{ x }}{% endfilter %}{% endmacro %}"
    + repeated("'aa'", "d(n.x)"),
    "nested lists": repeated("[1]", "[n.x, n.x]"),
    "nested tuples compared": repeated("((1,), (1,))", "((n.x[0], n.x[0]), (n.x[1], n.x[1]))")
    + "{{ n.x[0] == n.x[1] }}",
    "nested dicts": repeated("{}", "{1: n.x, 2: n.x}"),
    "nested dict()": repeated("{}", "dict(a=n.x, b=n.x)"),
    "nested arguments": "{% macro m() %}{{ m(varargs, varargs) }}{% endmacro %}{{ m(1) }}",
    "deep list": repeated("[]", "[n.x]"),
    "many large values": LOOP + "{% set y = 'a' * 999999 + i|string %}{% endfor %}",
    "slices": "{% set s = 'a' * 999999 %}" + LOOP + "{% set t = s[i:] %}{% endfor %}",
    "split": "{{ ('a ' * 499999).split() | length }}",
    "characters": "{{ ('a' * 999999) | list | length }}",
    "comparisons": "{% set s = 'a' * 999999 + 'b' %}{% set t = 'a' * 999999 + 'c' %}"
    + LOOP
    + "{% if s == t %}{% endif %}" * 99
    + "{% endfor %}",
    "searches": "{% set s = ('a' * 999 + 'b') * 999 %}{% set t = 'a' * 1000 %}"
    + LOOP
    + "{% if t in s %}{% endif %}{% endfor %}",
    "indent": "{{ ('a\n' * 9999) | indent(99999) }}",
    "indent with text": "{{ ('a\n' * 9999) | indent('b' * 9999) }}",
    "json indent": "{{ [[[[1]]]] | tojson(indent=10**9) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "center method": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "percent width": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "format method": "{{ '{:999999999}'.format(1) }}",
    "format_map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "large range": "{{ range(10**9) | list }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice filter": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 5 | round(-10**9) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "long date": "{{ strftime_now('%Y' * 99999) }}",
    "huge integer": "{{ ('f' * 99999) | int(0, 16) }}",
    "escapes": repeated("'&'", "n.x | e | string | replace('a', '&' * 9)"),
    "printed namespace": "{% set n = namespace() %}{% set n.a = n %}{{ n }}",
    "deep expression": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "deep blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "long source": "a" * (MAX_SOURCE_CHARACTERS + 1),
}
REACHING_OUT = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | first }}{{ raise_exception('out') if false }}",
    "function globals": "{{ raise_exception.__globals__ }}",
    "globals by item": "{{ range['__globals__']['os'] }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "self call": "{{ self.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "joiner": "{{ joiner() }}",
    "namespace class": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "namespace argument": "{% set n = namespace(__class__=1) %}",
    "namespace dict argument": "{% set n = namespace({'__class__': 1}) %}",
    "format attribute": "{{ '{0.__class__}'.format(1) }}",
    "import": "{% import 'os' as os %}",
    "from import": "{% from 'os' import path %}",
    "include": "{% include '/etc/passwd' %}",
    "include ignoring": "{% include '/etc/passwd' ignore missing %}",
    "extends": "{% extends '/etc/passwd' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "autoescape": "{% autoescape true %}{% endautoescape %}",
    "change of input": "{{ messages.append(1) }}",
    "change of message": "{{ messages[0].update({'a': 1}) }}",
    "call of a string": "{{ 'a'() }}",
    "undefined function": "{{ open('/etc/passwd') }}",
    "bytes": "{{ 'a'.encode() }}",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", OVER_LIMITS)
def test_a_template_that_goes_too_far_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "CPU_SECONDS", 0.1)
    tracemalloc.start()
    try:
        with pytest.raises(ChatTemplateError):
            render(OVER_LIMITS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 << 20


@pytest.mark.parametrize("name", REACHING_OUT)
def test_a_template_cannot_reach_out(name: str) -> None:
    try:
        text = render(REACHING_OUT[name])
    except ChatTemplateError:
        return
    assert text == ""  # an attribute that is not there


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ }}", "{% if x %}", "{{ 1 | nosuchfilter }}", "{% nosuchtag %}"]
)
def test_what_is_not_a_template(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="line 1"):
        ChatTemplate(source, bos_token=None, eos_token=None)


@pytest.mark.parametrize(
    "source", ["{{ messages.x.y }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ 'a'.index('b') }}"]
)
def test_a_template_that_fails(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="failed"):
        render(source)
