"""Images as seeded batches: folders, Fashion-MNIST, CIFAR-10 and datasets folders."""

from vitprune.data.augment import AugmentSettings
from vitprune.data.batches import Batch, Batches, Data, TensorBatches
from vitprune.data.open import open_data

__all__ = ["AugmentSettings", "Batch", "Batches", "Data", "TensorBatches", "open_data"]
