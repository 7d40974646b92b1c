import math

import pytest
import torch
from aligning import ALIGNMENTS, aligned, make
from torch.nn.functional import normalize
from torch.testing import assert_close

from stages.train.terms import TERMS, cross_entropy
from stages.train.terms.seen import Shapes


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_an_alignment_gives_a_float32_loss_for_each_image_and_a_gradient(name: str) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    hidden = projected.bfloat16().requires_grad_()
    losses = aligned(make(name), hidden, tokens)
    assert (losses.shape, losses.dtype) == ((3,), torch.float32)
    losses.mean().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in ALIGNMENTS if not make(name).needs_lengths])
def test_an_alignment_ignores_the_length_of_tokens_unless_it_says_otherwise(name: str) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    lengths = torch.rand(3, 4, 1) + 0.1
    term = make(name)
    assert_close(aligned(term, projected, tokens), aligned(term, projected, lengths * tokens))


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_the_loss_of_an_image_depends_on_others_only_if_it_says_so(name: str) -> None:
    projected, tokens = torch.randn(2, 4, 4, 8)
    whole, half = (aligned(make(name), projected[:n], tokens[:n])[:2] for n in (4, 2))
    assert torch.allclose(whole, half) != make(name).compares_images


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_a_step_against_the_gradient_lowers_the_loss(name: str) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    projected.requires_grad_()
    term = make(name)
    before = aligned(term, projected, tokens).mean()
    (gradient,) = torch.autograd.grad(before, projected)
    assert aligned(term, projected - 0.1 * gradient, tokens).mean() < before


@pytest.mark.parametrize("name", [name for name in ALIGNMENTS if not TERMS[name].is_told])
def test_a_projector_gives_tokens_of_the_encoders_width(name: str) -> None:
    term = make(name, projector_width=16)
    projector = term.make_module(Shapes(8, (4, 8, 8), {term.tokens: (9, 5)}))
    assert projector(torch.randn(2, 9, 8)).shape == (2, 9, 5)
    counted = 2 * 9 * sum(p.numel() for p in projector.parameters() if p.dim() > 1)
    assert term.module_flops(Shapes(8, (4, 8, 8), {term.tokens: (9, 5)}), 9) == counted


def test_the_cosine_is_taken_in_float32() -> None:
    tokens = torch.full((1, 1, 8), 3e4, dtype=torch.float16)
    assert aligned(make("repa"), tokens, tokens).item() == pytest.approx(-1)


def test_nt_xent_of_tokens_that_are_all_alike_is_the_logarithm_of_their_number() -> None:
    tokens = torch.ones(3, 4, 8)
    assert aligned(make("nt-xent"), tokens, tokens).tolist() == pytest.approx([math.log(12)] * 3)


def test_nt_xent_of_orthogonal_tokens_has_its_closed_form() -> None:
    tokens = torch.eye(12).unflatten(0, (3, 4))
    losses = aligned(make("nt-xent", temperature=0.5), 5 * tokens, tokens)
    assert losses.tolist() == pytest.approx([math.log(math.exp(2) + 11) - 2] * 3)


def test_nt_xent_in_parts_is_that_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    projected.requires_grad_()
    similarity = (
        normalize(projected.flatten(0, 1), dim=1) @ normalize(tokens.flatten(0, 1), dim=1).T
    )
    expected = torch.nn.functional.cross_entropy(similarity / 0.1, torch.arange(12))
    monkeypatch.setattr(cross_entropy, "MOST_SIMILARITIES", 5 * 12)
    actual = aligned(make("nt-xent"), projected, tokens).mean()
    assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, projected)[0] for loss in (actual, expected)]
    assert_close(*gradients)
