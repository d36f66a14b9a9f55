"""Types that geoseg's own functions and classes declare, read from their source without importing it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

_NAMES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
_LISTS = ("list", "tuple", "Sequence")


def written_types(target: str) -> dict[str, set[type]]:
    """Types of those parameters that take plain values only; none where the object is not written in geoseg.

    What a class leaves to the classes above it is not looked for.

    >>> sorted(kind.__name__ for kind in written_types("geoseg.predictors.img2img.Img2Img")["second_strength"])
    ['NoneType', 'float']
    """
    names = target.split(".")
    if names[0] != _PACKAGE.name:
        return {}
    for i in range(2, len(names)):
        file = _PACKAGE.joinpath(*names[1:i]).with_suffix(".py")
        if file.is_file():
            return _parameters(_parsed(file), names[i:])
    return {}


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _parameters(node: ast.AST, names: list[str]) -> dict[str, set[type]]:
    for name in names:
        inside = [one for one in getattr(node, "body", []) if getattr(one, "name", None) == name]
        if not inside:
            return {}
        node = inside[-1]
    if isinstance(node, ast.ClassDef):
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
            return _plain({ast.unparse(one.target): one.annotation for one in fields})
        return _parameters(node, ["__init__"])
    if not isinstance(node, ast.FunctionDef):
        return {}
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return _plain({argument.arg: argument.annotation for argument in arguments})


def _plain(annotations: dict[str, ast.expr | None]) -> dict[str, set[type]]:
    found = {name: _kinds(node) for name, node in annotations.items()}
    return {name: kinds for name, kinds in found.items() if kinds}


def _kinds(node: ast.expr | None) -> set[type]:
    """The types of an annotation, none where it names any other."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _kinds(node.left), _kinds(node.right)
        return left | right if left and right else set()
    if isinstance(node, ast.Constant) and node.value is None:
        return {type(None)}
    if isinstance(node, ast.Subscript):
        return {list} if ast.unparse(node.value) in _LISTS else set()
    return {_NAMES[node.id]} if isinstance(node, ast.Name) and node.id in _NAMES else set()
