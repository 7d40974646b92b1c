"""By which kernels a run computes attention."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from runs import assert_equal_runs, log_values, trained
from torch import Tensor
from torch.backends import cuda

from pipeline.config import Config
from stages.train.compute import KERNELS, attention_of, check_attention
from stages.train.train_settings import ComputeSettings, RunError

BOTH = (True, True)


def test_a_step_computes_attention_as_set_also_where_it_is_recomputed(
    trainable: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, allowed = F.scaled_dot_product_attention, list[tuple[bool, bool]]()

    def watched(*inputs: Tensor) -> Tensor:
        allowed.append((cuda.flash_sdp_enabled(), cuda.math_sdp_enabled()))
        return real(*inputs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    runs = {}
    for kind, kernels in {"auto": BOTH, "flash": (True, False), "math": (False, True)}.items():
        runs[kind] = trainable(
            f"train.run={tmp_path / kind}",
            f"train.compute.attention={kind}",
            "train.compute.recompute_activations=true",
            "train.steps=2",
        )
        trained(runs[kind])
        # Two steps of four blocks, forward and again.
        assert allowed == [kernels] * 16
        allowed.clear()
    assert_equal_runs(runs["flash"], runs["auto"])
    for line, expected in zip(log_values(runs["math"]), log_values(runs["auto"]), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)


def test_every_kind_has_its_kernels_and_holds_for_a_step_only() -> None:
    kinds = get_args(ComputeSettings.model_fields["attention"].annotation)
    assert kinds == ("auto", *KERNELS)
    for kind in KERNELS:
        with attention_of(kind):
            enabled = (
                cuda.flash_sdp_enabled,
                cuda.cudnn_sdp_enabled,
                cuda.mem_efficient_sdp_enabled,
            )
            assert [is_enabled() for is_enabled in (*enabled, cuda.math_sdp_enabled)] == [
                other == kind for other in KERNELS
            ]
    assert cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("kind", "precision", "device"),
    [
        ("cudnn", "bfloat16", "cpu"),
        ("efficient", "float32", "cpu"),
        ("flash", "tf32", "cuda"),
        ("cudnn", "float32", "cuda"),
    ],
)
def test_kernels_that_a_device_does_not_have_are_refused(
    kind: str, precision: str, device: str
) -> None:
    with pytest.raises(
        RunError, match=f"{kind!r} computes no attention in {precision} on {device}"
    ):
        check_attention(kind, precision, torch.device(device))
    check_attention("auto", precision, torch.device(device))
    check_attention("flash", "bfloat16", torch.device(device))


def test_kernels_that_take_no_mask_are_refused_for_captions_whose_padding_is_left_out() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    with pytest.raises(RunError, match=r"'flash' .* without the padding of captions, on cuda"):
        check_attention("flash", "bfloat16", cuda, is_masked=True)
    check_attention("cudnn", "bfloat16", cuda, is_masked=True)
    check_attention("flash", "bfloat16", cpu, is_masked=True)
