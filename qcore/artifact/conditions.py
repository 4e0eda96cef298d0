"""Relations between the sizes of inputs, as data.

A graph holds for the sizes that took the same way through the forward (``n0 % 2 == 0``), and its
guard asks for that. In an artifact such a relation is a tree of lists, ``["eq", ["mod", "n0", 2],
0]``: an operation and its operands, which are trees, integers, truth values, and sizes by their
names. It is worked out over exact fractions by the table here; no text of it is ever evaluated.
"""

import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import attrs

from ..capture.guard import Condition
from ..errors import ArtifactError

__all__ = ["StoredCondition", "check_expression", "encode_expression", "shorten_place"]

_MAX_PARTS = 1000
_MAX_EXPONENT = 16
_LARGEST = 2**4096

_Number = Fraction | bool


# Name, number of operands (None: one or more), meaning, and what sympy and torch call it.
_TABLE: tuple[tuple[str, int | None, Callable[..., Any], tuple[str, ...]], ...] = (
    ("add", None, lambda *x: sum(x), ("Add",)),
    ("mul", None, lambda *x: math.prod(x), ("Mul",)),
    ("pow", 2, operator.pow, ("Pow", "PowByNatural", "FloatPow")),
    ("div", 2, operator.truediv, ("IntTrueDiv", "FloatTrueDiv")),
    ("floordiv", 2, lambda a, b: Fraction(a // b), ("FloorDiv", "CleanDiv")),
    ("ceildiv", 2, lambda a, b: Fraction(-(-a // b)), ("CeilDiv",)),
    ("mod", 2, operator.mod, ("Mod", "PythonMod")),
    ("window", 3, lambda a, b, c: Fraction(a // b) % c, ("ModularIndexing",)),
    ("max", None, max, ("Max",)),
    ("min", None, min, ("Min",)),
    ("floor", 1, lambda a: Fraction(math.floor(a)), ("floor", "FloorToInt")),
    ("ceil", 1, lambda a: Fraction(math.ceil(a)), ("ceiling", "CeilToInt")),
    ("trunc", 1, lambda a: Fraction(math.trunc(a)), ("TruncToInt", "TruncToFloat")),
    ("same", 1, lambda a: a, ("ToFloat", "Identity")),
    ("eq", 2, operator.eq, ("Equality",)),
    ("ne", 2, operator.ne, ("Unequality",)),
    ("lt", 2, operator.lt, ("StrictLessThan",)),
    ("le", 2, operator.le, ("LessThan",)),
    ("gt", 2, operator.gt, ("StrictGreaterThan",)),
    ("ge", 2, operator.ge, ("GreaterThan",)),
    ("and", None, lambda *x: all(x), ("And",)),
    ("or", None, lambda *x: any(x), ("Or",)),
    ("not", 1, operator.not_, ("Not",)),
)
_MEANING = {name: (count, function) for name, count, function, _ in _TABLE}
_NAME = {symbolic: name for name, _, _, names in _TABLE for symbolic in names}


@attrs.frozen(kw_only=True)
class StoredCondition(Condition):
    """A relation read from an artifact; ``expression`` is a checked tree.

    >>> even = StoredCondition(expression=["eq", ["mod", "n0", 2], 0])
    >>> even.holds({"n0": 4}), even.holds({"n0": 3}), even.describe()
    (True, False, 'eq(mod(n0, 2), 0)')
    """

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true for these sizes; one over other sizes can't be checked: true."""
        if any(name not in sizes for name in _sizes(self.expression)):
            return True
        try:
            return bool(_evaluate(self.expression, sizes))
        except (ZeroDivisionError, OverflowError):
            return False

    def describe(self) -> str:
        """The relation, and where it comes from."""
        return _text(self.expression) + (f" (asked at {self.place})" if self.place else "")


def _evaluate(tree: Any, sizes: Mapping[str, int]) -> _Number:
    if isinstance(tree, bool):
        return tree
    if isinstance(tree, int):
        return Fraction(tree)
    if isinstance(tree, str):
        return Fraction(sizes[tree])
    name, *operands = tree
    _, function = _MEANING[name]
    result: _Number = function(*(_evaluate(operand, sizes) for operand in operands))
    # Powers of powers would fill the memory before anybody knew whether they are true.
    if isinstance(result, Fraction) and max(abs(result.numerator), result.denominator) > _LARGEST:
        raise OverflowError
    return result


def _sizes(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    return [name for part in tree[1:] for name in _sizes(part)] if isinstance(tree, list) else []


def _text(tree: Any) -> str:
    if isinstance(tree, list):
        return f"{tree[0]}({', '.join(map(_text, tree[1:]))})"
    return str(tree)


def encode_expression(expression: Any, names: Mapping[str, str]) -> Any:
    """A symbolic truth value as a tree.

    Args:
        expression: of sympy, with the operations of torch; or a tree.
        names: what each size is called in the artifact.

    Returns:
        The tree; None where the expression is over something else than those sizes, so that nobody
        could check it.

    Raises:
        ArtifactError: it has an operation that is not in the table.
    """
    if isinstance(expression, str):
        return names.get(expression)
    if isinstance(expression, bool | int):
        return expression
    if isinstance(expression, list):
        parts = [encode_expression(part, names) for part in expression[1:]]
        return None if None in parts else [expression[0], *parts]
    return _encode_symbolic(expression, names)


def _encode_symbolic(expression: Any, names: Mapping[str, str]) -> Any:
    if expression.is_Symbol:
        return names.get(expression.name)
    if expression.is_Boolean and not expression.args:
        return bool(expression)
    if expression.is_Integer:
        return int(expression)
    if expression.is_Rational:
        return ["div", int(expression.p), int(expression.q)]
    name = _NAME.get(type(expression).__name__)
    if name is None:
        raise ArtifactError(
            f"the program holds for sizes with {expression}, and {type(expression).__name__} is "
            "not among the operations that such a condition may have in an artifact"
        )
    parts = [encode_expression(part, names) for part in expression.args]
    return None if any(part is None for part in parts) else [name, *parts]


def check_expression(tree: Any, where: str) -> None:
    """Refuses what is no tree of the table's operations.

    Raises:
        ArtifactError: it is not.
    """
    pending, parts = [tree], 0
    while pending:
        part = pending.pop()
        parts += 1
        if parts > _MAX_PARTS:
            raise ArtifactError(f"{where}: it has more than {_MAX_PARTS} parts")
        if isinstance(part, list):
            head, *operands = part or [None]
            known = _MEANING.get(head) if isinstance(head, str) else None
            if known is None or not operands or known[0] not in (None, len(operands)):
                raise ArtifactError(f"{where}: {str(part)[:60]} is no operation on sizes")
            if head == "pow" and not (isinstance(part[2], int) and abs(part[2]) <= _MAX_EXPONENT):
                raise ArtifactError(f"{where}: the exponent {str(part[2])[:20]} is too much")
            pending.extend(operands)
        elif not isinstance(part, str | int):
            raise ArtifactError(f"{where}: {str(part)[:60]} is no size and no number")


def shorten_place(place: str) -> str:
    """``file.py:12`` without the folders, which are those of one machine.

    >>> shorten_place("/home/me/model.py:12")
    'model.py:12'
    """
    return PurePath(place).name
