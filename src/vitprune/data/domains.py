"""Images of the same classes out of several domains, and which domains are held out together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np

from vitprune.data.augment import AugmentSettings
from vitprune.data.idx import Images
from vitprune.data.images import Files
from vitprune.data.split import Indices
from vitprune.errors import DataError

Held = tuple[str, ...]  # names of domains that are held out together


class DomainError(DataError):
    """Domains that are missing, malformed or do not fit each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """The images of one domain."""

    name: str
    images: Images | Files
    groups: Indices  # (n,): equal numbers, in other domains too, are of one source image

    @property
    def labels(self) -> Indices:
        """(n,): the class index of every image."""
        return np.asarray(self.images.labels, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class DomainSet:
    """Several domains with the same classes."""

    spec: str
    domains: tuple[Domain, ...]
    classes: tuple[str, ...]
    protocol: tuple[Held, ...]  # what "all" holds out, one after the other
    augment: AugmentSettings = field(default_factory=AugmentSettings.none)  # that leaves every domain what it is
    turned: bool = False  # domains are rotations: mirrored or sheared images would be of others
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the domains, in order."""
        return tuple(d.name for d in self.domains)

    def holds(self, asked: str | Iterable[Sequence[str]]) -> tuple[Held, ...]:
        """Which domains are held out, one after the other: "all", names joined by commas, or tuples of names.

        "all" is the set's own protocol, mostly each domain once. A plus joins domains that are held out together, such
        as "0+90". Raises DomainError for names that do not exist or stand twice, and where nothing is left to train on.
        """
        if asked == "all":
            return self.protocol
        given = parse_held(asked) if isinstance(asked, str) else tuple(tuple(h) for h in asked)
        if not given:
            raise DomainError(f"--held-out needs domains of {self.spec}, but got none: {', '.join(self.names)}, or all")
        for held in given:
            self._check(held)
        every = [name for held in given for name in held]
        for name in every:
            if every.count(name) > 1:
                raise DomainError(
                    f"--held-out must name a domain once, but names {name} {every.count(name)} times; a study of "
                    "another choice goes into a folder of its own"
                )
        return given

    def _check(self, held: Held) -> None:
        for name in held:
            if name not in self.names:
                near = get_close_matches(name, self.names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DomainError(
                    f"--held-out must be domains of {self.spec} ({', '.join(self.names)}), but got {name!r}{hint}"
                )
        if not held or len(held) == len(self.names):
            raise DomainError(
                f"--held-out must leave a domain of {self.spec} to train on, but {join(held)!r} leaves "
                f"{'all of them' if not held else 'none'}"
            )


def parse_held(text: str) -> tuple[Held, ...]:
    """The groups of names in "photo,0+90"."""
    groups = (tuple(n.strip() for n in part.split("+") if n.strip()) for part in text.split(","))
    return tuple(g for g in groups if g)


def join(held: Held) -> str:
    """The text that `parse_held` takes."""
    return "+".join(held)
