"""A model's weights times the factors of its units: what masks do to a model, whatever decides of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.masks.errors import MaskError
from vitprune.masks.layout import Layout, Line
from vitprune.masks.norms import kept_forward
from vitprune.shrink import Keep


class Product:
    """Holds a model whose parameters are weights times factors between two steps; the weights are kept aside.

    Norms take their statistics over the kept positions meanwhile. A step costs three passes over the masked weights
    (input columns of the layers that read the masked units).
    """

    def __init__(self, model: nn.Module, layout: Layout, norms: Sequence[Line], rms: Collection[str]) -> None:
        """norms: lines of the norms, by module path; rms: those of them that take no mean.

        Nothing is changed before `open_`. Raises MaskError when weights are frozen.
        """
        named = dict(model.named_parameters(remove_duplicate=False))
        device = next(iter(named.values())).device
        self._ids = torch.as_tensor(layout.ids, device=device)
        self._unions = torch.as_tensor(layout.unions, device=device)
        self._one = torch.ones(1, device=device)
        self._held: dict[str, tuple[nn.Parameter, tuple[Line, ...]]] = {}
        for line in layout.lines:
            _, lines = self._held.get(line.tensor, (named[line.tensor], ()))
            self._held[line.tensor] = (named[line.tensor], (*lines, line))
        frozen = [name for name, (p, _) in self._held.items() if not p.requires_grad]
        if frozen:
            raise MaskError(f"masks need the gradients of the weights they multiply, but {frozen[0]} has none")
        self._norms = [(model.get_submodule(line.tensor), line, line.tensor in rms) for line in norms]
        self.kept = [torch.ones(line.stop - line.start, device=device) for line in norms]  # positions, norm by norm
        self.weights: dict[str, Tensor] = {}  # the unmasked values, while the model holds masked ones
        self._spare: dict[str, Tensor] = {}
        self._factors = self._sounds = torch.ones(layout.units, device=device)
        self.is_open = False

    def open_(self) -> None:
        """Takes hold of the model: `write_` comes next, and its norms see kept positions only."""
        assert not self.is_open
        self.is_open = True
        self.weights = {name: p.data for name, (p, _) in self._held.items()}
        self._spare = {name: torch.empty_like(p.data) for name, (p, _) in self._held.items()}
        for (module, _, rms), kept in zip(self._norms, self.kept, strict=True):
            vars(module)["forward"] = kept_forward(module, kept, rms)

    def let_go_(self) -> dict[str, Tensor]:
        """Leaves the model a plain one that holds the masked weights; the unmasked ones, for `give_back_`."""
        weights, self.weights, self._spare, self.is_open = self.weights, {}, {}, False
        for module, _, _ in self._norms:
            vars(module).pop("forward", None)
        return weights

    def give_back_(self, weights: Mapping[str, Tensor]) -> None:
        """Puts into the model what `let_go_` gave."""
        for name, (parameter, _) in self._held.items():
            parameter.data = weights[name]

    @torch.no_grad()
    def close_(self) -> None:
        """Lets go of the model and leaves the masked weights in it, in the storage of the unmasked ones."""
        weights = self.let_go_()
        for name, (parameter, _) in self._held.items():
            weights[name].copy_(parameter.data)
        self.give_back_(weights)

    def extended(self, values: Tensor) -> Tensor:
        """(units + 1 + unions,): the units' values, the constant 1, and 0 or 1 for what several vectors decide."""
        parts = [values, self._one.to(values.dtype)]
        if len(self._unions):
            parts.append(self._sounds[self._unions].amax(1).to(values.dtype))
        return torch.cat(parts)

    @torch.no_grad()
    def write_(self, factors: Tensor, sounds: Tensor) -> None:
        """Sets the parameters to weights times factors, and the norms to the positions of units that sound.

        factors: (units,); sounds: (units,) 0 or 1.
        """
        self._factors, self._sounds = factors, sounds
        lines = self.extended(factors)[self._ids].prod(1)
        for name, (parameter, mine) in self._held.items():
            target, weights = self._spare[name], self.weights[name]
            for i, line in enumerate(mine):
                factor = _along(lines[line.start : line.stop], line.dim, weights.ndim).to(weights.dtype)
                torch.mul(target if i else weights, factor, out=target)
            parameter.data = target
        if self._norms:
            kept = self.extended(sounds)[self._ids].prod(1)
            for (_, line, _), held in zip(self._norms, self.kept, strict=True):
                held.copy_(kept[line.start : line.stop])

    @torch.no_grad()
    def pull_back_(self) -> Tensor:
        """After a backward pass: the loss' gradient by the factors, (units,).

        Gives the optimizer the unmasked weights with their own gradients, until `write_` comes again.
        """
        extended = self.extended(self._factors)
        columns = extended[self._ids]
        lines = columns.prod(1)
        slopes = torch.zeros_like(lines)
        for name, (parameter, mine) in self._held.items():
            weights = self.weights[name]
            parameter.data = weights
            if parameter.grad is None:
                continue
            factors = [_along(lines[m.start : m.stop], m.dim, weights.ndim).to(weights.dtype) for m in mine]
            product = parameter.grad * weights
            for i, line in enumerate(mine):
                others = [f for j, f in enumerate(factors) if j != i]
                slopes[line.start : line.stop] = _summed(product, others, line.dim).to(slopes.dtype)
            for factor in factors:
                parameter.grad.mul_(factor)
        gradient = torch.zeros_like(extended)
        for i in range(columns.shape[1]):
            rest = torch.cat([columns[:, :i], columns[:, i + 1 :]], dim=1).prod(1)
            gradient.index_add_(0, self._ids[:, i], slopes * rest)
        return gradient[: len(self._factors)]

    def silenced(self, keep: Keep, values: Tensor) -> dict[str, int]:
        """Parameter name -> elements that `keep` leaves and that units of value 0 silence, where there are any."""
        lines = self.extended(values)[self._ids].prod(1).cpu().numpy()
        found: dict[str, int] = {}
        for name, (parameter, mine) in self._held.items():
            stays = [np.ones(n, dtype=bool) for n in parameter.shape]
            for dim, kept in enumerate(keep.tensor(name)):
                if kept is not None:
                    stays[dim] = np.isin(np.arange(parameter.shape[dim]), kept)
            sounds = [s.copy() for s in stays]
            for line in mine:
                sounds[line.dim] &= lines[line.start : line.stop] > 0
            lost = math.prod(int(s.sum()) for s in stays) - math.prod(int(s.sum()) for s in sounds)
            if lost:
                found[name] = lost
        return found


def _along(line: Tensor, dim: int, ndim: int) -> Tensor:
    """A (n,) vector shaped to multiply dim `dim` of a tensor with `ndim` dims."""
    return line.view([-1 if d == dim else 1 for d in range(ndim)])


def _summed(product: Tensor, others: Sequence[Tensor], dim: int) -> Tensor:
    """(n,): the product times the factors of the other dims, summed over all dims but `dim`."""
    if product.ndim == 2 and len(others) == 1:
        other = others[0].flatten()
        return product @ other if dim == 0 else other @ product
    for other in others:
        product = product * other
    rest = [d for d in range(product.ndim) if d != dim]
    return product.sum(rest) if rest else product
