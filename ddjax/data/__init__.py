"""Data for classification as plain arrays, by name: embedded, tensorflow-datasets, folders, files, a user's own."""

import sys

from ddjax.data.augmentation import Augmentation
from ddjax.data.batches import Batches
from ddjax.data.dataset import (
    SOURCES,
    Dataset,
    DatasetUnavailableError,
    Source,
    check_fits,
    check_images,
    check_split,
    declare,
    first,
    from_arrays,
    read_split,
    rows_of,
    stratified,
)
from ddjax.data.folders import ANIMALS10, UNREADABLE, UnreadableImageError
from ddjax.data.loading import load
from ddjax.data.tables import split_of_table
from ddjax.registry import Registry
from ddjax.rounding import to_float

DATASETS = SOURCES
DATASETS.collect(sys.modules[__name__])
# All augmentations by name.
AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", "AUGMENTATIONS")
AUGMENTATIONS.collect(sys.modules[__name__])
register = DATASETS.register

__all__ = [
    "ANIMALS10",
    "AUGMENTATIONS",
    "DATASETS",
    "UNREADABLE",
    "Augmentation",
    "Batches",
    "Dataset",
    "DatasetUnavailableError",
    "Source",
    "UnreadableImageError",
    "check_fits",
    "check_images",
    "check_split",
    "declare",
    "first",
    "from_arrays",
    "load",
    "read_split",
    "register",
    "rows_of",
    "split_of_table",
    "stratified",
    "to_float",
]
