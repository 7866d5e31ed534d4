"""Small mistakes that could be made in a module: one comparison, number, word or line at a time.

Not changed are texts, what is only said to people (messages of errors and logs), annotations,
decorators and documentation.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
PAIRS = (
    ("min", "max"),
    ("any", "all"),
    ("floor", "ceil"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
)
OTHER_NAME = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
EITHER_WAY = ("min", "max", "minimum", "maximum", "logaddexp", "array_equal", "clip")
ASSERTED = "strict"  # of zip: as with assert, no input should get there
NAMED = (ast.FunctionDef, ast.ClassDef)
SHOWN = 70  # characters of a change
Change = tuple[str, ast.AST]  # its kind, and what stands there instead


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        number: in the order of the module, from 0.
        lines: first and last of the statement it is in, of a long one its head.
        place: the function or class it is in, with those around it; empty at the module's level.
        inside: whether it runs when a function is called, and not when the module is imported.
        kind: such as ``comparison``.
        change: what stood there, and what does; with a number where that is not the first such
            change in its place.
    """

    number: int
    lines: tuple[int, int]
    place: str
    inside: bool
    kind: str
    change: str


@dataclass(frozen=True)
class _Spot:
    """A node that may be changed, and where it hangs."""

    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None
    lines: tuple[int, int]
    place: str
    inside: bool

    def put(self, other: ast.AST) -> None:
        """Hang another node there."""
        if self.index is None:
            setattr(self.parent, self.field, other)
        else:
            getattr(self.parent, self.field)[self.index] = other


class Mutants:
    """Every mutant of a module, in the order of its text."""

    def __init__(self, source: str, path: str) -> None:
        """Read the module.

        Raises:
            SyntaxError: it is not Python.
        """
        self._tree, self._path = ast.parse(source), path
        self._made = [
            (spot, kind, other) for spot in _spots(self._tree) for kind, other in _changes(spot)
        ]

    def __iter__(self) -> Iterator[Mutant]:
        seen: Counter[tuple[str, str]] = Counter()
        for number, (spot, kind, other) in enumerate(self._made):
            change = f"{_text(spot.node)} -> {_text(other)}"
            seen[spot.place, change] += 1
            if seen[spot.place, change] > 1:
                change += f" ({seen[spot.place, change]})"
            yield Mutant(number, spot.lines, spot.place, spot.inside, kind, change)

    def code(self, number: int) -> CodeType:
        """The module with that mistake, compiled."""
        spot, _, other = self._made[number]
        spot.put(other)
        ast.fix_missing_locations(self._tree)
        code = compile(self._tree, self._path, "exec")
        spot.put(spot.node)
        return code


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _spots(
    parent: ast.AST, lines: tuple[int, int] = (0, 0), place: str = "", *, inside: bool = False
) -> Iterator[_Spot]:
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if isinstance(parent, ast.keyword) and parent.arg == ASSERTED:
            continue
        called = inside or (isinstance(parent, ast.FunctionDef | ast.Lambda) and field == "body")
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _is_only_said(node):
                continue
            within = _lines(node) if isinstance(node, ast.stmt) else lines
            yield _Spot(node, parent, field, index, within, place, called)
            if not _speaks(node):
                name = getattr(node, "name", None) if isinstance(node, NAMED) else None
                below = f"{place}.{name}".lstrip(".") if name else place
                yield from _spots(node, within, below, inside=called)


def _lines(statement: ast.stmt) -> tuple[int, int]:
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno or 0
    return statement.lineno, max(statement.lineno, last)


def _is_only_said(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, ast.JoinedStr)


def _speaks(node: ast.AST) -> bool:
    """Errors and logs may be left out, but their words are not changed."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).startswith("logger.")
    return isinstance(node, ast.Raise)


def _changes(spot: _Spot) -> Iterator[Change]:
    node = spot.node
    for kind, change in CHANGES:
        for other in change(node):
            yield kind, other
    if spot.field == "test" and not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield "condition", ast.UnaryOp(ast.Not(), node)


def _like(node: Any, **fields: Any) -> Any:
    """The node with other fields."""
    return type(node)(**dict(ast.iter_fields(node)) | fields)


def _comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            ops = list(node.ops)
            ops[index] = COMPARISONS[type(operator)]()
            yield _like(node, ops=ops)


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield _like(node, op=OPERATORS[type(node.op)]())
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield _like(node, op=OPERATORS[type(node.op)]())


def _boolean(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BoolOp):
        yield _like(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    if isinstance(node, ast.UnaryOp):
        yield node.operand


def _constant(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int | float):
            yield ast.Constant(node.value + 1 if abs(node.value) < 100 else 2 * node.value)


def _statement(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Assign):
        stored = node.targets[0]
        if isinstance(stored, ast.Attribute | ast.Subscript):
            yield ast.Pass()
    if isinstance(node, ast.Expr | ast.AugAssign | ast.Raise | ast.Delete):
        yield ast.Pass()
    if isinstance(node, ast.Return) and not (
        node.value is None or (isinstance(node.value, ast.Constant) and not node.value.value)
    ):
        yield ast.Return(ast.Constant(None))
    if isinstance(node, ast.Break):
        yield ast.Continue()
    if isinstance(node, ast.Continue):
        yield ast.Break()


def _keyword(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        for left_out in node.keywords:
            if left_out.arg not in (None, ASSERTED):
                yield _like(node, keywords=[one for one in node.keywords if one is not left_out])


def _order(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call) and len(node.args) > 1:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in EITHER_WAY:
            return
        start = int(name == "where")  # whose first one is a condition
        first, second = node.args[start : start + 2]
        starred = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
        if not starred and ast.dump(first) != ast.dump(second):
            before, after = node.args[:start], node.args[start + 2 :]
            yield _like(node, args=[*before, second, first, *after])


def _name(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name) and function.id in OTHER_NAME:
            yield _like(node, func=_like(function, id=OTHER_NAME[function.id]))
        if isinstance(function, ast.Attribute) and function.attr in OTHER_NAME:
            yield _like(node, func=_like(function, attr=OTHER_NAME[function.attr]))


CHANGES: tuple[tuple[str, Callable[[ast.AST], Iterator[ast.AST]]], ...] = (
    ("comparison", _comparison),
    ("arithmetic", _arithmetic),
    ("boolean", _boolean),
    ("constant", _constant),
    ("statement", _statement),
    ("keyword", _keyword),
    ("order", _order),
    ("name", _name),
)
