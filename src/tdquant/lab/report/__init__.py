"""One HTML page of evaluated runs and studies, which needs nothing but itself."""

from tdquant.lab.report.page import report

__all__ = ["report"]
