"""Domains: transforms, made sets, folders, splits by source image, balanced batches, augmentation in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from vitprune.data import AugmentSettings, TensorBatches, open_domains
from vitprune.data.augment import bleach, jitter, luma, resized_crop
from vitprune.data.domain_folder import check_readable, read_domains
from vitprune.data.domain_sets import ANGLES
from vitprune.data.domain_split import split_domains, unseen
from vitprune.data.domains import Domain, DomainError, DomainSet
from vitprune.data.idx import Images
from vitprune.data.mixed import Balanced, Chained
from vitprune.data.open_domains import chosen_augment, leave_out
from vitprune.data.transforms import CHANGES, LUMA, rotated
from vitprune.errors import DataError
from vitprune.preprocessing import Preprocessing
from vitprune.progress import Silent

GREY = Preprocessing((28, 28), (0.0,), (1.0,), channels=1)
RGB = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)


def some(count: int = 4, side: int = 28) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def changed(name: str, x: torch.Tensor, strength: float | None = None) -> torch.Tensor:
    change = CHANGES[name]
    return change.apply(x, change.strength if strength is None else strength, torch.Generator().manual_seed(0))


# transforms


def test_quarter_turns_are_exact() -> None:
    x = some()
    assert torch.equal(rotated(x, 0), x)
    assert torch.equal(rotated(x, 90), torch.rot90(x, 1, (2, 3)))


def test_negatives_edges_and_sketches_by_hand() -> None:
    x = some()
    assert torch.equal(changed("plain", x), x)
    assert torch.equal(changed("inverted", x), 255 - x)
    assert changed("inverted", x, 0.5).unique().tolist() == [128]  # 127.5 rounds to even
    step = torch.zeros((1, 1, 6, 6), dtype=torch.uint8)
    step[..., 3:] = 40  # the gradient beside the step weighs (1 + 2 + 1) * 40
    found = changed("edges", step, 1.0)[0, 0]
    assert found.tolist() == [[0, 0, 40, 40, 0, 0]] * 6
    assert torch.equal(changed("sketch", step, 1.0)[0, 0], 255 - found)


def test_noise_and_blur_have_the_stated_strength() -> None:
    grey = torch.full((8, 1, 28, 28), 128, dtype=torch.uint8)
    assert float(changed("noise", grey, 0.1).float().std()) == pytest.approx(25.5, rel=0.05)
    x = some(2)
    want = ndimage.gaussian_filter(x.numpy().astype(float), (0, 0, 1, 1), mode="mirror", truncate=3)
    assert np.abs(changed("blur", x, 1.0).numpy() - want).max() <= 1


def test_colours_say_nothing_but_stay_apart() -> None:
    x = some(50)
    x[:, :, 0, 0], x[:, :, 0, 1] = 0, 255
    found = changed("coloured", x, 0.4).float()
    low, high = found[:, :, 0, 0], found[:, :, 0, 1]
    weights = torch.tensor(LUMA)
    assert float(((high - low) @ weights).abs().min()) >= 0.4 * 255 - 1
    between = low[..., None, None] + (high - low)[..., None, None] * x / 255
    assert float((found - between).abs().max()) <= 1


# sets


def test_every_source_image_stands_in_one_domain_alone() -> None:
    found = open_domains("rotated-fashion-mnist-sample")
    assert found.names == tuple(map(str, ANGLES)) and found.protocol == (("0", "90"),)
    groups = np.concatenate([d.groups for d in found.domains])
    assert len(groups) == len(np.unique(groups)) == 7000
    for domain in found.domains:
        assert np.bincount(domain.labels).tolist() == [100] * 10
    assert open_domains("rotated-fashion-mnist-sample:30-60").names == ("0", "30", "45", "60", "90")
    turned, few = found.domains[-1], open_domains("rotated-fashion-mnist-sample", limit=30).domains[-1]
    place = {int(g): i for i, g in enumerate(turned.groups)}
    assert isinstance(few.images, Images) and isinstance(turned.images, Images)
    assert torch.equal(few.images.images, turned.images.images[[place[int(g)] for g in few.groups]])


def test_sets_of_chosen_transforms() -> None:
    found = open_domains("fashion-mnist-domains-sample:plain,noise=0.38,coloured", limit=20)
    assert found.names == ("plain", "noise=0.38", "coloured")
    assert found.protocol == (("plain",), ("noise=0.38",), ("coloured",))
    assert [d.images.images.shape[1] for d in found.domains if isinstance(d.images, Images)] == [1, 1, 3]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rotated-fashion-mnist-sample:10-20", "must be one of 15-75, 30-60, but got '10-20'"),
        ("fashion-mnist-domains-sample:plain,cartoon", "transforms must be of plain, edges, .* but got 'cartoon'"),
        ("fashion-mnist-domains-sample:plain,noise=2", "strength of noise must lie above 0 and at most at 1"),
        ("fashion-mnist-domains-sample:plain,noise=x", "but got 'noise=x'"),
        ("fashion-mnist-domains-sample:plain,plain", "plain stands twice"),
        ("fashion-mnist-domains-sample:plain", "needs two domains or more"),
        ("nowhere", "domains must be one of DIR .*there is no folder nowhere"),
    ],
)
def test_sets_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        open_domains(spec)


# held-out domains


def made(groups: dict[str, list[int]], classes: int = 2) -> DomainSet:
    """Domains of blank images; the class of a source image is its number modulo `classes`."""
    domains = []
    for place, (name, mine) in enumerate(groups.items()):
        numbers = torch.tensor(mine)
        images = torch.full((len(mine), 1, 4, 4), place, dtype=torch.uint8)
        images[:, 0, 0, 0] = numbers.to(torch.uint8)
        domains.append(Domain(name, Images(images, numbers % classes), np.asarray(mine)))
    names = tuple(str(c) for c in range(classes))
    return DomainSet("made", tuple(domains), names, tuple((n,) for n in groups))


def test_what_is_held_out() -> None:
    found = made({"a": [0, 1], "b": [2, 3], "c": [4, 5]})
    assert found.holds("all") == (("a",), ("b",), ("c",))
    assert found.holds(" a+c , b") == (("a", "c"), ("b",))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("sketch", r"must be domains of made \(a, b, c\), but got 'sketch'"),
        ("aa", "did you mean 'a'"),
        ("a,b+a", "must name a domain once, but names a 2 times"),
        ("a+b+c", "must leave a domain of made to train on"),
        (",", "needs domains of made, but got none"),
    ],
)
def test_what_cannot_be_held_out(asked: str, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        made({"a": [0, 1], "b": [2, 3], "c": [4, 5]}).holds(asked)


# splits


def test_a_source_image_never_stands_on_both_sides() -> None:
    found = made({"a": list(range(100)), "b": list(range(50, 150)), "c": list(range(100, 200))})
    sides = split_domains(found, 0.2, seed=3)
    small: set[int] = set()
    large: set[int] = set()
    for domain in found.domains:
        mine = [set(domain.groups[side[domain.name]].tolist()) for side in (sides.large, sides.small)]
        large |= mine[0]
        small |= mine[1]
        assert len(mine[0]) + len(mine[1]) == 100
    assert not small & large and small | large == set(range(200))
    assert np.bincount(found.domains[0].labels[sides.small["a"]]).tolist() == [10, 10]  # 20 % of each class
    other = split_domains(found, 0.2, seed=4)
    assert other.small["a"].tolist() != sides.small["a"].tolist()


def test_held_out_images_that_training_knows_are_not_tested_on() -> None:
    found = made({"a": list(range(40)), "b": list(range(30, 70))})
    left = unseen(found, split_domains(found, 0.2, 0), ("b",))
    tested = np.concatenate([found.domains[1].groups[s["b"]] for s in (left.large, left.small)])
    assert sorted(tested.tolist()) == list(range(40, 70))
    parts = leave_out(found, ("b",), Preprocessing((4, 4), (0.0,), (1.0,), channels=1), batch_size=4)
    assert any(note.startswith("10 images of b are not tested on") for note in parts.data.notes)
    with pytest.raises(DomainError, match="every image of the held-out domain b of made also stands in another"):
        same = made({"a": list(range(20)), "b": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]})
        unseen(same, split_domains(same, 0.2, 0), ("b",))


def test_a_side_without_images_is_an_error() -> None:
    with pytest.raises(DomainError, match="domain b of made has 2 images to train on and 0 to validate with"):
        split_domains(made({"a": list(range(20)), "b": [20, 21]}), 0.2, 0)


def test_training_sees_the_source_domains_alone_and_in_equal_parts() -> None:
    found = made({"a": list(range(100)), "b": list(range(100, 140)), "c": list(range(140, 240))})
    grey = Preprocessing((4, 4), (0.0,), (1 / 255,), channels=1)
    parts = leave_out(found, ("c",), grey, batch_size=8, calibration=20, seed=1)
    assert set(parts.validation) == {"a", "b"} and set(parts.test) == set(parts.oracle) == {"c"}

    def domains(batches: object) -> list[list[int]]:
        return [x[:, 0, 3, 3].round().int().tolist() for x, _ in batches]  # type: ignore[attr-defined]

    def sources(*batches: object) -> set[int]:
        return {int(v) for one in batches for x, _ in one for v in x[:, 0, 0, 0].round()}  # type: ignore[attr-defined]

    assert all(sorted(d) == [0, 0, 0, 0, 1, 1, 1, 1] for d in domains(parts.data.train))
    assert len(parts.data.train) == (80 + 32) // 8
    drawn = domains(parts.data.calibration)
    assert sorted(v for d in drawn for v in d) == [0] * 10 + [1] * 10 and len(set(drawn[0])) == 2
    trained, validated = sources(parts.data.train), sources(parts.data.val)
    assert not trained & validated and not (trained | validated) & sources(*parts.test.values(), *parts.oracle.values())
    for epoch in range(1, 9):  # of a large domain, an epoch has a part
        parts.data.train.set_epoch(epoch)
        trained |= sources(parts.data.train)
    assert sources(parts.data.calibration) <= trained and not trained & validated
    assert (sum(b.size for b in parts.test.values()), sum(b.size for b in parts.oracle.values())) == (80, 20)
    with pytest.raises(DomainError, match="must be at least that, but got 1"):
        leave_out(found, ("c",), grey, batch_size=1)


def numbered(first: int, count: int, batch: int, *, shuffle: bool) -> TensorBatches:
    images = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1)
    one = Preprocessing((1, 1), (0.0,), (1 / 255,), channels=1)
    return TensorBatches(images, torch.zeros(count, dtype=torch.int64), one, batch_size=batch, shuffle=shuffle, seed=5)


def values(batches: object) -> list[list[int]]:
    return [sorted(x.flatten().round().int().tolist()) for x, _ in batches]  # type: ignore[attr-defined]


def test_a_small_domain_is_begun_anew_in_another_order() -> None:
    mixed = Balanced([numbered(0, 12, 3, shuffle=True), numbered(100, 6, 3, shuffle=True)], again=True)
    mixed.set_epoch(1)
    whole = values(mixed)
    assert len(whole) == len(mixed) == 3 and mixed.size == 18
    small = [[v for v in batch if v >= 100] for batch in whole]
    assert sorted(small[0] + small[1]) == list(range(100, 106)) and small[2] != small[0]
    mixed.set_epoch(1, 2)
    assert values(mixed) == whole[2:]
    mixed.set_epoch(2)
    assert values(mixed) != whole


def test_a_domain_with_fewer_images_than_processes_is_an_error() -> None:
    mixed = Balanced([numbered(0, 12, 3, shuffle=True), numbered(100, 1, 3, shuffle=True)], again=True)
    mixed.set_shard(0, 1)
    with pytest.raises(DataError, match="2 processes need an image each of every domain, but one has 1; launch fewer"):
        mixed.set_shard(1, 2)


def test_calibration_and_validation_have_every_image_once() -> None:
    parts = [numbered(0, 5, 2, shuffle=False), numbered(100, 3, 2, shuffle=False)]
    mixed, chained = Balanced(parts, again=False), Chained(parts)
    assert values(mixed) == [[0, 1, 100, 101], [2, 3, 102], [4]]
    assert values(chained) == [[0, 1], [2, 3], [4], [100, 101], [102]] and len(chained) == 5
    assert mixed.identity() == chained.identity() != Chained(parts[:1]).identity()


# folders


def write_domains(root: Path, domains: tuple[str, ...] = ("art", "photo", "sketch"), count: int = 6) -> Path:
    """Two classes of noisy 16x16 images in every domain."""
    rng = np.random.default_rng(0)
    for domain in domains:
        for channel, name in enumerate(("cat", "dog")):
            (root / domain / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(root / domain / name / f"{i}.png")
    return root


def test_folders_of_domains(tmp_path: Path) -> None:
    found = read_domains(write_domains(tmp_path))
    assert (found.names, found.classes) == (("art", "photo", "sketch"), ("cat", "dog"))
    assert found.protocol == (("art",), ("photo",), ("sketch",))
    check_readable(found, Silent())
    parts = leave_out(found, ("art",), RGB, batch_size=4, augment=found.augment, calibration=4)
    images, labels = next(iter(parts.data.train))
    assert images.shape == (4, 3, 16, 16) and set(labels.tolist()) <= {0, 1}
    assert open_domains(str(tmp_path), limit=4).domains[0].labels.tolist() == [0, 0, 1, 1]


def test_copies_of_a_file_stay_together(tmp_path: Path) -> None:
    write_domains(tmp_path)
    shutil.copy(tmp_path / "art/cat/0.png", tmp_path / "photo/cat/again.png")
    found = read_domains(tmp_path)
    art, photo, _ = found.domains
    again = [p.endswith("again.png") for p in photo.images.paths].index(True)  # type: ignore[union-attr]
    assert photo.groups[again] == art.groups[0] and any("1 files are copies" in n for n in found.notes)


def test_folders_that_are_no_domains(tmp_path: Path) -> None:
    write_domains(tmp_path / "one", ("art",))
    with pytest.raises(DomainError, match="must have two domains or more, .* but has only art; give the folder"):
        read_domains(tmp_path / "one")
    write_domains(tmp_path / "joined", ("art", "a+b"))
    with pytest.raises(DomainError, match="must have no comma or plus, .* but .* has 'a\\+b'; rename"):
        read_domains(tmp_path / "joined")
    write_domains(tmp_path / "splits", ("train", "val"))
    with pytest.raises(DomainError, match="holds train and val, which are splits of one domain"):
        read_domains(tmp_path / "splits")
    root = write_domains(tmp_path / "classes")
    (root / "art/dog").rename(root / "art/horse")
    with pytest.raises(DomainError, match="art lacks dog; photo lacks horse; sketch lacks horse; add the missing"):
        read_domains(root)
    root = write_domains(tmp_path / "empty")
    for path in (root / "sketch/dog").iterdir():
        path.unlink()
    with pytest.raises(DomainError, match="every class needs an image in every domain, but .*sketch has none of dog"):
        read_domains(root)
    root = write_domains(tmp_path / "broken")
    (root / "photo/cat/3.png").write_bytes(b"no image")
    with pytest.raises(DomainError, match=r"1 of 36 images of .* cannot be read: .*photo/cat/3.png is no whole image"):
        check_readable(read_domains(root), Silent())


# augmentation


def test_augmentation_leaves_a_domain_what_it_is() -> None:
    turned = open_domains("rotated-fashion-mnist-sample", limit=10)
    assert chosen_augment(turned, "auto") == AugmentSettings.none()
    with pytest.raises(DomainError, match="15 degrees mirrored are -15"):
        chosen_augment(turned, "domainbed")
    with pytest.raises(DomainError, match="must be one of auto, domainbed, none, but got 'some'"):
        chosen_augment(turned, "some")
    assert chosen_augment(made({"a": [0], "b": [1]}), "domainbed").grayscale == 0.1


def test_crops_colours_and_grey_in_memory() -> None:
    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(2)

    flat = torch.full((3, 1, 9, 9), 77.0)
    assert torch.allclose(resized_crop(flat, 0.5, draw()), flat, atol=1e-3)
    ramp = torch.arange(32.0).expand(64, 1, 32, 32)
    cut = resized_crop(ramp, 0.7, draw())
    slope = (cut[..., -2] - cut[..., 1]).mean(dim=(1, 2)) / 29  # side that is left, 1 for the whole image
    assert float(slope.min()) >= (0.7 * 3 / 4) ** 0.5 - 0.05 and float(slope.max()) <= 1.001
    assert torch.equal(jitter(ramp, 0.0, draw()), ramp)
    light = jitter(torch.full((64, 1, 2, 2), 100.0), 0.3, draw())[:, 0, 0, 0]
    assert 70 <= float(light.min()) < 85 and 115 < float(light.max()) <= 130
    colours = torch.rand((40, 3, 4, 4)) * 255
    assert torch.allclose(jitter(colours, 0.0, draw()), colours, atol=1e-3)
    assert torch.equal(bleach(colours, 0.0, draw()), colours)
    assert torch.equal(bleach(colours, 1.0, draw()), luma(colours).expand_as(colours))
    changed = (bleach(colours, 0.5, draw()) != colours).flatten(1).any(1)
    assert 8 <= int(changed.sum()) <= 32
