"""Which layer of one side is which of the other, where fusions may differ."""

from ..planning import PlanRow
from .sides import Side

__all__ = ["aligned"]


def aligned(a: Side, b: Side) -> dict[str, str]:
    """The layers of A that B has too, with their names there.

    Layers of one name are the same if the same parts were fused into them. If more were fused into
    one, it is the layer in which the other side's chain of these parts ends: where A has ``conv``
    with an addition and B has both by themselves, A's ``conv`` is B's ``add``.
    """
    pairs = {
        name: name
        for name in a.operations
        if name in b.operations and a.fused(name) == b.fused(name)
    }
    same = set(pairs)
    for name in a.operations:
        if name in same or name not in b.operations:
            continue
        in_b, in_a = _end(b, name, a.fused(name), same), _end(a, name, b.fused(name), same)
        if in_b is not None:
            pairs[name] = in_b
        elif in_a is not None:
            pairs[in_a] = name
    return {name: pairs[name] for name in a.operations if name in pairs}


def _end(side: Side, name: str, parts: tuple[str, ...], taken: set[str]) -> str | None:
    """The layer in which a chain of single steps ends that begins with a layer.

    Args:
        side: where the steps are layers of their own.
        name: of the first.
        parts: all that follow it.
        taken: layers that the other side has by themselves.
    """
    own = side.fused(name)
    if parts[: len(own)] != own:
        return None
    left = parts[len(own) :]
    names = [row.name for row in side.plan.rows]
    rows = side.plan.rows[names.index(name) + 1 :] if name in names else ()
    last = None
    for row in rows:
        steps = _steps(row, left)
        if row.name in side.operations and row.name not in taken and steps == left[: len(steps)]:
            last, left = row.name, left[len(steps) :]
        if not left:
            return last
    return None


def _steps(row: PlanRow, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of a layer as others list them: modules by name, functions by operation."""
    first = row.name if wanted[:1] == (row.name,) else row.op
    return (first, *row.fused)
