"""The transformer of a configuration, of whichever class it is."""

from typing import Any

import torch

from stages.model.joint_transformer import JointTransformer
from stages.model.pixel_transformer import PixelTransformer
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig


def make_transformer(config: TransformerConfig, **options: Any) -> Transformer:
    """A new transformer with random weights. options: of `Transformer`."""
    kind = Transformer
    if config.context_features:
        kind = JointTransformer
    elif config.bottleneck:
        kind = PixelTransformer
    return kind(config, **options)


def without_storage(config: TransformerConfig) -> Transformer:
    """A model whose tensors have shapes but no values, to be given weights."""
    with torch.device("meta"):
        return make_transformer(config)
