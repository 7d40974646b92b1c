"""What a transformer diffuses jointly, by the names of `stages.model.sizes`.

B images, C latent channels, R further ones, h and w the latent's sides, D features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.model.sizes import CLASS_TOKEN, COMPONENTS, LATENTS
from stages.model.transformer import Output
from stages.model.transformer_config import TransformerConfig


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


def packed(channels: Tensor, class_token: Tensor | None) -> Tensor:
    """One state for a solver: [B, C + R, h, w], or the numbers of both, [B, N]."""
    if class_token is None:
        return channels
    return torch.cat([channels.flatten(1), class_token], dim=1)


def unpacked(state: Tensor, config: TransformerConfig) -> tuple[Tensor, Tensor | None]:
    """The channels [B, C + R, h, w] and the class token [B, D] of a state."""
    if not config.class_features:
        return state, None
    # [B, N] becomes channels [B, C + R, h, w] and what is behind them.
    numbers, class_token = state.tensor_split([-config.class_features], dim=1)
    return numbers.unflatten(1, (-1, config.side, config.side)), class_token
