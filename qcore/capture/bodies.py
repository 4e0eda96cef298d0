"""The bodies of raised calls: what a leaf module does in eval mode, as operations, for copying."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch.utils._pytree as pytree
from torch import fx

from ..errors import CaptureError
from .markers import MARKERS, Call

__all__ = ["Body"]


@attrs.frozen(kw_only=True, eq=False)
class Body:
    """The flat nodes of one call of a leaf.

    Args:
        call: the call: its arguments and results.
        arg_spec: tree of the arguments and keyword arguments of its node.
        enters: the markers of its tensor arguments.
        exits: the markers of its tensor results.
        nodes: what lies between them, in order; ``get_attr`` nodes among them.
        changes: name of an operation among them that changes the model's state, or None.
        outer: sizes and inputs that the nodes use but which stand before the call, with the name of
            the same value in the raised graph where it has one.
    """

    call: Call
    arg_spec: pytree.TreeSpec
    enters: tuple[fx.Node, ...]
    exits: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    changes: str | None
    outer: Mapping[fx.Node, str | None]

    def copy_to(
        self,
        graph: fx.Graph,
        node: fx.Node,
        values: Mapping[fx.Node, Any],
        get_attr: Callable[[fx.Node], fx.Node],
    ) -> Any:
        """Write the nodes at the insert point of ``graph``.

        Args:
            graph: where they go.
            node: the ``call_module`` node, whose arguments are what goes in.
            values: for nodes of the graph of ``node``: what stands for them in ``graph``.
            get_attr: for a ``get_attr`` node of the body: the node of ``graph`` with that tensor.

        Returns:
            What the module returns, with nodes of ``graph`` for its tensors.
        """
        if self.changes is not None:
            raise CaptureError(
                f"'{self.call.path}' changes its own state in eval mode ({self.changes}), so it "
                "can't become a part of a program"
            )
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        if spec != self.arg_spec:
            raise CaptureError(
                f"call '{node.name}' of '{self.call.path}': its arguments are not those that were "
                "captured; change the values of arguments, not their number and structure"
            )
        copied: dict[fx.Node, Any] = {}
        for slot, leaf in zip(self.call.arg_slots, leaves, strict=True):
            if slot.kind == "tensor":
                copied[self.enters[slot.index]] = self._value(leaf, values)
        named = {n.name: n for n in node.graph.nodes} if self.outer else {}

        def resolve(part: fx.Node) -> Any:
            if part not in copied:
                twin = named.get(self.outer.get(part) or "")
                if twin is not None and twin in values:
                    copied[part] = values[twin]
                elif part.op == "call_function" and part.target not in MARKERS:
                    copied[part] = graph.node_copy(part, resolve)
                else:
                    raise CaptureError(
                        f"the body of '{self.call.path}' uses '{part.name}'; give its value too"
                    )
            return copied[part]

        for part in self.nodes:
            copied[part] = (
                get_attr(part) if part.op == "get_attr" else graph.node_copy(part, resolve)
            )
        results = [
            resolve(self.exits[slot.index].args[0])  # type: ignore[arg-type]
            if slot.kind == "tensor"
            else slot.value
            for slot in self.call.out_slots
        ]
        assert self.call.out_spec is not None
        return pytree.tree_unflatten(results, self.call.out_spec)

    @staticmethod
    def _value(leaf: Any, values: Mapping[fx.Node, Any]) -> Any:
        if isinstance(leaf, fx.Node) and leaf not in values:
            raise CaptureError(f"no value is given for '{leaf.name}', an argument of the call")
        return values[leaf] if isinstance(leaf, fx.Node) else leaf
