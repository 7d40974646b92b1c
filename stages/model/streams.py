"""What a transformer diffuses jointly, by the names of `stages.model.sizes`.

B images, C latent channels, R further ones, h and w the latent's sides, D features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.model.sizes import CLASS_TOKEN, COMPONENTS, LATENTS
from stages.model.transformer import Output, TransformerConfig


def joined(streams: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What the model takes: channels [B, C + R, h, w], and a class token if there is one."""
    channels = streams[LATENTS]
    if COMPONENTS in streams:
        channels = torch.cat([channels, streams[COMPONENTS]], dim=1)
    return channels, streams.get(CLASS_TOKEN)


def predictions(output: Output, config: TransformerConfig) -> dict[str, Tensor]:
    """What the model predicts of each."""
    found = {LATENTS: output.prediction}
    if config.joint_channels:
        parts = output.prediction.split([config.channels, config.joint_channels], dim=1)
        found = dict(zip((LATENTS, COMPONENTS), parts, strict=True))
    if output.class_prediction is not None:
        found[CLASS_TOKEN] = output.class_prediction
    return found
