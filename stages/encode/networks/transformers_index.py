"""What transformers' vision models are, from the JSON files beside their published weights.

Neither torch nor transformers is imported. A model is a folder as `save_pretrained` writes it, or
a repository of the hub, whose files are downloaded if they are not in its cache.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cache.recipe import RecipeValue
from stages.encode.networks.registry import Channels, EncoderError, EncoderSpec, Interpolation
from stages.setting_types import nearest

CONFIG = ("config.json",)
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
# Fields of configurations that say nothing of what a network computes.
BOOKKEEPING = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"),
    *("id2label", "label2id", "model_type", "problem_type", "use_cache"),
}
# Pillow's numbers, of those that torch resizes by.
INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Architecture:
    """What a kind of network is like.

    patch_size: where a configuration does not tell; settings: of the configuration, without the
    parts that make no token; arguments: of the network's class, to the same end.
    """

    has_class_token: bool = True
    patch_size: int = 16
    settings: dict[str, RecipeValue] = field(default_factory=dict)
    arguments: dict[str, RecipeValue] = field(default_factory=dict)


WITHOUT_POOLER: dict[str, RecipeValue] = {"add_pooling_layer": False}

# By `model_type`. A kind is added by a line here: the class token comes first, patches come last.
ARCHITECTURES = {
    "clip_vision_model": Architecture(patch_size=32),
    "deit": Architecture(arguments=WITHOUT_POOLER),
    "dinov2": Architecture(patch_size=14),
    "dinov2_with_registers": Architecture(),
    "dinov3_vit": Architecture(),
    "ijepa": Architecture(has_class_token=False, arguments=WITHOUT_POOLER),
    "siglip_vision_model": Architecture(has_class_token=False, settings={"vision_use_head": False}),
    "vit": Architecture(arguments=WITHOUT_POOLER),
    "vit_mae": Architecture(settings={"mask_ratio": 0.0}),
    "vit_msn": Architecture(),
}


def transformers_encoder(model: str) -> EncoderSpec:
    """The encoder in a folder or a repository of the hub, at the input size it was trained with.

    Of a model of images and texts it is the part that sees images. Raises EncoderError if the
    files cannot be had, or if they are those of another kind of network.
    """
    folder = model_folder(model, CONFIG, PREPROCESSING)
    config = read_json(folder, CONFIG)
    config = config.get("vision_config", config)
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise EncoderError(
            f"{model} is of the kind {kind!r}, which is not among the vision transformers that "
            f"can be encoders; {nearest(str(kind), ARCHITECTURES)}"
        )
    architecture, processor = ARCHITECTURES[kind], read_json(folder, PREPROCESSING)
    processor = processor.get("image_processor", processor)
    try:
        return EncoderSpec(
            kind,
            stride=_side(config.get("patch_size", architecture.patch_size)),
            order="resize, normalise",
            antialias=True,
            is_clamped=True,
            layer="last hidden state",
            has_class_token=architecture.has_class_token,
            sizing="any",
            arguments={k: v for k, v in config.items() if k not in BOOKKEEPING}
            | architecture.settings,
            library="transformers",
            location=model,
            **_preprocessing(processor),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(
            f"{model}: how images enter cannot be read from its {' or '.join(PREPROCESSING)} "
            f"({error!r})"
        ) from error


def model_folder(model: str, *files: tuple[str, ...], beside: tuple[str, ...] = ()) -> Path:
    """The folder with a model's files. files, beside: as of `stages.encode.networks.hub.fetch`.

    Raises EncoderError if they are not here and the hub does not give them.
    """
    if Path(model).is_dir():
        return Path(model)
    if Path(model).is_absolute():
        raise EncoderError(f"there is no folder {model}")
    found = _fetched(model, files, beside)
    if isinstance(found, EncoderError):
        raise found
    return found


@cache
def _fetched(
    model: str, files: tuple[tuple[str, ...], ...], beside: tuple[str, ...]
) -> Path | EncoderError:
    from stages.encode.networks.hub import HubError, fetch  # half a second: only where needed

    try:
        return fetch(model, *files, beside=beside)
    except HubError as error:
        advice = "Where there is no network, set `model` to a folder with these files, as"
        told = error.told(f"{advice} ./{Path(model).name}")
        return EncoderError(f"cannot load {model}: {told}")


def read_json(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The first of a folder's JSON files of these names. Raises EncoderError."""
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise EncoderError(f"{folder} has no {' and no '.join(names)}") from None
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise EncoderError(f"{path} cannot be read: expected an object")
    return content


def _preprocessing(processor: dict[str, Any]) -> dict[str, Any]:
    """How a model's own image processor makes inputs, but for its crop: all of an image is seen."""
    if abs(1 / processor.get("rescale_factor", 1 / 255) - 255) > 0.01:
        raise ValueError(f"rescale_factor {processor['rescale_factor']}")
    is_cropped = processor.get("do_center_crop", "crop_size" in processor)
    is_normalised = processor.get("do_normalize", True)
    return {
        "input_size": _side(processor["crop_size" if is_cropped else "size"]),
        "mean": _channels(processor["image_mean"]) if is_normalised else (0.0, 0.0, 0.0),
        "std": _channels(processor["image_std"]) if is_normalised else (1.0, 1.0, 1.0),
        "interpolation": INTERPOLATIONS[processor["resample"]],
    }


def _channels(values: list[float]) -> Channels:
    red, green, blue = map(float, values)
    return red, green, blue


def _side(size: Any) -> int:
    """A side in px, of what is written as a number, a pair, or by the names of sides."""
    if isinstance(size, dict):
        size = [size["shortest_edge"]] if "shortest_edge" in size else list(size.values())
    sides = {int(side) for side in (size if isinstance(size, list) else [size])}
    if len(sides) != 1:
        raise ValueError(f"sides {sorted(sides)}")
    return sides.pop()
