"""Whether weights are those of a model, and which of its parts start anew.

T tokens, W the transformer's width, P a patch's side, C latent channels.
"""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from stages.model.projectors import ConvProjection
from stages.model.sizes import MODELS
from stages.model.transformer import Transformer, TransformerConfig
from stages.placement import Placement
from stages.progress import say
from stages.weights import published
from stages.weights.export_options import Layout
from stages.weights.published import (
    HEAD,
    LAYER,
    PROJECTOR,
    PROJECTORS,
    Found,
    State,
    WeightsError,
    count_below,
)

PATCHES = "x_embedder.proj.weight"
POSITIONS = "pos_embed"
LABELS = "y_embedder.embedding_table.weight"
# The tensors that tell the shape of a model, and their number of axes.
TELLING = {PATCHES: 4, POSITIONS: 3, LABELS: 2, HEAD[0]: 2, HEAD[1]: 1}
# Of SD-VAE, whose latents the published checkpoints are of.
PIXELS_PER_LATENT, CHANNELS = 8, 4


def start_from(
    path: Path, which: str, model: Transformer, place: Placement, layout: Layout | None = None
) -> None:
    """Give a new model the weights at a path, and say which of its parts start anew.

    which: `ema` or `model`; layout: whose code they are of, if they do not tell. Raises
    WeightsError if they cannot be read or are of another model.
    """
    found = published.read_weights(path, which)
    state, notes = fit(found, model, layout_of(found, layout, model.config))
    model.load_state_dict(state)
    if place.is_main:
        for line in (f"weights to start from: {found.path}", *notes):
            say(line)


def layout_of(found: Found, stated: Layout | None, config: TransformerConfig) -> Layout:
    """Whose code weights are of, as far as they and the model that they are for tell.

    stated: what the user says. Raises WeightsError if that contradicts the weights, and if nothing
    tells: files of SiT and of REPA differ in their direction of time, but not in their names.
    """
    possible, evidence = _possible_layouts(found, config)
    others = " or ".join(f"'{layout}'" for layout in possible[1:])
    if stated is None and others and possible[0] is Layout.REPA:
        raise WeightsError(
            f"{found.path} does not tell whose code its weights are of: {evidence}",
            remedy=(
                f"Say '{Layout.REPA}' (time 0 is data) or {others} (time 0 is noise): "
                "train.init_layout, or --layout of `repa-cache sample --official`."
            ),
        )
    if stated is not None and stated not in possible:
        fitting = " or ".join(f"'{layout}'" for layout in possible)
        raise WeightsError(
            f"{found.path} is not of the layout '{stated}': {evidence}",
            remedy=(
                f"Expected {fitting} (train.init_layout, or --layout of `repa-cache sample "
                "--official`)."
            ),
        )
    return stated or possible[0]


def _possible_layouts(found: Found, config: TransformerConfig) -> tuple[tuple[Layout, ...], str]:
    """The layouts that weights may have, and what tells so."""
    if config.learns_sigma:
        return (Layout.DIT,), "it is read as a DiT, as train.model says"
    if found.model is not None:
        return (Layout.REPA,), "it is a checkpoint of this project, which has REPA's"
    if has_redi_names(found):
        return (Layout.REDI,), "its projector has no number, as in ReDi's files"
    if any(name.startswith(PROJECTORS) for name in found.state):
        return (Layout.REPA,), "it has projectors, as only REPA's files do"
    if shape_in(found).learns_sigma:
        doubled = "its output has twice the channels, as SiT's files have"
        # Earlier versions of this project wrote such files in their own direction of time.
        return (Layout.SIT, Layout.REPA), f"{doubled} (and DiT's, which need a DiT as train.model)"
    single = "it has neither projectors nor an output of twice the channels"
    if config.joint_channels:
        return (Layout.REPA, Layout.REDI), single
    if shape_in(found).has_only_layers_of_sit:
        return (Layout.REPA, Layout.SIT_NO_SIGMA, Layout.LIGHTNINGDIT), single
    return (Layout.REPA, Layout.LIGHTNINGDIT), f"{single}; some of its layers SiT has not"


def has_redi_names(found: Found) -> bool:
    """Whether weights have the projector of ReDi's code."""
    return any(name.startswith(PROJECTOR) for name in found.state)


def fit(found: Found, model: Transformer, layout: Layout) -> tuple[State, list[str]]:
    """A model's state with these weights in it, and what differs from them, a line each.

    layout: of the weights, whose direction of time and precision become those of the model.
    Projectors of other shapes start anew, and so does the label table of other classes; all else
    has to be there. Published SiT and DiT have the same names and shapes: half the output of a
    file is dropped for a SiT, and unless that half is blank only the user knows what it is of.
    Raises WeightsError if they are the weights of another model.
    """
    _adopt_kernels(found, model)
    own, config = model.state_dict(), model.config
    doubts = _doubts(found, layout, config)
    found, notes = _with_outputs_of(config, found)
    notes += doubts
    _check_shape(found, config)
    _check_trunk(found, own)
    if layout is Layout.REDI:
        found = replace(found, state=published.of_redi(found.state))
    elif layout.has_time_reversed:
        found = replace(found, state=published.with_time_reversed(found.state))
    state = {**own, **published.without_projectors(found.state)}
    if note := _note_on_labels(found, config):
        state[LABELS] = own[LABELS]
        notes.append(note)
    count = count_below(PROJECTORS, own)
    kept = [n for n in range(count) if _shapes(found.state, n) == _shapes(own, n)]
    for number in kept:
        names = zip(_projector(own, number), _projector(found.state, number), strict=True)
        state |= {name: found.state[there] for name, there in names}
    if note := _note_on_projectors(found, count, kept):
        notes.append(note)
    return {name: tensor.to(own[name].dtype) for name, tensor in state.items()}, notes


def _doubts(found: Found, layout: Layout, config: TransformerConfig) -> list[str]:
    """What speaks against the layout that the user states, though it is possible."""
    if layout is not Layout.REPA or Layout.SIT not in _possible_layouts(found, config)[0]:
        return []
    return [
        "read with time 0 as data, as earlier versions of repa-cache wrote such files; those of "
        f"SiT's own code have the layout '{Layout.SIT}'"
    ]


@dataclass(frozen=True)
class Shape:
    """What tensors say of their model.

    channels: of latents and of components behind them; side: of the latents it is for; norm: None
    if unsaid.
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
        ]


def shape_in(found: Found) -> Shape:
    """The shape that weights have; raises WeightsError if they are of another kind of model."""
    state = found.state
    for name, axes in TELLING.items():
        if name not in state or state[name].ndim != axes:
            raise WeightsError(
                f"{found.path} holds no weights of a SiT or DiT: {name} with {axes} axes is not "
                f"among them, but {', '.join(sorted(state)[:4])}."
            )
    width, channels, patch, _ = state[PATCHES].shape
    return Shape(
        depth=count_below("blocks.", state),
        width=width,
        patch=patch,
        channels=channels,
        side=math.sqrt(state[POSITIONS].shape[1]) * patch,
        learns_sigma=state[HEAD[0]].shape[0] == 2 * channels * patch**2,
        qk_norm=any(".q_norm." in name for name in state),
        norm=_norm_in(found),
        mlp="swiglu" if any(".mlp.w12." in name for name in state) else "gelu",
        rotary=any(name.startswith("feat_rope.") for name in state),
        value_residual=any(name.endswith(".v1_lambda") for name in state),
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


def _with_outputs_of(config: TransformerConfig, found: Found) -> tuple[Found, list[str]]:
    """Weights without the half of their output that a SiT drops; says so if that was trained."""
    theirs = shape_in(found)
    is_of_dit = found.model is not None and found.model.learns_sigma
    if not theirs.learns_sigma or is_of_dit:
        return found, []
    kept = replace(found, state=published.without_sigma(found.state, theirs.patch))
    padded = published.with_sigma(kept.state, theirs.patch)
    is_blank = all(torch.equal(padded[name], found.state[name]) for name in HEAD)
    if config.learns_sigma:
        # Whoever trains one half of such an output and never the other is a SiT.
        is_of_sit = is_blank and bool(kept.state[HEAD[0]].any())
        return (kept if is_of_sit else found), []
    note = "half of its output is dropped, as SiT does; a DiT needs a DiT as train.model"
    return kept, [] if is_blank else [note]


def _check_shape(found: Found, config: TransformerConfig) -> None:
    theirs, ours = shape_in(found), shape_of(config)
    theirs = replace(theirs, norm=theirs.norm or ours.norm)
    pairs = zip(theirs.in_words(), ours.in_words(), strict=True)
    if differing := [f"there {there}, here {here}" for there, here in pairs if there != here]:
        raise WeightsError(
            f"{found.path} holds the weights of another model: {'; '.join(differing)}",
            remedy=_advice(theirs, ours),
        )


def _advice(theirs: Shape, ours: Shape) -> str:
    if theirs.side != ours.side:
        return "Positions are not resampled: take weights of the cache's resolution."
    family = "DiT" if theirs.learns_sigma else "SiT"
    for name, (own, size, patch) in MODELS.items():
        if (own, *size[:2], patch) == (family, theirs.depth, theirs.width, theirs.patch):
            return f"Set train.model to {name!r}, if that is meant."
    return ""


def _check_trunk(found: Found, own: State) -> None:
    """Raise WeightsError unless all is there but projectors and rows of labels, and no more."""
    theirs, ours = published.without_projectors(found.state), published.without_projectors(own)
    problems = [f"{name} is missing" for name in ours if name not in theirs]
    problems += [f"{name} is unknown here" for name in theirs if name not in ours]
    for name in ours.keys() & theirs.keys():
        first = 1 if name == LABELS else 0
        if theirs[name].shape[first:] != ours[name].shape[first:]:
            there, here = list(theirs[name].shape), list(ours[name].shape)
            problems.append(f"{name} is {there}, expected {here}")
    if problems:
        raise WeightsError(
            f"{found.path} holds the weights of another model, {len(problems)} tensors differ: "
            f"{'; '.join(sorted(problems)[:4])}."
        )


def _note_on_labels(found: Found, config: TransformerConfig) -> str | None:
    """Why the label table starts anew, if it does."""
    rows = config.classes + int(config.has_null_class)
    there = None if found.model is None else _classes(found.model)
    if there in (None, _classes(config)) and len(found.state[LABELS]) == rows:
        return None
    there = there or f"{len(found.state[LABELS])} rows"
    return f"the label table starts anew: there {there}, here {_classes(config)}"


def _classes(config: TransformerConfig) -> str:
    return f"{config.classes} classes with{'' if config.has_null_class else 'out'} a null class"


def _adopt_kernels(found: Found, model: Transformer) -> None:
    """Give convolutions of a new model the kernels of those in a file, if they may be any."""
    for name, module in model.named_modules():
        if isinstance(module, ConvProjection):
            module.adopt_kernel(found.state, f"{name}.")


def _projector(state: State, number: int) -> list[str]:
    """The names of a projector's tensors, in order."""
    return sorted(name for name in state if name.startswith(f"{PROJECTORS}{number}."))


def _shapes(state: State, number: int) -> list[tuple[str, torch.Size]]:
    """Layers of a projector and their shapes: REPA's layers have longer names in iREPA's code."""
    names = _projector(state, number)
    return [(name.replace(f".{LAYER}.", "."), state[name].shape) for name in names]


def _note_on_projectors(found: Found, wanted: int, kept: list[int]) -> str | None:
    """Which projectors start anew, and which of the file are not used, if any."""
    there = count_below(PROJECTORS, found.state)
    fresh = [f"{PROJECTORS}{number}" for number in range(wanted) if number not in kept]
    notes = []
    if fresh:
        listing = ", ".join(fresh)
        notes.append(f"projectors that start anew, as none there has their shape: {listing}")
    if unused := there - len(kept):
        notes.append(f"projectors there that are not used: {unused}")
    return "; ".join(notes) or None
