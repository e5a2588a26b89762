"""The Inception network of the FID, by torch-fidelity's class and published weights.

It is TensorFlow's Inception v3 of December 2015, converted. No other Inception network has its
pooling, its resizing to 299 pixels and its 1008 classes, and only its distances are called FID.

Weights are searched for in this order: a given file; ``$TDQUANT_CACHE`` (``~/.cache/tdquant``);
the cache of ``torch.hub``, where torch-fidelity and pytorch-fid leave the same file under two
names; the published address, only if a download is allowed. The file's name ends in the beginning
of its SHA-256, which is verified.

References:
    Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium, 2017 (https://arxiv.org/abs/1706.08500).
    Obukhov et al., High-fidelity performance metrics for generative models in PyTorch, 2020
    (https://github.com/toshas/torch-fidelity).
    Nash et al., Generating images with sparse representations, 2021
    (https://arxiv.org/abs/2103.03841), for the spatial features.
    Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021
    (https://arxiv.org/abs/2105.05233), whose evaluator takes the same layer.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from tdquant.files.digests import file_digest
from tdquant.lab.metrics.features import FeatureNetwork, spatial_slice
from tdquant.lab.metrics.weights import find_weights, loading, read_state
from tdquant.support.optional import require

CHECKSUM = "6726825d"
FILES = tuple(
    f"{stem}-2015-12-05-{CHECKSUM}.pth" for stem in ("weights-inception", "pt_inception")
)
SPATIAL_CHANNELS = 7


class InceptionV3(FeatureNetwork):
    """``uint8 images (N, 3, H, W) -> features (N, 2048)``.

    Images of any side are resized to 299 pixels as TensorFlow 1 did, without antialiasing.

    - ``pooled``: 2048;
    - ``logits``: 1008 classes, without the bias of the last layer, for the Inception Score;
    - ``spatial``: 7 * 17 * 17 = 2023, the first 7 channels of ``Mixed_6d.branch1x1``, which
      TensorFlow's graph calls ``mixed_6/conv``.

    Arguments:
        weights: A file of weights; None searches the caches. With other weights than the
            published ones, ``standard`` is False and ``title`` has their digest.
        download: Download the published weights if they are not found.

    Raises:
        MissingDependencyError: The extra ``inception`` is not installed.
        DataError: The weights are missing, damaged or of another network.
    """

    name = "inception"
    title = "Inception v3 (FID)"
    num_features = 2048

    def __init__(self, weights: Path | None = None, download: bool = False) -> None:
        super().__init__()
        code = require("torch_fidelity.feature_extractor_inceptionv3", "inception")
        if weights is None:
            weights = find_weights(FILES, code.URL_INCEPTION_V3, download)
        file = Path(weights)
        # The class unpickles without restrictions: it gets tensors that were read safely and
        # written again.
        safe = io.BytesIO()
        torch.save(read_state(file), safe)
        safe.seek(0)
        with loading(file, fix=f"those of torch-fidelity, {FILES[0]}"):
            self.network = code.FeatureExtractorInceptionV3(
                "tdquant", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
            )
        self.eval().requires_grad_(False)
        self.standard = file_digest(file).startswith(CHECKSUM)
        if not self.standard:
            self.title = f"Inception v3 (weights {self.digest[:8]})"

    def run(self, images: Tensor) -> dict[str, Tensor]:
        with spatial_slice(self.network.Mixed_6d.branch1x1, SPATIAL_CHANNELS) as found:
            pooled, logits = self.network(images)
        return {"pooled": pooled, "logits": logits, "spatial": found[0]}
