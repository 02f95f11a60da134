"""A Jinja environment for templates that nobody has read: no way out, and bounded in time and size.

Jinja's own sandbox guards attributes and calls. Here, also, every loop, operator, literal, slice, comparison
and piece of output passes through the budget of the rendering; the syntax tree is changed to that end before
it is compiled.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from flashlet.model.errors import ChatTemplateError
from flashlet.model.template_budget import MAX_INTEGER_BITS, NODE_SIZE
from flashlet.model.template_functions import (
    FILTERS,
    GLOBALS,
    TESTS,
    call_method,
    checked,
    current_budget,
    each,
    joined,
)

_HIDDEN_ARGUMENTS = (
    "_loop_vars",
    "_block_vars",
)  # what Jinja's compiler adds to every call in a loop or block
_FORBIDDEN: dict[type[nodes.Node], str] = {
    nodes.Block: "block",
    nodes.Extends: "extends",
    nodes.FromImport: "from ... import",
    nodes.Import: "import",
    nodes.Include: "include",
    nodes.ScopedEvalContextModifier: "autoescape",
}


class GenerationTag(Extension):
    """`{% generation %}` marks an answer for training; here it renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012, Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        """The body alone, with a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles and runs templates within `current_budget`, which must be set for both."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed while compiling
            finalize=_finalize,
            extensions=[LoopControlExtension, GenerationTag],
        )
        self.filters = FILTERS | _INTERNAL_FILTERS
        self.tests = TESTS  # type: ignore[assignment]  # Jinja's inferred type is too narrow
        self.globals = dict(GLOBALS)

    concat = staticmethod(joined)  # of the pieces of a macro or block

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        _Instrument().visit(source)  # in place: the root stays
        return super()._generate(source, name, filename, defer_init)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator; what may explode is reckoned first."""
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            raise ChatTemplateError(
                "the chat template formats a string with %, which is not available to templates"
            )
        return checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call of a macro, a recursive loop, a global function or a method of plain data."""
        hidden = {name: kwargs.pop(name) for name in _HIDDEN_ARGUMENTS if name in kwargs}
        budget = current_budget.get()
        arguments = [*args, *kwargs.values()]
        budget.require(
            sum(budget.size(value) for value in arguments if isinstance(value, (str, list, tuple, dict)))
        )
        if isinstance(__obj, LoopContext):
            args = (each(args[0]), *args[1:])
        elif (
            not isinstance(__obj, (Macro, Undefined)) and not _is_loop_method(__obj) and not _is_global(__obj)
        ):
            return call_method(__obj, *args, **kwargs)
        return checked(super().call(__context, __obj, *args, **kwargs, **hidden))


def _is_loop_method(value: Any) -> bool:
    return isinstance(getattr(value, "__self__", None), LoopContext)


def _is_global(value: Any) -> bool:
    return any(value is function for function in GLOBALS.values())


def _finalize(value: Any) -> str:
    """The text of one `{{ expression }}`."""
    return current_budget.get().text(value)


def _concatenated(values: tuple[Any, ...]) -> str:
    """`a ~ b`."""
    return joined(values)


def _check_product(left: Any, right: Any) -> None:
    for value, count in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(count, int):
            weight = 1 if isinstance(value, str) else NODE_SIZE
            current_budget.get().require(weight * len(value) * max(count, 0))


def _check_power(base: Any, exponent: Any) -> None:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and base.bit_length() * exponent > MAX_INTEGER_BITS
    ):
        raise ChatTemplateError(f"the chat template made an integer of more than {MAX_INTEGER_BITS} bits")


# Not valid identifiers, so a template cannot name them.
_INTERNAL_FILTERS = {"(checked)": checked, "(each)": each, "(concatenated)": _concatenated}


class _Instrument(NodeTransformer):
    """Leads values that Jinja's sandbox does not see through functions that do."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        """The node to compile instead of `node`; raises ChatTemplateError for what templates may not have."""
        _check_allowed(node)
        node = self.generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = _filtered("(each)", node.iter)
        elif isinstance(node, nodes.Concat):
            return _filtered("(concatenated)", nodes.Tuple(node.nodes, "load", lineno=node.lineno))
        elif (
            isinstance(node, (nodes.Compare, nodes.Dict, nodes.List))
            or (isinstance(node, nodes.Tuple) and node.ctx == "load")
            or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice))
        ):
            return _filtered("(checked)", node)
        return node


def _check_allowed(node: nodes.Node) -> None:
    for kind, name in _FORBIDDEN.items():
        if isinstance(node, kind):
            raise ChatTemplateError(f"line {node.lineno}: chat templates cannot use {name}")
    if isinstance(node, nodes.NSRef) and node.attr.startswith("_"):
        raise ChatTemplateError(f"line {node.lineno}: expected a name without underscore, found {node.attr}")


def _filtered(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
