"""The shape of a transformer: what decides its parameters, and what one image costs.

C latent channels, T tokens, X tokens of a caption, E their features, W the model's width.
"""

from dataclasses import dataclass
from typing import Any

from stages.model.blocks import swiglu_width
from stages.model.sizes import LEARNS_SIGMA, MODELS, PIXEL_LAYERS


@dataclass(frozen=True)
class TransformerConfig:
    """What decides a transformer's parameters.

    side: of the latent; patch: its patches' side; channels: of the latent; classes: without
    the null class; learns_sigma: whether a variance is predicted beside each channel, as DiT does;
    qk_norm: whether queries and keys are normalised; joint_channels: of an encoder, diffused behind
    those of the latent (ReDi, arXiv 2504.16064); class_features: D of a class token that is
    diffused along as a token in front of the others (REG, arXiv 2507.01467), 0 for none; norm, mlp:
    kinds of layers, by the names of `stages.model.sizes`; rotary: whether queries and keys are
    turned by their positions, too; value_residual: whether the first block's values are mixed into
    those of the others; context_features: E of the tokens of captions, which stand in the place of
    classes (MMDiT), 0 for none; bottleneck: numbers through which each patch goes when it becomes a
    token (JiT), 0 for none; label_tokens, label_tokens_from: of a class, and behind how many blocks
    they join those of patches; dropout: in the middle half of the blocks, while it is trained.
    """

    side: int
    patch: int
    channels: int
    depth: int
    width: int
    heads: int
    classes: int
    has_null_class: bool
    learns_sigma: bool = False
    qk_norm: bool = False
    joint_channels: int = 0
    class_features: int = 0
    norm: str = "layer"
    mlp: str = "gelu"
    rotary: bool = False
    value_residual: bool = False
    context_features: int = 0
    bottleneck: int = 0
    label_tokens: int = 0
    label_tokens_from: int = 0
    dropout: float = 0.0

    @property
    def family(self) -> str:
        """SiT, DiT or JiT, whose objective and solvers it has."""
        if self.bottleneck:
            return "JiT"
        return "DiT" if self.learns_sigma else "SiT"

    def dropout_in(self, depth: int) -> float:
        """That of a block. depth: its number, from 0."""
        quarter = self.depth // 4
        return self.dropout if quarter <= depth < 3 * quarter else 0.0

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.side // self.patch

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.channels + self.joint_channels

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return 2 * self.inputs if self.learns_sigma else self.inputs

    @property
    def class_tokens(self) -> int:
        """Tokens in front of those of patches: 1 or 0."""
        return int(self.class_features > 0)


def config_named(model: str, **shape: Any) -> TransformerConfig:
    """The transformer of a name in `MODELS`; shape: all that the name does not decide."""
    named = MODELS[model]
    if named.of_pixels is not None:
        shape |= {**named.of_pixels._asdict(), **PIXEL_LAYERS}
    learns_sigma = LEARNS_SIGMA[named.family]
    return TransformerConfig(
        patch=named.patch, **named.size._asdict(), learns_sigma=learns_sigma, **shape
    )


def forward_flops(config: TransformerConfig, context_tokens: int = 0) -> float:
    """Floating-point operations of one image's forward pass.

    Counts matrix products, at two operations a multiplication. context_tokens: X of a caption.
    """
    tokens, width = config.grid**2 + config.class_tokens, config.width
    if config.bottleneck:
        return _pixel_flops(config)
    inside = 6 * swiglu_width(width) if config.mlp == "swiglu" else 16 * width
    every, streams = tokens + context_tokens, 2 if config.context_features else 1
    block = (8 * width + inside) * every * width + 4 * every**2 * width + streams * 12 * width**2
    embedding = 2 * context_tokens * config.context_features * width
    # Behind the last block, nobody sees the caption's tokens.
    unseen = (2 * width + inside) * context_tokens * width + (streams - 1) * 8 * width**2
    return float(config.depth * block + embedding - unseen)


def _pixel_flops(config: TransformerConfig) -> float:
    """The same of a JiT, whose first blocks have no tokens of the class."""
    patches, width = config.grid**2, config.width
    lone = config.label_tokens_from
    total = 0.0
    for tokens, blocks in (
        (patches, lone),
        (patches + config.label_tokens, config.depth - lone),
    ):
        layers = (8 * width + 6 * swiglu_width(width)) * tokens * width
        total += blocks * (layers + 4 * tokens**2 * width + 12 * width**2)
    patch = config.patch**2 * config.inputs
    ends = config.bottleneck * (patch + width) + patch * width
    return total + 2.0 * patches * ends
