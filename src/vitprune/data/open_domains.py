"""From a DATA argument that names domains to seeded batches that fit one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitprune.data.augment import AugmentSettings
from vitprune.data.batches import Batches, Data, TensorBatches
from vitprune.data.domain_folder import DOMAINBED, read_domains
from vitprune.data.domain_sets import SPECS, is_made, make_domains
from vitprune.data.domain_split import FRACTION, split_domains, unseen
from vitprune.data.domains import Domain, DomainError, DomainSet, Held
from vitprune.data.idx import Images
from vitprune.data.images import Files, LoaderBatches
from vitprune.data.mixed import Balanced, Chained
from vitprune.data.split import Indices, balanced_subset
from vitprune.preprocessing import Preprocessing

AUGMENTS = ("auto", "domainbed", "none")
EVAL_BATCH = {True: 64, False: 256}  # images per batch of files, and of images in memory


def open_domains(spec: str, *, limit: int | None = None) -> DomainSet:
    """The domains that `spec` names: a folder ROOT/DOMAIN/CLASS/*, or a set that is made of Fashion-MNIST.

    limit: at most so many images per domain, balanced over the classes.

    Raises DomainError for a text that names nothing, and for domains that do not fit each other.
    """
    if is_made(spec):
        return make_domains(spec, limit)
    root = Path(spec).expanduser()
    if not root.is_dir():
        forms = ", ".join(("DIR (DOMAIN/CLASS/*.jpg)", *SPECS))
        raise DomainError(f"domains must be one of {forms}, but there is no folder {root}")
    found = read_domains(root)
    if limit is None:
        return found
    domains = tuple(_limited(d, balanced_subset(d.labels, limit, 0)) for d in found.domains)
    return DomainSet(found.spec, domains, found.classes, found.protocol, found.augment, notes=found.notes)


def _limited(domain: Domain, some: Indices) -> Domain:
    assert isinstance(domain.images, Files)
    paths, labels = (tuple(values[i] for i in some) for values in (domain.images.paths, domain.images.labels))
    return Domain(domain.name, Files(paths, labels), domain.groups[some])


def chosen_augment(found: DomainSet, name: str) -> AugmentSettings:
    """The augmentation of that name; "auto" is what leaves every domain of the set what it is.

    Raises DomainError for another name, and for DomainBed's on rotations, whose mirror images are of other domains.
    """
    if name not in AUGMENTS:
        raise DomainError(f"--augment must be one of {', '.join(AUGMENTS)}, but got {name!r}")
    if name == "domainbed" and found.turned:
        raise DomainError(
            f"--augment domainbed mirrors and stretches images, which turns a domain of {found.spec} into another: "
            "15 degrees mirrored are -15; use auto or none"
        )
    return {"auto": found.augment, "domainbed": DOMAINBED, "none": AugmentSettings.none()}[name]


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Some domains to train on, the others to test on, at last."""

    data: Data  # of the source domains alone; it has no test images
    validation: Mapping[str, Batches]  # source domain -> its 20 %
    test: Mapping[str, Batches]  # held-out domain -> its 80 %, tested on
    oracle: Mapping[str, Batches]  # held-out domain -> its 20 %, which only an oracle may choose by


def leave_out(
    found: DomainSet,
    held: Held,
    preprocessing: Preprocessing,
    *,
    seed: int = 0,
    val_fraction: float = FRACTION,
    batch_size: int = 64,
    workers: int = 0,
    augment: AugmentSettings | None = None,
    device: str = "cpu",
    calibration: int = 0,
) -> LeftOut:
    """The batches for training without the domains `held`, and for testing on them.

    Every domain is split by the seed into a large side and one of `val_fraction`. Training batches hold equally many
    images of every source domain; validation is all source domains' small sides together. calibration: so many training
    images, equally many of every source domain, mixed, without augmentation; `calibration.parts` has them by domain.
    Held-out images whose source image stands in a source domain are left out.

    Raises DomainError for names that do not exist, a batch smaller than the number of source domains, or too few
    images.
    """
    (held,) = found.holds((held,))
    sources = [d for d in found.domains if d.name not in held]
    check_batch(found, held, batch_size)
    sides = unseen(found, split_domains(found, val_fraction, seed), held)
    maker = _Maker(preprocessing, seed, workers, device)
    sizes = _shares(batch_size, len(sources))
    train = [
        maker.batches(d, sides.large[d.name], n, augment, shuffle=True) for d, n in zip(sources, sizes, strict=True)
    ]
    some: list[Batches] = []
    for d, n, count in zip(sources, sizes, _shares(calibration, len(sources)), strict=True):
        own = sides.large[d.name]
        if count:
            drawn = own[balanced_subset(d.labels[own], count, seed)]  # ascending, so class by class
            some.append(maker.batches(d, np.random.default_rng(seed).permutation(drawn), n))
    validation = {d.name: maker.batches(d, sides.small[d.name]) for d in sources}
    away = [d for d in found.domains if d.name in held]
    lost = sum(len(d.groups) - len(sides.large[d.name]) - len(sides.small[d.name]) for d in away)
    notes = (*found.notes, *_conversions(found, preprocessing, augment))
    if lost:
        notes += (f"{lost} images of {', '.join(held)} are not tested on: their source images stand in other domains",)
    data = Data(
        Balanced(train, again=True, seed=seed),
        Chained(list(validation.values())),
        None,
        found.classes,
        notes,
        Balanced(some, again=False, seed=seed) if some else None,
    )
    return LeftOut(
        data,
        validation,
        {d.name: maker.batches(d, sides.large[d.name]) for d in away},
        {d.name: maker.batches(d, sides.small[d.name]) for d in away if len(sides.small[d.name])},
    )


def check_batch(found: DomainSet, held: Held, size: int) -> None:
    """Pass for a batch that has room for every source domain. Raises DomainError."""
    sources = sum(d.name not in held for d in found.domains)
    if size < sources:
        raise DomainError(
            f"a batch holds equally many images of each of {sources} source domains of {found.spec}, so its size must "
            f"be at least that, but got {size}"
        )


def check_splits(
    found: DomainSet, held: Sequence[Held], seeds: Sequence[int], fraction: float, sizes: Sequence[int]
) -> None:
    """Pass when every way to leave domains out, by every seed, has images on both sides and fits batches of `sizes`.

    Raises DomainError as `leave_out`.
    """
    for one in held:
        for size in sizes:
            check_batch(found, one, size)
    for seed in seeds:
        sides = split_domains(found, fraction, seed)
        for one in held:
            unseen(found, sides, one)


def _shares(whole: int, count: int) -> list[int]:
    return [whole // count + (i < whole % count) for i in range(count)]


def _conversions(found: DomainSet, wanted: Preprocessing, augment: AugmentSettings | None) -> Sequence[str]:
    notes = []
    in_memory = any(isinstance(d.images, Images) for d in found.domains)
    if augment is not None and augment.hue and in_memory and wanted.channels == 3:
        notes.append(f"{found.spec}: changes of hue are for image files and not applied to images in memory")
    if augment is not None and (augment.hue or augment.grayscale or augment.color_jitter) and wanted.channels == 1:
        notes.append(
            f"{found.spec}: of colour jitter, brightness and contrast are for one channel; no hue, no grayscale"
        )
    return notes


class _Maker:
    """Makes batches of one domain's images under one set of wishes."""

    def __init__(self, preprocessing: Preprocessing, seed: int, workers: int, device: str) -> None:
        self.preprocessing, self.seed, self.workers, self.device = preprocessing, seed, workers, device

    def batches(
        self,
        domain: Domain,
        some: Indices,
        batch_size: int | None = None,
        augment: AugmentSettings | None = None,
        *,
        shuffle: bool = False,
    ) -> Batches:
        many = EVAL_BATCH[isinstance(domain.images, Files)] if batch_size is None else batch_size
        if isinstance(domain.images, Files):
            return LoaderBatches(
                domain.images,
                [int(i) for i in some],
                self.preprocessing,
                batch_size=many,
                shuffle=shuffle,
                seed=self.seed,
                augment=augment,
                workers=self.workers,
                pin_memory=self.device.startswith("cuda"),
            )
        return TensorBatches(
            domain.images.images[some],
            domain.images.labels[some],
            self.preprocessing,
            batch_size=many,
            shuffle=shuffle,
            seed=self.seed,
            augment=augment,
            device=self.device,
        )
