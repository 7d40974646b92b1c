"""What a plan says of a GPU's memory, against what was measured and what blocks really keep."""

import json
from typing import Any

import pytest
import torch
from compiling import COMPILING
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pipeline.plan.gpu_memory import Footprint, find_footprint, gpu_memory, ways_to_fit
from stages.model.blocks import Block, Layers
from stages.model.transformer_config import TransformerConfig
from stages.train.run_model import config_for
from stages.train.train_settings import TrainSettings

SHAPES = {"d/directions": (256, 768), "d/tokens": (256, 768), "d/vector": (768,)}
REPA = {"kind": "repa", "encoder": "d", "depth": 4}
COMPILED = pytest.param(True, marks=[*COMPILING, pytest.mark.slow])
LIGHTNINGDIT = {"norm": "rms-affine", "mlp": "swiglu", "rotary": True, "qk_norm": True}


def settings_of(model: str, images: int, *align: dict[str, Any], **train: Any) -> TrainSettings:
    document = {"run": "r", "model": model, "batch_size": images, "align": align, **train}
    return TrainSettings.model_validate_json(json.dumps(document))


def footprint_of(settings: TrainSettings) -> Footprint:
    """With latents of SD-VAE and tokens of DINOv2-B, at 256 px."""
    model = config_for(settings, (4, 32, 32), 1000, SHAPES.__getitem__)
    return find_footprint(settings, model, SHAPES.__getitem__)


def peak(settings: TrainSettings, gpus: int = 1) -> float:
    return gpu_memory(footprint_of(settings), settings, gpus).peak


# GB on one H200, in bfloat16, compiled: tests/benchmarks/README.md.
MEASURED = {
    "S/2": (settings_of("SiT-S/2", 32, REPA), 2.6),
    "B/2": (settings_of("SiT-B/2", 32, REPA), 5.9),
    "B/2, 256 images": (settings_of("SiT-B/2", 256, REPA), 27.8),
    "XL/2": (settings_of("SiT-XL/2", 32, REPA), 22.4),
    "without alignment": (settings_of("SiT-B/2", 32), 5.28),
    "irepa": (settings_of("SiT-B/2", 32, {**REPA, "kind": "irepa"}), 5.57),
    "nt-xent": (settings_of("SiT-B/2", 32, {**REPA, "kind": "nt-xent"}), 6.47),
    "class token": (
        settings_of("SiT-B/2", 32, REPA, {"kind": "class-token", "encoder": "d"}),
        5.78,
    ),
    "sra": (settings_of("SiT-B/2", 32, {"kind": "sra"}), 5.49),
    "LightningDiT": (settings_of("SiT-B/2", 32, REPA, **LIGHTNINGDIT), 6.21),
    "SR-DiT": (
        settings_of("SiT-B/2", 32, REPA, **{**LIGHTNINGDIT, "norm": "rms"}, value_residual=True),
        6.39,
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_peak_is_what_was_measured(name: str) -> None:
    settings, gigabytes = MEASURED[name]
    assert peak(settings) / 1e9 == pytest.approx(gigabytes, rel=0.15)


def kept_bytes(block: Block, width: int, precision: torch.dtype, *, is_compiled: bool) -> float:
    """What a block keeps of a token for the backward pass, but for its weights.

    There are so many tokens that copies of the weights hardly count.
    """
    images, tokens = 24, 64
    kept: dict[StorageWeakRef, int] = {}
    inputs = torch.randn(images, tokens, width, requires_grad=True), torch.randn(images, width)

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept[StorageWeakRef(storage)] = storage.nbytes()

    run = torch.compile(block, backend="aot_eager_decomp_partition") if is_compiled else block
    is_half = precision != torch.float32
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda _: torch.empty(0))
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        run(*inputs)
    for parameter in block.parameters():
        kept.pop(StorageWeakRef(parameter.untyped_storage()), None)
    return sum(kept.values()) / (images * tokens)


@pytest.mark.parametrize("layers", [{}, {"qk_norm": True}, {"mlp": "swiglu"}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_compiled", [False, COMPILED], ids=["plain", "compiled"])
def test_a_block_keeps_as_much_as_the_plan_says(
    layers: dict[str, Any], precision: str, is_compiled: bool
) -> None:
    width = 64
    settings = settings_of(
        "SiT-XS/2", 3, precision=precision, compute={"compile": is_compiled}, **layers
    )
    model = TransformerConfig(
        side=8,
        patch=1,
        channels=4,
        depth=1,
        width=width,
        heads=4,
        **{"classes": 3, "has_null_class": True, **layers},
    )
    planned = find_footprint(settings, model, SHAPES.__getitem__)
    block = Block(width, 4, Layers(**layers), fused_attention=True, is_first=True)
    found = kept_bytes(block, width, getattr(torch, precision), is_compiled=is_compiled)
    assert planned.block / 64 == pytest.approx(found, rel=0.15)


def test_sharding_micro_batches_and_recomputation_each_save_what_they_should() -> None:
    def memory(gpus: int = 8, **compute: Any) -> Any:
        settings = settings_of("SiT-XL/2", 256, REPA, compute=compute)
        return gpu_memory(footprint_of(settings), settings, gpus)

    plain, sharded = memory(parallel="ddp"), memory()
    assert sharded.states == plain.states / 8
    assert sharded.gradients == plain.gradients / 8
    assert sharded.activations == plain.activations
    assert memory(micro_batches=4).activations == plain.activations / 4
    assert memory(recompute_activations=True).activations < plain.activations / 5
    assert sharded.copies == plain.copies == 14 * memory(reshard=True).copies
    assert memory(gpus=1).states == plain.states
    assert memory(gpus=1).activations == 8 * plain.activations


def test_256_images_of_xl_do_not_fit_a_card_of_80_gb_and_each_way_out_does() -> None:
    settings = settings_of("SiT-XL/2", 256, REPA)
    planned = footprint_of(settings)
    assert not gpu_memory(planned, settings, 1).fits(80e9)
    assert gpu_memory(planned, settings, 8).fits(80e9)
    ways = ways_to_fit(planned, settings, 1, 80e9)
    assert [one.settings for one in ways] == [{"recompute_activations": True}, {"micro_batches": 2}]
    assert all(one.memory.fits(80e9) for one in ways)


def test_what_one_way_does_not_reach_several_may() -> None:
    whole = settings_of("SiT-XL/2", 256, {**REPA, "kind": "nt-xent"})
    (both,) = ways_to_fit(footprint_of(whole), whole, 8, 5e9)
    assert both.settings.keys() == {"reshard", "recompute_activations"}
    settings = settings_of("SiT-XL/2", 256, REPA)
    planned = footprint_of(settings)
    (all_of_them,) = ways_to_fit(planned, settings, 4, 5e9)
    assert all_of_them.settings.keys() == {"reshard", "recompute_activations", "micro_batches"}
    assert ways_to_fit(planned, settings, 1, 5e9) == []


def test_a_loss_that_compares_images_is_not_cut_into_micro_batches() -> None:
    settings = settings_of("SiT-XL/2", 256, {**REPA, "kind": "nt-xent"})
    ways = ways_to_fit(footprint_of(settings), settings, 1, 80e9)
    assert [one.settings for one in ways] == [{"recompute_activations": True}]
