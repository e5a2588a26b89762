"""Data sets behind one interface."""

from tdquant.lab.data.base import ImageDataset, StoredImages
from tdquant.lab.data.cats import ATTRIBUTION, Cats
from tdquant.lab.data.encoded import EncodedImages
from tdquant.lab.data.registry import DATASETS, dataset_from_config, make_dataset

__all__ = [
    "ATTRIBUTION",
    "DATASETS",
    "Cats",
    "EncodedImages",
    "ImageDataset",
    "StoredImages",
    "dataset_from_config",
    "make_dataset",
]
