"""Filters, globals and methods that chat templates may use, each within the budget of the rendering.

Everything else of Jinja and Python is left out: what is not there needs no limit. Functions whose result can
be much larger than their arguments reckon its size before they run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView
from contextvars import ContextVar
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

from jinja2 import Environment, filters, pass_environment, tests
from jinja2.sandbox import safe_range
from jinja2.utils import Namespace

from flashlet.model.errors import ChatTemplateError
from flashlet.model.template_budget import Budget, CountedIterable

current_budget: ContextVar[Budget] = ContextVar("current_budget")

MAX_INDENT = 16
MAX_DATE_FORMAT = 256
_JINJA_FILTERS = """
    abs capitalize count d default dictsort e escape first float int items last length list lower map max min
    reject rejectattr reverse safe select selectattr sort string title trim unique upper
"""
_STRING_METHODS = """
    capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric
    isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
"""
_CONTAINER_METHODS = "copy count get index items keys values"
_Function = Callable[..., Any]


def each(value: Any) -> CountedIterable:
    """What a `for` loop runs over."""
    return CountedIterable(value, current_budget.get())


def checked(value: Any) -> Any:
    """A value that an expression made, once it is within the budget; what is lazy is computed now."""
    if isinstance(value, (Iterator, MappingView)):
        value = list(each(value))
    return current_budget.get().check(value)


def joined(parts: Iterable[Any], separator: str = "") -> str:
    """The text of all `parts`."""
    budget = current_budget.get()
    texts = [budget.text(part) for part in each(parts)]
    budget.require(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def call_method(method: _Function, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a string, list, tuple or dict if templates may."""
    name = getattr(method, "__name__", type(method).__name__)
    owner = getattr(method, "__self__", None)
    available = ""
    if isinstance(method, (BuiltinMethodType, MethodType)) and isinstance(owner, (str, list, tuple, dict)):
        available = _STRING_METHODS if isinstance(owner, str) else _CONTAINER_METHODS
    if name not in available.split():
        raise ChatTemplateError(f"the chat template calls {name}, which is not available to templates")
    if isinstance(owner, str) and name == "replace":
        return _replace(owner, *args)
    if isinstance(owner, str) and name == "join":
        return _join_strings(owner, *args)
    return checked(method(*args, **kwargs))


def _guarded(function: _Function) -> _Function:
    @functools.wraps(function)  # also copies Jinja's mark of functions that want the context
    def run(*args: Any, **kwargs: Any) -> Any:
        current_budget.get().step()
        return checked(function(*args, **kwargs))

    return run


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:
    budget = current_budget.get()
    text = budget.text(value)
    budget.require(len(text) + text.count(old) * len(new))
    return text.replace(old, new, count)


def _join_strings(separator: str, parts: Iterable[Any]) -> str:
    return joined(parts, separator)


@pass_environment
def _join(environment: Environment, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(filters.make_attrgetter(environment, attribute), value)
    return joined(value, d)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    current_budget.get().require(len(text) + (text.count("\n") + 1) * size)
    return filters.do_indent(text, width, first, blank)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: plain JSON, without Jinja's escapes for HTML."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= MAX_INDENT):
        raise ChatTemplateError(f"tojson: expected an indent from 0 to {MAX_INDENT}, found {indent!r}")
    return json.dumps(
        checked(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: Any = "") -> NoReturn:
    raise ChatTemplateError(current_budget.get().text(message))


def _strftime_now(form: str) -> str:
    if len(form) > MAX_DATE_FORMAT:
        raise ChatTemplateError(
            f"strftime_now: expected at most {MAX_DATE_FORMAT} characters, found {len(form)}"
        )
    return datetime.now().strftime(form)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    attributes = dict(*args, **kwargs)
    if any(not isinstance(name, str) or name.startswith("_") for name in attributes):
        raise ChatTemplateError("namespace: expected names that do not begin with an underscore")
    return Namespace(attributes)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


_BUILT_IN_FILTERS: Mapping[str, Any] = filters.FILTERS
_BUILT_IN_TESTS: Mapping[str, Any] = tests.TESTS
FILTERS: dict[str, _Function] = {
    **{name: _guarded(_BUILT_IN_FILTERS[name]) for name in _JINJA_FILTERS.split()},
    **{"indent": _guarded(_indent), "join": _guarded(_join), "replace": _guarded(_replace)},
    "tojson": _guarded(_tojson),
}
TESTS: dict[str, _Function] = {name: _guarded(test) for name, test in _BUILT_IN_TESTS.items()}
GLOBALS: dict[str, _Function] = {
    "dict": _dict,
    "namespace": _namespace,
    "raise_exception": _raise_exception,
    "range": safe_range,
    "strftime_now": _strftime_now,
}
