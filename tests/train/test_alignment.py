import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from stages.train import alignment
from stages.train.alignment import ALIGNMENTS, Alignment
from stages.train.train_settings import TrainSettings


def make(name: str, temperature: float = 0.1) -> Alignment:
    return ALIGNMENTS[name](TrainSettings(run=Path("run"), temperature=temperature))


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_an_alignment_gives_a_float32_loss_for_each_image_and_a_gradient(name: str) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    hidden = projected.bfloat16().requires_grad_()
    losses = make(name)(hidden, tokens)
    assert (losses.shape, losses.dtype) == ((3,), torch.float32)
    losses.mean().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize(
    "name", [name for name in ALIGNMENTS if not ALIGNMENTS[name].needs_lengths]
)
def test_an_alignment_ignores_the_length_of_tokens_unless_it_says_otherwise(name: str) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    lengths = torch.rand(3, 4, 1) + 0.1
    assert_close(make(name)(projected, tokens), make(name)(projected, lengths * tokens))


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_the_loss_of_an_image_depends_on_others_only_if_it_says_so(name: str) -> None:
    projected, tokens = torch.randn(2, 4, 4, 8)
    whole, half = (make(name)(projected[:n], tokens[:n])[:2] for n in (4, 2))
    assert torch.allclose(whole, half) != ALIGNMENTS[name].compares_images


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_a_step_against_the_gradient_lowers_the_loss(name: str) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    projected.requires_grad_()
    align = make(name)
    before = align(projected, tokens).mean()
    (gradient,) = torch.autograd.grad(before, projected)
    assert align(projected - 0.1 * gradient, tokens).mean() < before


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_a_projector_gives_tokens_of_the_encoders_width(name: str) -> None:
    projector = ALIGNMENTS[name].projector(8, 16, 5)
    assert projector(torch.randn(2, 9, 8)).shape == (2, 9, 5)


def test_the_cosine_is_taken_in_float32() -> None:
    tokens = torch.full((1, 1, 8), 3e4, dtype=torch.float16)
    assert make("repa")(tokens, tokens).item() == pytest.approx(-1)


def test_nt_xent_of_tokens_that_are_all_alike_is_the_logarithm_of_their_number() -> None:
    tokens = torch.ones(3, 4, 8)
    assert make("nt-xent")(tokens, tokens).tolist() == pytest.approx([math.log(12)] * 3)


def test_nt_xent_of_orthogonal_tokens_has_its_closed_form() -> None:
    tokens = torch.eye(12).unflatten(0, (3, 4))
    expected = math.log(math.exp(2) + 11) - 2
    assert make("nt-xent", 0.5)(5 * tokens, tokens).tolist() == pytest.approx([expected] * 3)


def test_nt_xent_in_parts_is_that_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    projected.requires_grad_()
    similarity = (
        normalize(projected.flatten(0, 1), dim=1) @ normalize(tokens.flatten(0, 1), dim=1).T
    )
    expected = torch.nn.functional.cross_entropy(similarity / 0.1, torch.arange(12))
    monkeypatch.setattr(alignment, "MOST_SIMILARITIES", 5 * 12)
    actual = make("nt-xent")(projected, tokens).mean()
    assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, projected)[0] for loss in (actual, expected)]
    assert_close(*gradients)
