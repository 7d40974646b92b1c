"""Whether weights are those of a model, and which of its parts start anew.

T tokens, W the transformer's width, P a patch's side, C latent channels, D an encoder's features.
"""

from dataclasses import replace
from pathlib import Path

import torch

from stages.model.joint_transformer import TABLE
from stages.model.projectors import ConvProjection
from stages.model.sizes import MODELS
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig
from stages.placement import Placement
from stages.progress import say
from stages.weights import published
from stages.weights.export_options import Layout
from stages.weights.file_layout import doubts_about, layout_of
from stages.weights.model_shape import LABELS, POSITIONS, Shape, shape_in, shape_of
from stages.weights.published import (
    HEAD,
    LAYER,
    PROJECTORS,
    Found,
    State,
    WeightsError,
    count_below,
)


def start_from(
    path: Path, which: str, model: Transformer, place: Placement, layout: Layout | None = None
) -> None:
    """Give a new model the weights at a path, and say which of its parts start anew.

    which: `ema`, `model` or `ema2`; layout: whose code they are of, if they do not tell. Raises
    WeightsError if they cannot be read or are of another model.
    """
    found = published.read_weights(path, which)
    state, notes = fit(found, model, layout_of(found, layout, model.config))
    model.load_state_dict(state)
    if place.is_main:
        for line in (f"weights to start from: {found.path}", *notes):
            say(line)


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
    doubts = doubts_about(found, layout, config)
    found, notes = _with_outputs_of(config, found)
    notes += doubts
    _check_shape(found, config)
    _check_trunk(found, own)
    if layout is Layout.REDI:
        found = replace(found, state=published.of_redi(found.state))
    elif layout.has_time_reversed:
        found = replace(found, state=published.with_time_reversed(found.state))
    state = {**own, **published.without_projectors(found.state)}
    if config.context_features and state[POSITIONS].shape != own[POSITIONS].shape:
        # A smaller latent has the middle of the published table.
        state[POSITIONS] = own[POSITIONS]
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
    if ours.context_features and _is_table(theirs) and ours.side < theirs.side:
        theirs = replace(theirs, side=ours.side)
    pairs = zip(theirs.in_words(), ours.in_words(), strict=True)
    if differing := [f"there {there}, here {here}" for there, here in pairs if there != here]:
        raise WeightsError(
            f"{found.path} holds the weights of another model: {'; '.join(differing)}",
            remedy=_advice(theirs, ours),
        )


def _is_table(shape: Shape) -> bool:
    """Whether its positions are the table of REPA's MMDiT, of which smaller latents have a part."""
    return shape.side == TABLE * shape.patch


def _advice(theirs: Shape, ours: Shape) -> str:
    if bool(theirs.bottleneck) != bool(ours.bottleneck):
        return "Set train.model to a JiT for pixels, to a SiT or DiT for latents."
    if theirs.side != ours.side:
        return "Positions are not resampled: take weights of the cache's resolution."
    if theirs.context_features != ours.context_features:
        if theirs.context_features and ours.context_features:
            return "Take the text encoder that they were trained with as train.text."
        return "Set train.model to an MMDiT for captions, to a SiT or DiT for classes."
    if theirs.class_features != ours.class_features:
        return _advice_on_class_tokens(theirs)
    family = "DiT" if theirs.learns_sigma else "JiT" if theirs.bottleneck else "SiT"
    wanted = (family, theirs.depth, theirs.width, theirs.patch)
    for name, own in MODELS.items():
        if (own.family, *own.size[:2], own.patch) == wanted and not own.reads_text:
            return f"Set train.model to {name!r}, if that is meant."
    return ""


def _advice_on_class_tokens(theirs: Shape) -> str:
    if not theirs.class_features:
        return "Leave out the entry of kind 'class-token' in [[train.align]]."
    return (
        "Set an entry of kind 'class-token' in [[train.align]], with an encoder of "
        f"{theirs.class_features} features."
    )


def _check_trunk(found: Found, own: State) -> None:
    """Raise WeightsError unless all is there but projectors and rows of labels, and no more."""
    theirs, ours = published.without_projectors(found.state), published.without_projectors(own)
    problems = [f"{name} is missing" for name in ours if name not in theirs]
    problems += [f"{name} is unknown here" for name in theirs if name not in ours]
    for name in ours.keys() & theirs.keys():
        if name == POSITIONS:
            continue
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
    if config.context_features:
        return None
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
