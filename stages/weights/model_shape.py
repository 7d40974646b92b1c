"""The shape of a model, as its configuration or the tensors of a file tell it."""

import math
from dataclasses import dataclass, fields

from stages.model.transformer_config import TransformerConfig
from stages.weights.published import CLASS_TOKENS, HEAD, Found, WeightsError, count_below

PATCHES = "x_embedder.proj.weight"
# Of a JiT: from a patch to few numbers, from these to the width, and tokens of a class.
NARROW, WIDE = "x_embedder.proj1.weight", "x_embedder.proj2.weight"
LABEL_TOKENS = "in_context_posemb"
POSITIONS = "pos_embed"
LABELS = "y_embedder.embedding_table.weight"
# Of an MMDiT, which has no labels.
CONTEXT = "context_embedder.weight"
# The tensors that tell the shape of a model, and their number of axes.
TELLING = {POSITIONS: 3, HEAD[0]: 2, HEAD[1]: 1}
OF_PATCHES = {PATCHES: 4}
OF_PIXELS = {NARROW: 4, WIDE: 4, LABEL_TOKENS: 3}
# Of SD-VAE, whose latents the published checkpoints are of.
PIXELS_PER_LATENT, CHANNELS = 8, 4


@dataclass(frozen=True)
class Shape:
    """What tensors say of their model.

    channels: of latents and of components behind them; side: of the latents it is for; norm: None
    if unsaid; class_features: D of its class token, 0 for none; context_features: of the tokens of
    captions that it reads, 0 for none; bottleneck, label_tokens: of a JiT.
    """

    depth: int
    width: int
    patch: int
    channels: int
    side: float
    learns_sigma: bool
    qk_norm: bool
    norm: str | None
    mlp: str
    rotary: bool
    value_residual: bool
    class_features: int
    context_features: int
    bottleneck: int
    label_tokens: int

    @property
    def has_only_layers_of_sit(self) -> bool:
        """Whether SiT's code may have made it."""
        layers = (self.norm or "layer", self.mlp, self.rotary, self.value_residual)
        return layers == ("layer", "gelu", False, False)

    def in_words(self) -> list[str]:
        """A phrase for each field."""
        pixels = self.side * PIXELS_PER_LATENT
        return [
            f"{self.depth} blocks",
            f"width {self.width}",
            f"patches of side {self.patch}",
            f"{self.channels} latent channels",
            f"latents of side {self.side:g} ({pixels:g} px with SD-VAE)",
            "a predicted variance (DiT)" if self.learns_sigma else "no predicted variance (SiT)",
            f"{'normalised' if self.qk_norm else 'plain'} queries and keys (train.qk_norm)",
            f"norms of kind {self.norm!r} (train.norm)",
            f"blocks with {self.mlp!r} (train.mlp)",
            f"{'rotary and' if self.rotary else 'only'} fixed positions (train.rotary)",
            f"{'mixed' if self.value_residual else 'unmixed'} values (train.value_residual)",
            f"a class token of {self.class_features} features"
            if self.class_features
            else "no class token",
            f"captions of {self.context_features} features"
            if self.context_features
            else "classes instead of captions",
            f"patches through {self.bottleneck} numbers, {self.label_tokens} class tokens (JiT)"
            if self.bottleneck
            else "patches at once (no JiT)",
        ]


def shape_in(found: Found) -> Shape:
    """The shape that weights have; raises WeightsError if they are of another kind of model."""
    state = found.state
    given = {CONTEXT if CONTEXT in state else LABELS: 2}
    is_of_pixels = NARROW in state
    own = OF_PIXELS if is_of_pixels else OF_PATCHES
    for name, axes in {**own, **TELLING, **given}.items():
        if name not in state or state[name].ndim != axes:
            raise WeightsError(
                f"{found.path} holds no weights of a SiT, DiT, MMDiT or JiT: {name} with {axes} "
                f"axes is not among them, but {', '.join(sorted(state)[:4])}."
            )
    first, channels, patch, _ = state[NARROW if is_of_pixels else PATCHES].shape
    width = len(state[WIDE]) if is_of_pixels else first
    class_features = state[CLASS_TOKENS].shape[-1] if CLASS_TOKENS in state else 0
    # The class token has a place of its own, in front of those of patches.
    places = state[POSITIONS].shape[1] - int(class_features > 0)
    return Shape(
        depth=count_below("joint_blocks." if CONTEXT in state else "blocks.", state),
        width=width,
        patch=patch,
        channels=channels,
        side=math.sqrt(places) * patch,
        learns_sigma=state[HEAD[0]].shape[0] == 2 * channels * patch**2,
        qk_norm=any(".q_norm." in name for name in state),
        norm=_norm_in(found),
        mlp="swiglu" if any(".mlp.w12." in name for name in state) else "gelu",
        rotary=any(name.startswith("feat_rope.") for name in state),
        value_residual=any(name.endswith(".v1_lambda") for name in state),
        class_features=class_features,
        context_features=state[CONTEXT].shape[1] if CONTEXT in state else 0,
        bottleneck=first if is_of_pixels else 0,
        label_tokens=state[LABEL_TOKENS].shape[1] if is_of_pixels else 0,
    )


def _norm_in(found: Found) -> str | None:
    """The kind of the norms, if it is known; a layer norm with weights has biases, too."""
    if found.model is not None:
        return found.model.norm
    if "blocks.0.norm1.weight" in found.state:
        return "rms-affine"
    if "blocks.0.attn.q_norm.weight" in found.state:
        return "layer" if "blocks.0.attn.q_norm.bias" in found.state else "rms"
    return None


def shape_of(config: TransformerConfig) -> Shape:
    """The shape of a model."""
    own = {field.name: getattr(config, field.name) for field in fields(Shape)}
    return Shape(**{**own, "channels": config.inputs})
