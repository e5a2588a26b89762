"""Data sets behind one interface, and the order in which training takes their images."""

from tdquant.data.base import ImageDataset, StoredImages
from tdquant.data.cats import ATTRIBUTION, Cats
from tdquant.data.encoded import EncodedImages
from tdquant.data.order import BatchOrder, loader
from tdquant.data.registry import DATASETS, dataset_from_config, make_dataset

__all__ = [
    "ATTRIBUTION",
    "DATASETS",
    "BatchOrder",
    "Cats",
    "EncodedImages",
    "ImageDataset",
    "StoredImages",
    "dataset_from_config",
    "loader",
    "make_dataset",
]
