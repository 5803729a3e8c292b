"""80/20 splits of every domain, by source image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitprune.data.domains import Domain, DomainError, DomainSet, Held
from vitprune.data.split import Indices, stratified_split

FRACTION = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """The two sides of every domain, as indices into its images, ascending."""

    large: Mapping[str, Indices]  # 80 %: trained on, or tested on where the domain is held out
    small: Mapping[str, Indices]  # 20 %: validation, or the oracle's


def split_domains(found: DomainSet, fraction: float, seed: int) -> Sides:
    """Per domain and class about `fraction` of the source images on the small side, by the seed.

    All images of one source image, in whichever domains, lie on one side. A source image is drawn where it stands
    first. Raises DomainError for a domain with one side empty, DataError unless 0 < fraction < 1.
    """
    taken: set[int] = set()
    seen: set[int] = set()
    for place, domain in enumerate(found.domains):
        new = [i for i, g in _firsts(domain) if g not in seen]
        seen |= {int(g) for g in domain.groups}
        if new:
            _, chosen = stratified_split(domain.labels[new], fraction, seed * 1009 + place)
            taken |= {int(domain.groups[new[i]]) for i in chosen}
    small = {d.name: np.flatnonzero([int(g) in taken for g in d.groups]) for d in found.domains}
    large = {d.name: np.flatnonzero([int(g) not in taken for g in d.groups]) for d in found.domains}
    for name in found.names:
        if not len(small[name]) or not len(large[name]):
            raise DomainError(
                f"domain {name} of {found.spec} has {len(large[name])} images to train on and {len(small[name])} to "
                "validate with; both need some, so give it more images, two of a class at least"
            )
    return Sides(large, small)


def _firsts(domain: Domain) -> list[tuple[int, int]]:
    """(index, group) of the first image of every source image."""
    groups, first = np.unique(domain.groups, return_index=True)
    return sorted(zip(first.tolist(), groups.tolist(), strict=True))


def unseen(found: DomainSet, sides: Sides, held: Held) -> Sides:
    """The sides, less those images of the held-out domains whose source image stands in a domain that is not."""
    known = np.concatenate([d.groups for d in found.domains if d.name not in held])
    both: list[dict[str, Indices]] = []
    for side in (sides.large, sides.small):
        left = dict(side)
        for domain in found.domains:
            if domain.name in held:
                own = side[domain.name]
                left[domain.name] = own[~np.isin(domain.groups[own], known)]
        both.append(left)
    for name in held:
        if not len(both[0][name]):
            raise DomainError(
                f"every image of the held-out domain {name} of {found.spec} also stands in another domain; hold out "
                "those together"
            )
    return Sides(both[0], both[1])
