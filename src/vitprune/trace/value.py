"""A tensor as the walk sees it: its shape, and the labels along its axes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from vitprune.trace.labels import Array


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """Labels of the positions along one axis.

    `array` has the tensor's number of dims; it has size 1 in every dim on which the labels do not depend. It
    depends on its own axis `dim`, and maybe on others: the dims of a head differ from head to head.
    """

    array: Array
    dim: int

    def varying(self) -> tuple[int, ...]:
        """The dims on which the labels depend."""
        return tuple(d for d, n in enumerate(self.array.shape) if n > 1)


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Marks a tensor as attention scores or probabilities, so that the axes around it can be named."""

    normalised: bool  # after the softmax
    contracted: tuple[Array, ...] = ()  # labels of the dims that the product of q and k summed over


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """Shape and fields of one tensor; several fields on one axis stand from coarse (heads) to fine (dims)."""

    shape: tuple[int, ...]
    fields: tuple[Field, ...] = ()
    depends: bool = False  # on the model's input
    attention: Attention | None = None
    names: frozenset[str] = field(default=frozenset())  # parameters that it is a plain view of

    def on(self, dim: int) -> tuple[Field, ...]:
        """The fields of one axis."""
        dim %= max(1, len(self.shape))
        return tuple(f for f in self.fields if f.dim == dim)

    def with_fields(self, fields: tuple[Field, ...] | list[Field]) -> Value:
        """The same tensor with other fields, sorted from coarse to fine."""
        return replace(self, fields=tuple(sort_fields(fields)))


def squeeze_constant(array: Array) -> Array:
    """The array with size 1 in every dim along which it does not vary."""
    for d in range(array.ndim):
        if array.shape[d] > 1:
            first = array.take([0], axis=d)
            if np.array_equal(np.broadcast_to(first, array.shape), array):
                array = first
    return array


def sort_fields(fields: tuple[Field, ...] | list[Field]) -> list[Field]:
    """Fields by axis; on one axis those with fewer distinct labels first."""
    if len(fields) < 2:
        return list(fields)
    return sorted(fields, key=lambda f: (f.dim, len(np.unique(f.array))))
