"""Training and encoding on a strict stand-in for a GPU, which tests of solvers have, too."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from marking import few_fast
from methods import OF_LAYERS
from runs import watched_step
from strict import META, PLACE, Strict, on_meta

from pipeline.config import Config, load_config
from stages.encode.build import build
from stages.encode.building.columns import load_makers
from stages.encode.images.crop_batches import Crops
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import ENCODERS
from stages.train.terms import TERMS
from stages.train.terms.time_weights import TIME_WEIGHTS

ENCODER = 'encoder = "efficientnet-lite0"'
ALIGNED = f"{ENCODER}, depth = 2, projector_width = 16"
BESIDE_A_CLASS_TOKEN = f"{ALIGNED}, class_token = true"
# Entries of one run that has every kind of loss.
OF_SIT = {
    "class-token": ENCODER,
    "redi": 'encoder = "pca4", drop = 0.2',
    "repa": f"{BESIDE_A_CLASS_TOKEN}, purify = true",
    "irepa": ALIGNED,
    "nt-xent": ALIGNED,
    "token-similarity": f"{ALIGNED}, shares_projector = false",
    "direction": "weight = 0.5",
    "contrastive": 'negatives = "other-class", skip_unlabelled = true',
    "dispersive": "depth = 1",
    "sra": "depth = 1, teacher_depth = 3",
}
OF_DIT = {
    **dict.fromkeys(("repa", "irepa", "nt-xent"), ALIGNED),
    **{kind: OF_SIT[kind] for kind in ("token-similarity", "dispersive", "sra")},
}
OF_JIT = {
    **dict.fromkeys(("repa", "irepa", "pixel-repa"), f"{ENCODER}, depth = 2"),
    **{kind: OF_SIT[kind] for kind in ("token-similarity", "dispersive", "sra")},
}
WEIGHTED = [f'{ALIGNED}, time_weight = {{kind = "{kind}"}}' for kind in TIME_WEIGHTS.classes]


def align(*entries: tuple[str, str]) -> str:
    return f"train.align=[{', '.join(f'{{kind = {kind!r}, {own}}}' for kind, own in entries)}]"


TRAINED = {
    "sit": [align(*OF_SIT.items())],
    "dit": ["train.model=DiT-XS/2", align(*OF_DIT.items())],
    "weighted": [align(*(("repa", own) for own in WEIGHTED))],
    "layers": [*OF_LAYERS.values(), "train.compute.recompute_activations=true"],
    "times": ["train.interpolant=cosine", "train.times=lognormal", "train.time_shift=2.0"],
    "parts": ["train.compute.micro_batches=2", "train.compute.fused_attention=false"],
}


@pytest.mark.parametrize("settings", few_fast(TRAINED.values(), 3), ids=TRAINED)
def test_a_step_of_training_stays_on_its_device(
    built_with_components: Path, tmp_path: Path, settings: list[str]
) -> None:
    run = f"train.run={tmp_path / 'run'}"
    config, watch = load_config(built_with_components / "pipeline.toml", [run, *settings]), Strict()
    with on_meta():
        watched_step(config, watch, PLACE)
    assert watch.operations > 500
    assert watch.copies == []


def test_every_loss_is_among_them() -> None:
    assert OF_SIT.keys() | OF_JIT.keys() == TERMS.keys()


def test_a_step_on_pixels_stays_on_its_device(tiny: Callable[..., Config]) -> None:
    config = tiny(
        *("latents.vae=pixels", "dataset.flip=true", "train.model=JiT-XS/8"),
        *("train.pixels.dropout=0.1", align(*OF_JIT.items())),
    )
    build(config.encode, torch.device("cpu"))
    watch = Strict()
    with on_meta():
        watched_step(config, watch, PLACE)
    assert watch.operations > 500
    assert watch.copies == []


@pytest.mark.parametrize("name", few_fast(ENCODERS, 2))
def test_an_encoder_stays_on_its_device(name: str) -> None:
    spec = ENCODERS[name]
    size = spec.size_for(256)
    encoder = FrozenEncoder(spec, size, None, META, untrained=True)
    with Strict() as watch:
        encoder.features(torch.empty(2, 3, 256, 256, dtype=torch.uint8, device=META))
    assert watch.operations > 100
    # For DINOv3, timm lays out positions on the host, for each batch anew.
    assert len(watch.copies) == int(name.startswith("dinov3"))


def test_columns_of_a_batch_are_made_on_the_device(tiny: Callable[..., Config]) -> None:
    config = tiny("dataset.flip=true", "encoders.efficientnet-lite0.storage=int8").encode
    crops = Crops.of(torch.empty(3, 3, 32, 32, dtype=torch.uint8, device=META))
    for maker in load_makers(config, META, untrained=True):
        constants = maker.shapes(maker.network(crops)[maker.array])
        with Strict() as watch:
            arrays = maker.encode(crops, constants)
        assert watch.copies == []
        assert arrays[maker.array].device == META


def test_what_mixes_devices_is_refused_and_what_waits_is_seen() -> None:
    there, here = torch.arange(4, device=META), torch.arange(4)
    with Strict() as watch:
        there * torch.tensor(2)
        here.to(META, non_blocking=True)
        assert watch.copies == []
        here.to(META)
        there.copy_(here)
        torch.tensor(2).to(META)
        assert len(watch.copies) == 3
        for mix in (lambda: there + here, lambda: there[here], lambda: here[there]):
            with pytest.raises(RuntimeError, match="device"):
                mix()
        for ask in (there.cpu, there.nonzero, lambda: there[there > 1], there.sum().item):
            with pytest.raises(RuntimeError):
                ask()
