"""The model that a benchmark prunes, with the images that it is scored, refitted and measured on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import vitprune
from vitprune.data import blended, open_data
from vitprune.evaluate import accuracy
from vitprune.models import LoadedModel
from vitprune.trace.graph import Graph

Batches = list[tuple[Any, Any]]
TEST_BATCH = 32  # a quarter quicker on a CPU than 256: what passes between layers stays in its cache


def add_options(options: argparse.ArgumentParser) -> None:
    """--model, --data, --images, --test-images."""
    options.add_argument("--model", default="shipped:fmnist-vit")
    options.add_argument("--label", default=None, help="short name of the model for files and pages")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--images", type=int, default=512, help="calibration images (default 512)")
    options.add_argument("--test-images", type=int, default=None, help="balanced subset of them (default: all)")


@dataclass(frozen=True)
class Subject:
    """A loaded model and its data; what is expensive is made when it is first used."""

    spec: str
    label: str
    data: str
    images: int  # for calibration
    test_images: int | None  # None: all

    @staticmethod
    def of(given: argparse.Namespace) -> Subject:
        """The subject that the options name."""
        label = given.label or given.model.split("?")[0].rstrip("/").split(":")[-1].split("/")[-1]
        return Subject(given.model, label, given.data, given.images, given.test_images)

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies it in stored cells."""
        return {"model": self.label, "data": self.data, "images": self.images, "test_images": self.test_images}

    def owns(self, row: Mapping[str, Any]) -> bool:
        """Whether a stored cell is of this subject."""
        return all(row.get(name) == value for name, value in self.settings.items())

    @cached_property
    def origin(self) -> LoadedModel:
        """The dense model."""
        return vitprune.load_model(self.spec)

    @cached_property
    def graph(self) -> Graph:
        """Its trace."""
        return vitprune.trace(self.origin)

    @cached_property
    def test(self) -> Batches:
        """Test batches: the same images for every seed."""
        found = open_data(self.data, self.origin.preprocessing, limit=self.test_images).test
        assert found is not None, self.data
        pairs = ((images.split(TEST_BATCH), labels.split(TEST_BATCH)) for images, labels in found)
        return [pair for images, labels in pairs for pair in zip(images, labels, strict=True)]

    def calibration(self, seed: int, blend: float = 0.0) -> Batches:
        """(images, labels) batches of training images drawn by the seed, balanced over the classes.

        blend: see `vitprune.data.blended`.
        """
        found = open_data(self.data, self.origin.preprocessing, seed=seed, calibration=self.images).calibration
        assert found is not None
        return list(blended(found, blend, self.origin.preprocessing, seed))

    def top1(self, model: Any) -> float:
        """Share of the test images in 0..1."""
        return accuracy(model, self.test).top1

    def describe(self, dense: float) -> dict[str, str]:
        """For the head of a page."""
        n = sum(len(labels) for _, labels in self.test)
        return {
            "model": f"{self.label}, dense top-1 {100 * dense:.2f} % of {n:,} test images",
            "calibration": f"{self.images} training images of {self.data}, equally many of each class, drawn by the "
            "seed; no training",
        }
