"""Evaluation: images of a model, metrics of them with intervals, and a record of how."""

from tdquant.evaluate.given import evaluate_images
from tdquant.evaluate.layers import layer_report
from tdquant.evaluate.record import Record, incomparable
from tdquant.evaluate.references import Reference, open_reference
from tdquant.evaluate.run import evaluate
from tdquant.evaluate.table import comparison_table, record_table

__all__ = [
    "Record",
    "Reference",
    "comparison_table",
    "evaluate",
    "evaluate_images",
    "incomparable",
    "layer_report",
    "open_reference",
    "record_table",
]
