"""Weights of a run as files that published code loads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from cache.files import atomic_file
from stages.model.sizes import MODELS
from stages.model.transformer import TransformerConfig
from stages.train.terms.term import Alignment
from stages.train.train_settings import TrainSettings
from stages.weights import published
from stages.weights.checkpoint import find
from stages.weights.export_options import ExportOptions, Layout
from stages.weights.fitting import PIXELS_PER_LATENT
from stages.weights.published import State, WeightsError

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
# The models that REPA's generate.py builds (its S has a head of another width), the sides of their
# latents, and what else it assumes.
LISTED = tuple(f"SiT-{size}/{patch}" for size in ("B", "L", "XL") for patch in (2, 4, 8))
SIDES = (32, 64)
PROJECTOR_WIDTH, CHANNELS, CLASSES = 2048, 4, 1000
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
    Layout.DIT: ("DiT", lambda state, _: published.without_projectors(state)),
}


def export(run: Path, options: ExportOptions) -> Exported:
    """Write a checkpoint's weights for published code.

    A `.safetensors` file holds the tensors alone, any other what torch.save makes of them as
    "ema", where the published samplers look, and of the step. Raises WeightsError if the file
    exists or if the layout is that of other models, CheckpointError if there is no such checkpoint.
    """
    path = options.path
    if path.suffix not in (*PICKLED, ".safetensors"):
        raise WeightsError(f"name it .safetensors, or one of {', '.join(PICKLED)}", where=path)
    if path.exists():
        raise WeightsError(f"{path} exists already", remedy="Name another file.")
    if not path.parent.is_dir():
        raise WeightsError(f"there is no folder {path.parent}", where=path)
    source = find(run, options.step)
    settings, model = source.settings, source.model
    name = settings.model
    layout = options.layout or (Layout.DIT if model.learns_sigma else Layout.REPA)
    family, convert = FORMS[layout]
    if MODELS[name].family != family:
        raise WeightsError(f"The layout {layout} is that of a {family}, {run} is of {name}.")
    state = convert(source.weights(options.weights), model.patch)
    _write(path, state, source.step)
    parameters = sum(tensor.numel() for tensor in state.values())
    loaded_by = _loaded_by(layout, model, settings, state)
    return Exported(path, source.step, name, layout, len(state), parameters, loaded_by)


def _write(path: Path, state: State, step: int) -> None:
    with atomic_file(path) as stream:
        if path.suffix == ".safetensors":
            stream.write(save(state, metadata={"format": "pt"}))
        else:
            torch.save({"ema": state, "steps": step}, stream)


def _loaded_by(
    layout: Layout, model: TransformerConfig, settings: TrainSettings, state: State
) -> str:
    if layout is Layout.SIT:
        return "SiT's models with learn_sigma=True, whose time 0 is noise"
    if layout is Layout.SIT_NO_SIGMA:
        return "SiT's samplers with --ckpt, whose time 0 is noise"
    if layout is Layout.DIT:
        return "DiT's samplers with --ckpt"
    if not any(isinstance(term, Alignment) for term in settings.align):
        return "REPA's SiT with z_dims=[]; SiT's samplers take --layout sit-no-sigma"
    if any(f".{published.LAYER}." in name for name in state):
        return "iREPA's samplers, which pass over projectors"
    hint = f"REPA's generate.py with {' '.join(_arguments(model, settings, state))}"
    unknown = list(_unknown(model, settings))
    return f"{hint}, which does not know {', '.join(unknown)}" if unknown else hint


def _arguments(model: TransformerConfig, settings: TrainSettings, state: State) -> Iterator[str]:
    """What generate.py has to be told: how the model is built, and what else it assumes."""
    count = published.count_below(published.PROJECTORS, state)
    features = (len(state[OUTPUT.format(number)]) for number in range(count))
    yield f"--model={settings.model}"
    yield f"--encoder-depth={','.join(map(str, _aligned_depths(settings)))}"
    yield f"--projector-embed-dims={','.join(map(str, features))}"
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
    if model.channels != CHANNELS:
        yield f"in_channels={model.channels}"
    if not model.has_null_class:
        yield "class_dropout_prob=0"


def _aligned_depths(settings: TrainSettings) -> list[int]:
    """The blocks whose output is aligned with an encoder."""
    aligned = (term for term in settings.align if isinstance(term, Alignment))
    return sorted({depth for term in aligned for depth in term.depths})
