"""Domains made of real images by stated transforms: rotations, edges, negatives, colours, noise, blur.

Every source image stands in one domain alone, and which one is the same for every seed.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
import torch

from vitprune.data.augment import AugmentSettings
from vitprune.data.domains import Domain, DomainError, DomainSet
from vitprune.data.idx import FASHION_CLASSES, Images, find_fashion_mnist, read_split
from vitprune.data.split import balanced_subset
from vitprune.data.transforms import CHANGES, rotated

ANGLES = (0, 15, 30, 45, 60, 75, 90)
OUTER = ("0", "90")  # held out together
TRAINED = {"15-75": (15, 30, 45, 60, 75), "30-60": (30, 45, 60)}
USUAL = ("plain", "edges", "inverted", "coloured", "noise", "blur")
MOST = 10_000  # images per domain
SPECS = ("rotated-fashion-mnist[-sample][:15-75|30-60]", "fashion-mnist-domains[-sample][:TRANSFORM[=STRENGTH],...]")
# Crops, mirroring and changes of brightness leave edges, negatives, noise and blur what they are.
GENTLE = AugmentSettings(flip=True, resized_crop=0.7, color_jitter=0.3, grayscale=0.1)


def is_made(spec: str) -> bool:
    """Whether the text names a set of this file."""
    return spec.partition(":")[0].removesuffix("-sample") in ("rotated-fashion-mnist", "fashion-mnist-domains")


@lru_cache(maxsize=2)
def make_domains(spec: str, limit: int | None = None) -> DomainSet:
    """The set of that name, in memory; `limit` images per domain at most, balanced over the classes.

    rotated-fashion-mnist: 10,000 images at each of 0, 15, ... 90 degrees, 0 and 90 held out together; with :30-60 only
    30, 45 and 60 are trained on. Source: the protocol of CSD and MatchDG (arXiv 2003.12815, 2006.07500). Deviation:
    there the same images stand at all angles; here, as in DomainBed, every domain has its own.
    fashion-mnist-domains: a domain for each transform of `data.transforms`, each held out once.
    -sample: out of the 7,000 images that the package brings instead of all 70,000.

    Raises DomainError for a malformed name.
    """
    kind, _, which = spec.partition(":")
    sample = kind.endswith("-sample")
    if kind.startswith("rotated"):
        trained = TRAINED.get(which or "15-75")
        if trained is None:
            raise DomainError(f"rotations to train on must be one of {', '.join(TRAINED)}, but got {which!r} in {spec}")
        parts = dict(zip(map(str, ANGLES), _dealt(sample, len(ANGLES), limit), strict=True))
        kept = [str(a) for a in ANGLES if a in trained or str(a) in OUTER]
        domains = tuple(
            Domain(n, Images(rotated(parts[n][0].images, float(n)), parts[n][0].labels), parts[n][1]) for n in kept
        )
        return DomainSet(spec, domains, FASHION_CLASSES, (OUTER,), turned=True)
    wanted = _changes(spec, which)
    made = list[Domain]()
    for place, (name, (images, groups)) in enumerate(zip(wanted, _dealt(sample, len(wanted), limit), strict=True)):
        change, strength = CHANGES[name.partition("=")[0]], wanted[name]
        changed = change.apply(images.images, strength, torch.Generator().manual_seed(place))
        made.append(Domain(name, Images(changed, images.labels), groups))
    return DomainSet(spec, tuple(made), FASHION_CLASSES, tuple((n,) for n in wanted), GENTLE)


def _changes(spec: str, text: str) -> dict[str, float]:
    """Domain name -> strength of "edges,noise=0.38"."""
    found: dict[str, float] = {}
    for part in text.split(",") if text else USUAL:
        name, equals, number = part.strip().partition("=")
        if name not in CHANGES:
            raise DomainError(f"transforms must be of {', '.join(CHANGES)}, but got {name!r} in {spec}")
        try:
            strength = float(number) if equals else CHANGES[name].strength
        except ValueError:
            strength = -1.0
        if not 0 < strength <= CHANGES[name].most:
            raise DomainError(
                f"the strength of {name} must lie above 0 and at most at {CHANGES[name].most:g}, but got {part!r}"
            )
        if part.strip() in found:
            raise DomainError(f"each domain must differ, but {part.strip()} stands twice in {spec}")
        found[part.strip()] = strength
    if len(found) < 2:
        raise DomainError(f"a study needs two domains or more, but {spec} has {len(found)}; name more transforms")
    return found


def _dealt(
    sample: bool, count: int, limit: int | None
) -> list[tuple[Images, np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    """The images of `count` domains and their places in the whole set: dealt out in turn, class by class."""
    if limit is not None and limit < 1:
        raise DomainError(f"the limit must be at least 1 image per domain, but got {limit}")
    if sample:
        with as_file(files("vitprune") / "assets" / "fmnist_sample") as folder:
            both = [read_split(folder, split) for split in ("train", "test")]
    else:
        both = [read_split(find_fashion_mnist(), split) for split in ("train", "test")]
    images, labels = torch.cat([b.images for b in both]), torch.cat([b.labels for b in both])
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(np.flatnonzero(labels.numpy() == c)) for c in np.unique(labels)])
    dealt = []
    for place in range(count):
        mine = order[place::count]
        some = mine[balanced_subset(labels.numpy()[mine], min(limit or MOST, MOST), 0)]
        dealt.append((Images(images[some], labels[some]), some))
    return dealt
