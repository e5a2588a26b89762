"""Evaluation: images of a model, metrics of them with intervals, and a record of how."""

from tdquant.lab.evaluation.comparison import incomparable
from tdquant.lab.evaluation.config import EvaluationConfig, JudgeConfig
from tdquant.lab.evaluation.existing_images import evaluate_images
from tdquant.lab.evaluation.layers import layer_report
from tdquant.lab.evaluation.record import Record
from tdquant.lab.evaluation.references import Reference, open_reference
from tdquant.lab.evaluation.run import evaluate
from tdquant.lab.evaluation.table import comparison_table, record_table

__all__ = [
    "EvaluationConfig",
    "JudgeConfig",
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
