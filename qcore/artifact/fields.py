"""What a loaded program gives in the place of a container class that an artifact can't name."""

from collections.abc import Iterable
from typing import Any

import torch.utils._pytree as pytree

__all__ = ["Fields"]


class Fields(dict[str, Any]):
    """Named results: a dictionary whose items are attributes too, and can be counted off.

    So code that was written for the dataclass or the ``ModelOutput`` of a Hugging Face model goes
    on working, also in a model around the program.

    Args:
        items: name and value of each field.
        absent: names of fields that the class has and that were not set; as attributes they are
            None.

    >>> output = Fields([("logits", 1), ("states", 2)], absent=("loss",))
    >>> output["logits"], output.states, output[0], output[:2], output.loss
    (1, 2, 1, (1, 2), None)
    """

    def __init__(
        self, items: Iterable[tuple[str, Any]] = (), *, absent: Iterable[str] = ()
    ) -> None:
        super().__init__(items)
        self.__dict__["_absent"] = tuple(absent)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | slice):
            return self.to_tuple()[key]
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        if name in self.__dict__.get("_absent", ()):
            return None
        raise AttributeError(f"there is no field {name!r}; there are {', '.join(self)}")

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, in order."""
        return tuple(self.values())


def _flatten(fields: Fields) -> tuple[list[Any], Any]:
    return list(fields.values()), (tuple(fields), fields.__dict__["_absent"])


def _unflatten(values: Iterable[Any], context: Any) -> Fields:
    names, absent = context
    return Fields(zip(names, values, strict=True), absent=absent)


def _flatten_with_keys(fields: Fields) -> tuple[list[tuple[pytree.KeyEntry, Any]], Any]:
    values, context = _flatten(fields)
    return [(pytree.MappingKey(k), v) for k, v in zip(fields, values, strict=True)], context


# As torch does for its own containers: a tree that it does not know is a leaf to it.
pytree.register_pytree_node(
    Fields,
    _flatten,
    _unflatten,
    serialized_type_name="qcore.artifact.fields.Fields",
    flatten_with_keys_fn=_flatten_with_keys,
)
