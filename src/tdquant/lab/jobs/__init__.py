"""``tdquant quantize``: from a pipeline or a checkpoint file to a folder that samples."""
