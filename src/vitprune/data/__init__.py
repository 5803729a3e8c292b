"""Images as seeded batches: folders, Fashion-MNIST, CIFAR-10, datasets folders, and several domains."""

from vitprune.data.augment import AugmentSettings
from vitprune.data.batches import Album, Batch, Batches, Data, TensorBatches
from vitprune.data.blend import blended
from vitprune.data.open import open_data
from vitprune.data.open_domains import open_domains

__all__ = [
    "Album",
    "AugmentSettings",
    "Batch",
    "Batches",
    "Data",
    "TensorBatches",
    "blended",
    "open_data",
    "open_domains",
]
