"""Domains in a folder, as DomainBed has them: ROOT/DOMAIN/CLASS/*.jpg (PACS, Office-Home, VLCS, ...)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitprune.data.augment import AugmentSettings
from vitprune.data.domains import Domain, DomainError, DomainSet
from vitprune.data.folder import EXTENSIONS, NAMES, class_files
from vitprune.data.images import Files
from vitprune.data.split import Indices
from vitprune.errors import DataError
from vitprune.progress import Progress

# DomainBed's: RandomResizedCrop(0.7 to 1), flip, ColorJitter(0.3, 0.3, 0.3, 0.3), RandomGrayscale (0.1). Source: arXiv
# 2007.01434, appendix B.
DOMAINBED = AugmentSettings(flip=True, resized_crop=0.7, color_jitter=0.3, hue=0.3, grayscale=0.1)
READERS = 4


def read_domains(root: Path) -> DomainSet:
    """The domains in a folder. Files of equal bytes count as one source image, whatever their names and places.

    Raises DomainError for less than two domains, for classes that not every domain has (all of them listed), and for
    classes without an image.
    """
    names = _folders(root)
    if len(names) < 2:
        found = f"only {names[0]}" if names else "no folder"
        raise DomainError(
            f"{root} must have two domains or more, as {root}/DOMAIN/CLASS/*.jpg, but has {found}; give the folder "
            "that holds the domains' folders"
        )
    splits = {n for known in NAMES.values() for n in known}
    if set(names) <= splits:
        raise DomainError(
            f"{root} holds {' and '.join(names)}, which are splits of one domain, not domains; give a folder "
            "ROOT/DOMAIN/CLASS/*.jpg, with all images of a domain together"
        )
    joined = [name for name in names if "," in name or "+" in name]
    if joined:
        raise DomainError(
            f"names of domains must have no comma or plus, which join what is held out, but {root} has {joined[0]!r}; "
            "rename that folder"
        )
    classes = {name: _folders(root / name) for name in names}
    _check_classes(root, classes)
    files = {name: _files(root / name, classes[names[0]]) for name in names}
    groups = _groups([Path(p) for f in files.values() for p in f.paths])
    domains, at = list[Domain](), 0
    for name, found_files in files.items():
        domains.append(Domain(name, found_files, groups[at : at + len(found_files.paths)]))
        at += len(found_files.paths)
    same = len(groups) - len(np.unique(groups))
    notes = (f"{root}: {same} files are copies of others; they stay on one side with them",) if same else ()
    protocol = tuple((name,) for name in names)
    return DomainSet(str(root), tuple(domains), classes[names[0]], protocol, DOMAINBED, notes=notes)


def check_readable(found: DomainSet, progress: Progress) -> None:
    """Pass when every image file can be decoded; a study would else fail after training, as it tests last of all.

    Raises DomainError, with how many cannot be, and the first of them.
    """
    files = [d.images for d in found.domains if isinstance(d.images, Files)]
    work = [(f, i) for f in files for i in range(len(f.paths))]
    if not work:
        return
    wrong: list[str] = []
    progress.start("reading every image once", len(work))
    try:
        with ThreadPoolExecutor(READERS) as pool:
            for error in pool.map(_problem, work):
                progress.advance()
                if error:
                    wrong.append(error)
    finally:
        progress.done()
    if wrong:
        raise DomainError(f"{len(wrong)} of {len(work)} images of {found.spec} cannot be read: {'; '.join(wrong[:3])}")


def _problem(image: tuple[Files, int]) -> str:
    files, index = image
    try:
        files.open(index)
    except DataError as error:
        return str(error)
    return ""


def _folders(place: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _check_classes(root: Path, classes: dict[str, tuple[str, ...]]) -> None:
    every = sorted({c for found in classes.values() for c in found})
    missing = {name: [c for c in every if c not in found] for name, found in classes.items()}
    texts = [f"{name} lacks {', '.join(left)}" for name, left in missing.items() if left]
    if not every:
        raise DomainError(
            f"{root} must hold DOMAIN/CLASS/*.jpg, but {', '.join(list(classes)[:5])} hold no class folders; if these "
            "are the classes of one domain, give the folder above, with the other domains"
        )
    if texts:
        raise DomainError(
            f"all domains of {root} must have the same class folders, but {'; '.join(texts)}; add the missing classes, "
            "or take them out of the other domains"
        )


def _files(place: Path, classes: tuple[str, ...]) -> Files:
    files, empty = class_files(place, classes)
    if empty:
        raise DomainError(
            f"every class needs an image in every domain, but {place} has none of {', '.join(empty)} (looked for "
            f"{', '.join(EXTENSIONS)}); add some, or take the class out of all domains"
        )
    return files


def _groups(paths: list[Path]) -> Indices:
    """(n,): the place of the first file with the same bytes."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for place, path in enumerate(paths):
        sizes[path.stat().st_size].append(place)
    first = np.arange(len(paths), dtype=np.int64)
    for alike in sizes.values():
        seen: dict[bytes, int] = {}
        for place in alike if len(alike) > 1 else ():
            first[place] = seen.setdefault(hashlib.sha256(paths[place].read_bytes()).digest(), place)
    return first
