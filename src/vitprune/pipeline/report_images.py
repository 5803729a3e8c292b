"""Test images of which pruning changed the prediction."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitprune.data import Album, Batches, open_data
from vitprune.errors import VitpruneError
from vitprune.pipeline.measure import measured_split
from vitprune.pipeline.report_read import SavedModel
from vitprune.pipeline.setup import DataSettings
from vitprune.preprocessing import Preprocessing
from vitprune.report.classes import class_names, same_images
from vitprune.report.page import Gallery, Item, Section, Text, Thumb

MOST, SIDE = 12, 80  # images of each kind, pixels of their longer side


def images_section(model: SavedModel, data: str | None) -> tuple[Section | None, str]:
    """The section, or None and the reason; data: the DATA argument, in place of the one that the run had.

    Shown are images that the pruned model lost and gained, and those about which both are wrong in different ways:
    of each as many as are spread evenly over the test images.
    """
    dense, answers = model.dense_answers, model.answers
    if dense is None or answers is None or not same_images(dense, answers):
        return None, f"{model.name} did not keep what it predicted: it was made by an earlier version"
    if "held_out" in (model.metrics.get("data") or {}):
        return None, f"{model.name} was measured on several domains, whose images are not shown"
    labels, before = dense.arrays()
    after = answers.arrays()[1]
    if not (before != after).any():
        return None, f"{model.name} gives every test image the class that the dense model gave it"
    kinds = {
        "Lost: the dense model was right": (before == labels) & (after != labels),
        "Gained: the pruned model is right": (before != labels) & (after == labels),
        "Wrong before and after, in different ways": (before != labels) & (after != labels) & (before != after),
    }
    try:
        split = _split(model, data)
        if split.identity() != answers.images:
            return None, "the test images that were found are not those of the run; give its DATA by --data"
        if not isinstance(split, Album):
            return None, "the images of this data cannot be looked at one by one"
        names = class_names(dense, answers, model.contents.classes)
        items: list[Item] = [Text(f"Of {answers.n:,} test images of {model.name}, as the model sees them.")]
        for title, chosen in kinds.items():
            places = np.flatnonzero(chosen)
            shown = places[np.unique(np.linspace(0, len(places) - 1, min(MOST, len(places))).round().astype(int))]
            if len(shown):
                pixels = _pixels(split.picked(shown.tolist()).cpu().numpy(), model.contents.preprocessing)
                told = [(names[labels[i]], names[before[i]], names[after[i]]) for i in shown]
                more = "" if len(shown) == len(places) else f", {len(shown)} of them"
                thumbs = [_thumb(p, *t) for p, t in zip(pixels, told, strict=True)]
                items.append(Gallery(f"{title} ({len(places)} images{more})", thumbs))
    except (VitpruneError, OSError) as error:
        return None, f"the data could not be opened: {error}"
    return Section("images", "Images whose prediction changed", items), ""


def _split(model: SavedModel, data: str | None) -> Batches:
    """The test images, as the run had them."""
    run, given = model.metrics.get("run") or {}, dict(model.metrics.get("data") or {})
    settings = DataSettings(**given)
    if data is not None:
        settings = replace(settings, spec=data)
    training = run.get("train") or (run.get("prune") or {}).get("learned", {}).get("search") or {}
    found = open_data(
        settings.spec,
        model.contents.preprocessing,
        seed=int(training.get("seed", run.get("seed", 0))),
        val_fraction=settings.val_fraction,
        limit=settings.limit,
        repeat_channels=settings.repeat_channels,
        val_images=settings.val_images,
        separate_test=settings.separate_test,
    )
    return measured_split(found)


def _pixels(x_NCHW: npt.NDArray[np.float32], preprocessing: Preprocessing) -> list[npt.NDArray[np.uint8]]:
    """(H, W) or (H, W, 3) of each image, normalisation undone."""
    mean, std = (np.asarray(v).reshape(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    whole = np.clip(255 * (x_NCHW * std + mean) + 0.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return [image[..., 0] if image.shape[-1] != 3 else image for image in whole]


def _thumb(pixels: npt.NDArray[np.uint8], label: str, before: str, after: str) -> Thumb:
    image = Image.fromarray(pixels)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    alt = f"Image of the class {label}; dense: {before}, pruned: {after}"
    return Thumb(out.getvalue(), alt, (label, f"dense: {before}", f"pruned: {after}"))
