"""NT-Xent's cross-entropy: what it equals, what it keeps, and what TF32 makes of it on a GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from aligning import aligned, make
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from stages.float32 import float32_products
from stages.train.terms.cross_entropy import OwnTarget


class TensorCores(TorchDispatchMode):
    """Multiplies like a GPU: in TF32, where that is allowed; notes of each product whether."""

    def __init__(self) -> None:
        super().__init__()
        self.in_tf32: list[bool] = []

    def __torch_dispatch__(
        self,
        function: Any,
        _types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        if str(function) == "aten.mm.default":
            self.in_tf32.append(torch.backends.cuda.matmul.allow_tf32)
            if self.in_tf32[-1]:
                arguments = [rounded_to_tf32(matrix) for matrix in arguments]
        return function(*arguments, **(options or {}))


def rounded_to_tf32(values: Tensor) -> Tensor:
    """Float32 numbers with 10 bits behind the first one, of 23."""
    return ((values.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


def test_a_rounded_number_has_ten_bits_behind_the_first() -> None:
    step = 2.0**-10
    values = torch.tensor([1 + step, -1 - step, 1 + 0.4 * step, 3 + 1.2 * step])
    assert rounded_to_tf32(values).tolist() == [1 + step, -1 - step, 1.0, 3 + 2 * step]


@pytest.mark.parametrize("first", [0, 5])
def test_losses_and_gradients_are_those_of_the_whole_matrix(first: int) -> None:
    queries, targets, weights = torch.randn(7, 8), torch.randn(12, 8), torch.rand(7)
    queries.requires_grad_()
    expected = cross_entropy(queries @ targets.T, torch.arange(7) + first, reduction="none")
    actual = OwnTarget.apply(queries, targets, first)
    assert torch.equal(actual, expected)
    assert_close(*(torch.autograd.grad(losses @ weights, queries) for losses in (actual, expected)))


def test_similarities_are_multiplied_out_once_and_none_is_kept() -> None:
    queries, targets = torch.randn(40, 8, requires_grad=True), torch.randn(60, 8)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, TensorCores() as cores:
        OwnTarget.apply(queries, targets, 0).sum().backward()
    assert len(cores.in_tf32) == 2
    assert sum(kept) == queries.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nt_xent_multiplies_in_tf32_where_tokens_are_in_half_precision(dtype: torch.dtype) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    with TensorCores() as cores:
        aligned(make("nt-xent"), projected.to(dtype).requires_grad_(), tokens).mean().backward()
    assert cores.in_tf32 == [dtype != torch.float32] * 2
    assert not torch.backends.cuda.matmul.allow_tf32


def test_tf32_errs_by_a_fourth_at_most_of_what_bfloat16_rounds_off() -> None:
    tokens = torch.randn(512, 256) + 0.7 * torch.randn(256)
    targets = normalize(tokens, dim=1)
    queries = 10 * normalize(tokens + torch.randn(512, 256), dim=1)

    def found(queries: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        queries = queries.detach().requires_grad_()
        losses = OwnTarget.apply(queries, targets, 0)
        return losses.detach(), *torch.autograd.grad(losses.sum(), queries)

    losses, gradient = found(queries, targets)
    with float32_products(tf32=True), TensorCores():
        losses_in_tf32, gradient_in_tf32 = found(queries, targets)
    half, _ = found(queries.bfloat16().float(), targets)
    assert 0 < error(losses_in_tf32, losses) < error(half, losses) / 4
    assert error(gradient_in_tf32, gradient) < error(gradient.bfloat16(), gradient) / 4


def error(values: Tensor, exact: Tensor) -> float:
    return float((values - exact).norm() / exact.norm())
