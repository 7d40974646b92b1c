"""What the golden tensors of the methods after REPA have in common."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from stages.model.transformer_config import TransformerConfig

BASE = TransformerConfig(
    side=8, patch=2, channels=4, depth=2, width=32, heads=4, classes=10, has_null_class=True
)
# Every layer that is not SiT's, as fields of a transformer and as settings of a run.
LAYERS: dict[str, Any] = {
    "norm": "rms-affine",
    "mlp": "swiglu",
    "rotary": True,
    "qk_norm": True,
    "value_residual": True,
}
OF_LAYERS = {name: f"train.{name}={str(value).lower()}" for name, value in LAYERS.items()}


def assert_gradients(model: torch.nn.Module, expected: Mapping[str, Tensor]) -> None:
    """That all gradients are these; a parameter without one is not among them."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=name)
