"""What gradients say of units: sums of gradient x value, or of its square, over all parameters of a unit.

The first is what the loss changes by, to first order, as a unit's parameters are scaled to nothing: its derivative with
respect to a factor on the unit, once for the side that makes it and once for each side that reads it. A branch's term
is that of all parameters of its last module.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitprune.arrays import Floats
from vitprune.calibrate import CalibrationError, visit
from vitprune.errors import ModelError, VitpruneError
from vitprune.models.loaded import logits
from vitprune.modes import evaluating
from vitprune.score.reduce import reduce_slices
from vitprune.score.types import ScoreError, ScoreInputs
from vitprune.trace.graph import Group


def gradient_terms(inputs: ScoreInputs, *, one_by_one: bool, squares: bool = False) -> Iterator[dict[str, Floats]]:
    """Group name -> (lanes, size) of the units' terms, for each batch (or for each image) of (images, labels).

    squares: of (gradient x value)^2, parameter by parameter, instead of gradient x value.

    The loss is the mean cross-entropy, in eval mode. Gradients on the model's parameters stay as they are.

    Raises ScoreError for batches without labels, or without any batch; CalibrationError, with the layer's name, for
    activations that are NaN or infinite.
    """
    named = dict(inputs.model.named_parameters())
    aliases = {name: id(p) for name, p in inputs.model.named_parameters(remove_duplicate=False)}
    first = {id(p): name for name, p in named.items()}
    known = {name: first[key] for name, key in aliases.items()}
    device = next(iter(named.values())).device
    frozen = [p for p in named.values() if not p.requires_grad]
    seen = False
    try:
        for p in frozen:
            p.requires_grad_(True)
        with evaluating(inputs.model):
            for images, labels in _labelled(inputs, one_by_one):
                seen = True
                with torch.enable_grad():
                    loss = F.cross_entropy(logits(inputs.model(images.to(device))).float(), labels.to(device))
                    if not bool(torch.isfinite(loss)):
                        raise _not_finite(inputs.model, images)
                    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
                terms: dict[str, Tensor | None] = {}
                for (name, p), grad in zip(named.items(), grads, strict=True):
                    term = None if grad is None else grad * p.detach()
                    terms[name] = term.square() if squares and term is not None else term
                yield {g.name: _term(g, terms, known, inputs.reduction) for g in inputs.graph.groups}
    finally:
        for p in frozen:
            p.requires_grad_(False)
    if not seen:
        raise ScoreError("gradient scores need labelled images, but got no batch")


def _not_finite(model: nn.Module, images: Tensor) -> VitpruneError:
    """The error that names the first layer of whose activations some are no numbers, where that can be found."""
    try:
        visit(model, [images], lambda _site, _x, _y: None)
    except CalibrationError as error:
        return error
    except ModelError:  # cannot be run layer by layer
        pass
    return ScoreError(
        "the loss on the calibration images is NaN or infinite; look at the images' normalisation and the labels, or "
        "score the model in float32"
    )


def _labelled(inputs: ScoreInputs, one_by_one: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in inputs.batches or ():
        if isinstance(batch, Tensor) or len(batch) < 2:
            raise ScoreError("gradient scores need (images, labels) batches, but got images alone")
        images, labels = batch[0], batch[1]
        if one_by_one:
            yield from ((images[i : i + 1], labels[i : i + 1]) for i in range(len(images)))
        else:
            yield images, labels


def _term(group: Group, terms: dict[str, Tensor | None], known: dict[str, str], reduction: str) -> Floats:
    total = np.zeros((group.lanes, group.size))
    parts: list[Floats] = []
    if group.kind == "block":
        inside = {known[n] for n in known if n.startswith(f"{group.modules[-1]}.")}
        total += sum(float(t.sum(dtype=torch.float64)) for n in sorted(inside) if (t := terms[n]) is not None)
        return total
    for member in group.members:
        term = terms.get(known.get(member.tensor, ""))
        if term is not None:
            other = [d for d in range(term.dim()) if d != member.dim]
            line = term.double().sum(dim=other) if other else term.double()
            part = line.cpu().numpy()[member.index].sum(axis=2)
            parts.append(np.abs(part) if reduction == "max" else part)
    return reduce_slices(parts, reduction) if parts else total


def mean_of(terms: Iterator[dict[str, Floats]], power: int) -> dict[str, Floats]:
    """Mean over the batches of |term|^power."""
    total: dict[str, Floats] = {}
    count = 0
    for found in terms:
        count += 1
        for name, values in found.items():
            total[name] = total.get(name, 0.0) + np.abs(values) ** power
    return {name: values / count for name, values in total.items()}
