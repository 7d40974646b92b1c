"""Weights of a run as files that published code loads."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from cache.files import atomic_file
from stages.model.sizes import MODELS
from stages.model.transformer_config import TransformerConfig
from stages.train.terms.term import Alignment
from stages.train.train_settings import TrainSettings
from stages.weights import published
from stages.weights.checkpoint import find
from stages.weights.export_options import ExportOptions, Layout
from stages.weights.model_shape import CHANNELS, PIXELS_PER_LATENT
from stages.weights.published import State, WeightsError

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
# The models that REPA's generate.py builds (its S has a head of another width), the sides of their
# latents, and what else it assumes.
LISTED = tuple(f"SiT-{size}/{patch}" for size in ("B", "L", "XL") for patch in (2, 4, 8))
SIDES = (32, 64)
PROJECTOR_WIDTH, CLASSES, CLASS_FEATURES = 2048, 1000, 768
# The bias of the last layer of a projector.
OUTPUT = "projectors.{}.4.bias"


@dataclass(frozen=True)
class Exported:
    """What was written.

    model: the name of the model; parameters: in all tensors together; loaded_by: which published
    code loads it, and with which arguments.
    """

    path: Path
    step: int
    model: str
    layout: Layout
    tensors: int
    parameters: int
    loaded_by: str


def _of_sit(state: State) -> State:
    return published.with_time_reversed(published.without_projectors(state))


# The model family of a layout, and how its tensors are made from a run's and the side of a patch.
FORMS: dict[Layout, tuple[str, Callable[[State, int], State]]] = {
    Layout.REPA: ("SiT", lambda state, _: published.without_prediction_heads(state)),
    Layout.SIT: ("SiT", lambda state, patch: published.with_sigma(_of_sit(state), patch)),
    Layout.SIT_NO_SIGMA: ("SiT", lambda state, _: _of_sit(state)),
    Layout.REDI: ("SiT", lambda state, _: published.as_redi(state)),
    Layout.DIT: ("DiT", lambda state, _: published.without_projectors(state)),
    Layout.LIGHTNINGDIT: ("SiT", lambda state, _: _of_sit(state)),
    Layout.JIT: ("JiT", lambda state, _: published.as_jit(state)),
}
# Under which names a file of JiT's code has weights, where other code looks for "ema".
OF_JIT = ("model", *published.AVERAGES.values())
# Settings of layers, with the values that every code knows, and those that LightningDiT's does.
OF_ALL: dict[str, tuple[Any, ...]] = {
    "norm": ("layer",),
    "mlp": ("gelu",),
    "rotary": (False,),
    "value_residual": (False,),
}
OF_LIGHTNINGDIT = {
    **OF_ALL,
    "norm": ("layer", "rms-affine"),
    "mlp": ("gelu", "swiglu"),
    "rotary": (False, True),
}


def export(run: Path, options: ExportOptions) -> Exported:
    """Write a checkpoint's weights for published code.

    A `.safetensors` file holds the tensors alone, any other what torch.save makes of them as
    "ema", where the published samplers look, and of the step. Raises WeightsError if the file
    exists or if the layout is that of other models, CheckpointError if there is no such checkpoint.
    """
    path = options.path
    _check_path(path)
    source = find(run, options.step)
    settings, model = source.settings, source.model
    name = settings.model
    layout = options.layout or _usual_layout(model)
    _check_layout(layout, model, name, run)
    state = FORMS[layout][1](source.weights(options.weights), model.patch)
    _write(path, state, source.step, OF_JIT if layout is Layout.JIT else ("ema",))
    parameters = sum(tensor.numel() for tensor in state.values())
    loaded_by = _loaded_by(layout, model, settings, state)
    return Exported(path, source.step, name, layout, len(state), parameters, loaded_by)


def _check_path(path: Path) -> None:
    """Raise WeightsError unless a file of a known kind can be written there."""
    if path.suffix not in (*PICKLED, ".safetensors"):
        raise WeightsError(f"name it .safetensors, or one of {', '.join(PICKLED)}", where=path)
    if path.exists():
        raise WeightsError(f"{path} exists already", remedy="Name another file.")
    if not path.parent.is_dir():
        raise WeightsError(f"there is no folder {path.parent}", where=path)


def _check_layout(layout: Layout, model: TransformerConfig, name: str, run: Path) -> None:
    """Raise WeightsError if the code of a layout does not know such a model."""
    family = FORMS[layout][0]
    if layout is Layout.REDI and not model.joint_channels:
        raise WeightsError(f"The layout {layout} is for components along latents; {run} has none.")
    if MODELS[name].family != family:
        raise WeightsError(f"The layout {layout} is that of a {family}, {run} is of {name}.")
    if layout is not Layout.REPA and model.context_features:
        raise WeightsError(
            f"The code of the layout {layout} reads no captions, as {run} does",
            remedy=f"Take the layout {Layout.REPA}, that of REPA's MMDiT.",
        )
    is_checked = layout not in (Layout.REPA, Layout.JIT)
    if is_checked and (foreign := _foreign(model, layout)):
        raise WeightsError(
            f"The code of the layout {layout} has no {', '.join(foreign)}, as {run} has",
            remedy="Take the layout repa, which keeps all names.",
        )
    if model.class_features and layout.has_time_reversed:
        raise WeightsError(
            f"The code of the layout {layout} knows no class token, which {run} diffuses along",
            remedy=f"REG's does, whose files have the layout {Layout.REPA}.",
        )


def _foreign(model: TransformerConfig, layout: Layout) -> list[str]:
    """The settings of a model's layers that the code of a layout does not know."""
    known = OF_LIGHTNINGDIT if layout is Layout.LIGHTNINGDIT else OF_ALL
    values = {name: getattr(model, name) for name in known}
    return [f"train.{name} = {json.dumps(v)}" for name, v in values.items() if v not in known[name]]


def _usual_layout(model: TransformerConfig) -> Layout:
    if model.bottleneck or model.learns_sigma:
        return Layout.JIT if model.bottleneck else Layout.DIT
    is_redi = model.joint_channels and not model.context_features
    return Layout.REDI if is_redi else Layout.REPA


def _write(path: Path, state: State, step: int, names: tuple[str, ...]) -> None:
    with atomic_file(path) as stream:
        if path.suffix == ".safetensors":
            stream.write(save(state, metadata={"format": "pt"}))
        else:
            torch.save({**dict.fromkeys(names, state), "steps": step}, stream)


def _loaded_by(
    layout: Layout, model: TransformerConfig, settings: TrainSettings, state: State
) -> str:
    if layout is Layout.SIT:
        return "SiT's models with learn_sigma=True, whose time 0 is noise"
    if layout is Layout.SIT_NO_SIGMA:
        return "SiT's samplers with --ckpt, whose time 0 is noise"
    if layout is Layout.DIT:
        return "DiT's samplers with --ckpt"
    if layout is Layout.JIT:
        return f"JiT's main_jit.py with --resume, and --model {settings.model}"
    if layout is Layout.LIGHTNINGDIT:
        return f"LightningDiT's inference.py, whose time 0 is noise, with {_switches(model)}"
    if layout is Layout.REDI:
        return f"ReDi's SiT with {model.inputs} channels, whose time 0 is noise"
    return _loaded_by_repa(model, settings, state)


def _loaded_by_repa(model: TransformerConfig, settings: TrainSettings, state: State) -> str:
    if model.context_features:
        return (
            f"REPA's MMDiT with depth={model.depth}, context_dim={model.context_features} and "
            f"input_size={model.side}"
        )
    if not any(isinstance(term, Alignment) for term in settings.align):
        return "REPA's SiT with z_dims=[]; SiT's samplers take --layout sit-no-sigma"
    if any(f".{published.LAYER}." in name for name in state):
        return "iREPA's samplers, which pass over projectors"
    code = "REG" if model.class_features else "REPA"
    hint = f"{code}'s generate.py with {' '.join(_arguments(model, settings, state))}"
    unknown = list(_unknown(model, settings))
    return f"{hint}, which does not know {', '.join(unknown)}" if unknown else hint


def _switches(model: TransformerConfig) -> str:
    """What the configuration of LightningDiT's code has to say of the model."""
    switches = {
        "in_chans": model.channels,
        "use_rmsnorm": model.norm == "rms-affine",
        "use_swiglu": model.mlp == "swiglu",
        "use_rope": model.rotary,
        "use_qknorm": model.qk_norm,
    }
    return ", ".join(f"{name}: {json.dumps(value)}" for name, value in switches.items())


def _arguments(model: TransformerConfig, settings: TrainSettings, state: State) -> Iterator[str]:
    """What generate.py has to be told: how the model is built, and what else it assumes."""
    count = published.count_below(published.PROJECTORS, state)
    features = (len(state[OUTPUT.format(number)]) for number in range(count))
    yield f"--model={settings.model}"
    yield f"--encoder-depth={','.join(map(str, _aligned_depths(settings)))}"
    yield f"--projector-embed-dims={','.join(map(str, features))}"
    if model.class_features:
        # REG's code samples by no ODE, though that is its default.
        yield "--mode=sde"
    if model.classes != CLASSES:
        yield f"--num-classes={model.classes}"
    if model.side in SIDES[1:]:
        yield f"--resolution={model.side * PIXELS_PER_LATENT}"
    if model.qk_norm:
        yield "--qk-norm"
    if settings.interpolant != "linear":
        yield f"--path-type={settings.interpolant}"


def _unknown(model: TransformerConfig, settings: TrainSettings) -> Iterator[str]:
    """What generate.py has no argument for, or not with this value."""
    if settings.model not in LISTED:
        yield settings.model
    if model.side not in SIDES:
        yield f"latents of side {model.side}"
    widths = {term.projector_width for term in settings.align if isinstance(term, Alignment)}
    if widths - {PROJECTOR_WIDTH}:
        yield f"projector_dim={', '.join(map(str, sorted(widths)))}"
    if len(_aligned_depths(settings)) > 1:
        yield "several depths"
    if model.inputs != CHANNELS:
        yield f"in_channels={model.inputs}"
    if model.class_features not in (0, CLASS_FEATURES):
        yield f"a class token of {model.class_features} features"
    if not model.has_null_class:
        yield "class_dropout_prob=0"
    yield from _foreign(model, Layout.REPA)


def _aligned_depths(settings: TrainSettings) -> list[int]:
    """The blocks whose output is aligned with an encoder."""
    aligned = (term for term in settings.align if isinstance(term, Alignment))
    return sorted({depth for term in aligned for depth in term.depths})
