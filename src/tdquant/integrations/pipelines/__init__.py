"""Whole pipelines as folders of OpenVINO graphs, the denoisers' tables inside.

    tdq.export_pipeline("quantized-pipeline", "deployed")
    pipe = tdq.open_pipeline("deployed")

Where optimum-intel has a class for the pipeline, the folder has its layout, and
``OVDiffusionPipeline.from_pretrained("deployed")`` reads it without tdquant.
"""

from tdquant.integrations.pipelines.folder import export_pipeline
from tdquant.integrations.pipelines.opening import open_pipeline

__all__ = ["export_pipeline", "open_pipeline"]
