"""Integer kernels in C for x86 processors with AVX2, compiled when first needed."""

from tdquant.runtime.native.library import missing
from tdquant.runtime.native.product import Codes, Geometry, Product, exact_widths

__all__ = ["Codes", "Geometry", "Product", "exact_widths", "missing"]
