"""Inception as the published metrics use it: that of 2015-12-05, by way of torch-fidelity.

B images, S their side in px.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import RepaCacheError
from stages.evaluate.evaluate_settings import LOGITS, POOL, SPATIAL
from stages.float32 import float32_products
from stages.placement import Placement, barrier
from stages.vision import torch_fidelity
from stages.weight_files import reading

URL: str = torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3
SHA256_PREFIX = "6726825d"
# sFID sees these channels of the branch, as ADM's evaluation does.
SPATIAL_CHANNELS = 7
# Of its input, px.
SIDE = 299


class InceptionError(RepaCacheError):
    """The weights of Inception cannot be had, or are others."""


class Inception:
    """The network that FID, sFID, IS, precision, recall and KID are defined by.

    weights: a local file, instead of the library's download; resizes_like: how images become its
    input, see `EvaluateSettings.inception_input`. Raises InceptionError if weights cannot be had.
    """

    name = "inception"
    features: tuple[str, ...] = (POOL, SPATIAL, LOGITS)

    def __init__(self, weights: Path | None, place: Placement, resizes_like: str = "adm") -> None:
        if place.is_main:
            find_weights(weights)
        barrier(place)
        path = find_weights(weights)
        self.weights_sha256 = self.identity = _checked_sha256(path)
        features = ["2048", "logits_unbiased"]
        with reading(path, InceptionError):
            network = torch_fidelity.FeatureExtractorInceptionV3(
                "inception-v3-compat", features, feature_extractor_weights_path=str(path)
            )
        self._network: Any = network.to(place.device)
        self._device = place.device
        self._branch: Tensor | None = None
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self._input: Tensor | None = None
        self._replaces_input = resizes_like != "adm"
        if self._replaces_input:
            self.identity = f"{self.identity} {resizes_like}"
            network.Conv2d_1a_3x3.register_forward_pre_hook(lambda *_: (self._input,))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images, uint8 [B, 3, S, S], as float32 on the CPU.

        pool [B, 2048]; spatial [B, 2023], 17 x 17 places of 7 channels, channels fastest;
        logits [B, 1008] without bias.
        """
        there = images.to(self._device)
        if self._replaces_input:
            self._input = resized_like_pytorch_fid(there)
        with float32_products(tf32=False):
            pool, logits = self._network(there)
        assert self._branch is not None
        spatial = self._branch[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        named = {POOL: pool, SPATIAL: spatial, LOGITS: logits}
        return {name: features.float().cpu() for name, features in named.items()}

    def _keep(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self._branch = output


def resized_like_pytorch_fid(images: Tensor) -> Tensor:
    """Images, uint8 [B, 3, S, S], as pytorch-fid gives them to the network: from -1 to 1."""
    shown = images.float() / 255
    resized = F.interpolate(shown, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * resized - 1


def find_weights(given: Path | None) -> Path:
    """Where the weights lie: in the file that is given, or in the library's after a download."""
    if given is not None:
        return given
    path = Path(str(torch.hub.get_dir())) / "checkpoints" / URL.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path), SHA256_PREFIX, progress=False)
        except (OSError, RuntimeError) as error:
            raise InceptionError(
                f"The weights of Inception are not here and cannot be downloaded ({error})",
                remedy=(
                    f"Download {URL} elsewhere (96 MB), and put the file at {path}, or name it "
                    "with --inception-weights or evaluate.inception_weights. Without them, "
                    "evaluate.metrics = [] measures in the features of encoders alone."
                ),
            ) from error
    return path


def _checked_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if not sha256.startswith(SHA256_PREFIX):
        raise InceptionError(
            f"{path} holds other weights than the published metrics are defined by: its sha256 "
            f"begins with {sha256[:8]}, expected {SHA256_PREFIX}",
            remedy=f"Take {URL}",
        )
    return sha256
