"""A module as an exported program in which everything that depends on no image is a constant.

Resampled positions, gathered biases and masks are then stored as they come out: an engine would compute them
anew in every call, or lacks the operator. `narrowed` keeps tensors to the dimensions that an engine has: the
rows of windows, and heads of a product, are split off and moved in six, where four or five say the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["exported", "folded", "narrowed"]

SAME = ("aten::alias", "aten::detach", "aten::lift_fresh_copy")
"""Operators that return what they are given."""
VIEWS = ("aten::view", "aten::_unsafe_view", "aten::reshape")
COPIES = ("aten::clone", "aten::contiguous")


class _Images(nn.Module):
    """Names the input: engines take the name that `forward` gives it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


def exported(model: nn.Module, images: torch.Tensor) -> ExportedProgram:
    """The program of a module for just the shape of `images`, in ATen's operators; its input is `images`."""
    with torch.no_grad():
        return torch.export.export(_Images(model), (images,)).run_decompositions({})


def folded(program: ExportedProgram, images: torch.Tensor) -> ExportedProgram:
    """The same program with its constants computed."""
    module = _module(program)
    with torch.no_grad():
        _fold(module)
        _clean(module)
        return exported(module, images)


def narrowed(program: ExportedProgram, images: torch.Tensor, most: int) -> ExportedProgram:
    """The same program with no more than `most` dimensions where dimensions are split, permuted and joined.

    Dimensions that stay side by side are left joined. What does not follow this pattern stays as it is.
    """
    module = _module(program)
    for node in list(module.graph.nodes):
        if _name(node) == "aten::permute" and len(_axes(node)) > most:
            _narrow(module, node, most)
    _clean(module)
    return exported(module, images)


def _module(program: ExportedProgram) -> GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def _clean(module: GraphModule) -> None:
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _name(node: Node) -> str:
    """`aten::view`; "" of what is no operator."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return str(schema.name) if schema is not None else ""


def _fold(module: GraphModule) -> None:
    known: dict[Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = _attribute(module, str(node.target))
        elif node.op == "call_function":
            if _name(node) in SAME:
                (same,) = node.all_input_nodes
                node.replace_all_uses_with(same)
            elif _name(node).startswith("aten::_assert"):  # of types and shapes, which are fixed
                module.graph.erase_node(node)
            elif _is_pure(node) and all(each in known for each in node.all_input_nodes):
                known[node] = _computed(node, known)
    for number, (node, value) in enumerate(known.items()):
        outside = [user for user in node.users if user not in known]
        if node.op == "call_function" and outside and isinstance(value, torch.Tensor):
            name = f"folded_{number}"
            module.register_buffer(name, value.detach().clone())
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in known)


def _is_pure(node: Node) -> bool:
    """Whether its value depends on its inputs alone, and it leaves them as they are."""
    schema = getattr(node.target, "_schema", None)
    tags = getattr(node.target, "tags", ())
    return (schema is None or not schema.is_mutable) and torch.Tag.nondeterministic_seeded not in tags


def _computed(node: Node, known: dict[Node, Any]) -> Any:
    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda each: known[each])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found


# --- fewer dimensions -------------------------------------------------------------------------------


def _narrow(module: GraphModule, permute: Node, most: int) -> None:
    """Replace view -> permute -> (view, or its parts) by the same in fewer dimensions, if it is that."""
    view = permute.args[0]
    if not isinstance(view, Node) or _name(view) not in VIEWS:
        return
    shape, order = list(view.meta["val"].shape), _axes(permute)
    runs = _runs(order)
    ends = _ends(permute, split=runs[0])
    if ends is None or len(runs) > most:
        return
    inside = sorted(range(len(runs)), key=lambda place: runs[place][0])
    graph = module.graph
    with graph.inserting_before(permute):
        sides = [math.prod(shape[axis] for axis in runs[place]) for place in inside]
        joined = graph.call_function(torch.ops.aten.reshape.default, (view.args[0], sides))
        moved = graph.call_function(
            torch.ops.aten.permute.default, (joined, [inside.index(place) for place in range(len(runs))])
        )
    for end in ends:
        with graph.inserting_before(end):
            source = moved
            if _name(end) not in VIEWS:  # a part: `moved[place]`
                place: Any = end.args[-1]
                source = graph.call_function(torch.ops.aten.select.int, (moved, 0, place))
            sides = list(end.meta["val"].shape)
            end.replace_all_uses_with(graph.call_function(torch.ops.aten.reshape.default, (source, sides)))


def _axes(permute: Node) -> list[int]:
    order: Any = permute.args[1]
    return [axis % len(order) for axis in order]


def _runs(order: list[int]) -> list[list[int]]:
    """The permuted axes, those together that were neighbours before: [[3], [0, 1], [4]] of 3, 0, 1, 4."""
    runs: list[list[int]] = []
    for axis in order:
        if runs and axis == runs[-1][-1] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


def _ends(permute: Node, split: list[int]) -> list[Node] | None:
    """The views of what was permuted, or its parts along the first axis; None: something else uses it."""
    ends: list[Node] = []
    for user in permute.users:
        if _name(user) in VIEWS:
            ends.append(user)
        elif _name(user) in COPIES:
            more = _ends(user, split)
            if more is None:
                return None
            ends += more
        elif _name(user) == "aten::unbind" and len(split) == 1 and user.args[1:] in ((), (0,)):
            ends += list(user.users)  # getitem
        elif _name(user) == "aten::select" and len(split) == 1 and user.args[1] == 0:
            ends.append(user)
        else:
            return None
    return ends
