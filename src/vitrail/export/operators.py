"""Operators of an exported program, and where in the model they come from, for what an engine lacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vitrail.errors import InputError
from vitrail.words import first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["lacking", "operator", "origin"]


def lacking(label: str, operators: Iterable[str], program: ExportedProgram, error: Exception) -> InputError:
    """One sentence that names operators and where they come from; what was raised, if it names none."""
    wanted = [name.partition(".")[0] for name in dict.fromkeys(operators)]
    if not wanted:
        return InputError(f"{label} cannot take this model ({first_line(error)}): use another engine.")
    said = [f"{name}{origin(name, program)}" for name in wanted]
    return InputError(
        f"{label} has no operator {' and no '.join(said)}: use another engine, or rewrite that module."
    )


def origin(name: str, program: ExportedProgram) -> str:
    """` (used in blocks.0, an Attention)` of the first node with that operator; "" where it is not known."""
    for node in program.graph.nodes:
        if node.op == "call_function" and operator(node.target) == name:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            if stack:
                path, kind = stack[-1]
                kind = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
                return f" (used in {path or 'the model itself'}, a {kind})"
    return ""


def operator(target: Any) -> str:
    """`aten::lgamma` of an operator, in any dialect."""
    schema = getattr(target, "_schema", None)
    return str(schema.name) if schema is not None else str(target)
