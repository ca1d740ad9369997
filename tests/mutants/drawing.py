"""Small faults in Python code: changes of one node of the syntax tree, drawn by a seed."""

import ast
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "amax": "amin", "any": "all", "all": "any", "sum": "mean", "mean": "sum"}
DISPENSABLE = {"abs", "clamp", "clone", "contiguous", "copy", "detach", "flatten", "float", "relu", "sqrt", "square"}
"""Methods whose call may be left out."""
CONTEXTS = {"autocast", "enable_grad", "no_autocast", "no_grad"}
"""Contexts and decorators that may be left out."""
UNSEEN = {"annotation", "returns", "bases"}
"""Fields of syntax nodes that only type checkers read, or that name a class's bases."""
UNSEEN_KEYWORDS = {"device", "strict"}
"""Keyword arguments that decide nothing on a CPU, or only in what cannot happen."""


class Fault(NamedTuple):
    """A change of one node."""

    node: ast.AST
    instead: ast.AST | None
    """None: the node is left out of its list."""


class Mutant(NamedTuple):
    """A module with a fault."""

    path: Path
    line: int
    """Of the fault."""
    change: str
    plain_line: int | None
    """Of the fault in `plain` of the module; none: it is in no function, so that it is run at import."""
    source: str
    """`plain` of the module, with the fault."""


def faults(module: ast.Module) -> Iterator[Fault]:
    """All faults that can be put into a module, in the order of its text."""
    for node in _seen(module):
        match node:
            case ast.Compare(ops=ops):
                for place, op in enumerate(ops):
                    changed = [*ops[:place], OPERATORS[type(op)](), *ops[place + 1 :]]
                    yield Fault(node, ast.Compare(node.left, changed, node.comparators))  # type: ignore[arg-type]
            case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in OPERATORS:
                fields = dict(ast.iter_fields(node)) | {"op": OPERATORS[type(op)]()}
                yield Fault(node, type(node)(**fields))
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
                yield Fault(node, node.operand)
            case ast.Constant(value=bool(value)):
                yield Fault(node, ast.Constant(not value))
            case ast.Constant(value=int(value) | float(value)):
                yield Fault(node, ast.Constant(value + 1))
                yield Fault(node, ast.Constant(value - 1))
            case ast.Name(id=name) if name in NAMES:
                yield Fault(node, ast.Name(NAMES[name]))
            case ast.Attribute(attr=name) if name in NAMES:
                yield Fault(node, ast.Attribute(node.value, NAMES[name]))
            case ast.Call(func=function, args=args, keywords=keywords):
                yield from (Fault(each, None) for each in keywords if each.arg and not _is_left_out(each, node))
                if len(args) > 1 and not isinstance(args[0], ast.Starred) and _name(node) not in ("min", "max"):
                    yield Fault(node, ast.Call(function, [args[1], args[0], *args[2:]], keywords))
                if isinstance(function, ast.Attribute) and function.attr in DISPENSABLE:
                    yield Fault(node, function.value)
            case ast.Expr(value=ast.Call()) | ast.Raise():
                yield Fault(node, ast.Pass())
            case ast.Return(value=ast.Tuple(elts=[one, two, *others])):
                yield Fault(node, ast.Return(ast.Tuple([two, one, *others])))
            case ast.FunctionDef(decorator_list=decorators):
                yield from (Fault(each, None) for each in decorators if _name(each) in CONTEXTS)
            case ast.With(items=items):
                yield from (
                    Fault(each, ast.withitem(ast.parse("__import__('contextlib').nullcontext()", mode="eval").body))
                    for each in items
                    if _name(each.context_expr) in CONTEXTS
                )
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
                    yield Fault(test, ast.UnaryOp(ast.Not(), test))


def _name(node: ast.expr) -> str:
    """The last name of what is called."""
    return ast.unparse(node.func if isinstance(node, ast.Call) else node).rpartition(".")[2]


def _seen(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that decide what happens: no types, no documentation, no text for people."""
    yield node
    if isinstance(node, ast.Raise):
        return
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in UNSEEN and not _is_left_out(child, node):
                yield from _seen(child)


def _is_left_out(node: ast.AST, parent: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Expr(value=ast.Constant()) | ast.Assert() | ast.FunctionDef(name="__repr__"):
            return True
        case ast.Assign(value=ast.BinOp(op=ast.BitOr())):
            return isinstance(parent, ast.Module)  # a union of types
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return True
        case ast.Call():
            return _name(node) in ("say", "add_argument", "ArgumentParser", "UserError")
        case ast.Expr(value=ast.Call() as call):
            return _name(call) in ("say", "add_argument")
        case ast.keyword(arg=name):
            return name in UNSEEN_KEYWORDS
    return False


class _Replace(ast.NodeTransformer):
    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def visit(self, node: ast.AST) -> Any:
        return self._fault.instead if node is self._fault.node else self.generic_visit(node)


def mutants(modules: Sequence[Path], seed: int, count: int) -> list[Mutant]:
    """`count` faults of all that can be put into modules, each as likely as any other."""
    places = [(path, n) for path in modules for n, _ in enumerate(faults(ast.parse(path.read_text())))]
    print(f"{len(places)} faults can be put into {len(modules)} modules", flush=True)
    return [_mutant(*place) for place in random.Random(seed).sample(places, count)]


def _mutant(path: Path, number: int) -> Mutant:
    original, tree = ast.parse(path.read_text()), ast.parse(plain(path))
    shown = list(faults(original))[number].node
    node, instead = list(faults(tree))[number]
    after = "(left out)" if instead is None or isinstance(instead, ast.Pass) else ast.unparse(instead)
    change = " ".join(f"{ast.unparse(node)} -> {after}".split())
    line = _line(node)
    is_run = any(_is_function_around(each, line) for each in ast.walk(tree))
    source = ast.unparse(ast.fix_missing_locations(_Replace(Fault(node, instead)).visit(tree)))
    return Mutant(path, _line(shown), change, line if is_run else None, source)


def plain(path: Path) -> str:
    """A module without comments, a statement a line."""
    return ast.unparse(ast.parse(path.read_text()))


def _line(node: ast.AST) -> int:
    return node.context_expr.lineno if isinstance(node, ast.withitem) else node.lineno  # type: ignore[attr-defined]


def _is_function_around(node: ast.AST, line: int) -> bool:
    return isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line <= (node.end_lineno or 0)
