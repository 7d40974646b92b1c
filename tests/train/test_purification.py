"""LAP: targets without their least-squares fit from the clean latents."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from aligning import ALIGNMENTS, aligned, make
from runs import assert_falls, trained_in_parts
from torch import Tensor
from torch.testing import assert_close

from pipeline.config import Config, ConfigError
from stages.model.sizes import LATENTS
from stages.train.terms.irepa import spatially_normalised
from stages.train.terms.purification import purified
from stages.train.terms.run_terms import RunTerms
from stages.train.terms.seen import Streamed

PURIFY = "train.align.0.purify=true"


@pytest.fixture
def clean() -> Tensor:
    """Latents of 5 images, whose patches of side 2 are 16 numbers each."""
    return torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(5, 16, 6, generator=torch.Generator().manual_seed(1)) * 4 - 2


def inputs_of(clean: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The numbers of every patch and a one, cut out one by one."""
    return np.array(
        [
            [*image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten().tolist(), 1]
            for image in clean
            for row in range(4)
            for column in range(4)
        ]
    )


def test_what_is_left_is_the_residual_of_numpy_s_least_squares(
    clean: Tensor, tokens: Tensor
) -> None:
    inputs, flat = inputs_of(clean), tokens.flatten(0, 1).double().numpy()
    solution, *_ = np.linalg.lstsq(inputs, flat)
    expected = torch.from_numpy(flat - inputs @ solution).float().view_as(tokens)
    assert_close(purified(tokens, clean), expected, rtol=1e-4, atol=1e-5)


def test_what_latents_say_vanishes_and_nothing_else(clean: Tensor, tokens: Tensor) -> None:
    mixing = torch.randn(17, 6, generator=torch.Generator().manual_seed(2))
    said = (torch.from_numpy(inputs_of(clean)).float() @ mixing).view_as(tokens)
    left = purified(tokens, clean)
    assert_close(purified(tokens + said, clean), left, rtol=1e-4, atol=1e-4)
    assert_close(purified(left, clean), left, rtol=1e-4, atol=1e-5)


def test_a_channel_that_says_nothing_does_no_harm(clean: Tensor, tokens: Tensor) -> None:
    expected = purified(tokens, torch.cat([clean[:, :3], torch.zeros(5, 1, 8, 8)], dim=1))
    constant = torch.cat([clean[:, :3], torch.full((5, 1, 8, 8), 2.0)], dim=1)
    found = purified(tokens, constant)
    assert found.isfinite().all()
    assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_latents_get_no_gradient(clean: Tensor, tokens: Tensor) -> None:
    assert not purified(tokens, clean.requires_grad_()).requires_grad


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_every_alignment_takes_the_residual_for_its_tokens(
    name: str, clean: Tensor, tokens: Tensor
) -> None:
    term, projected = make(name, purify=True), torch.randn_like(tokens)
    assert term.tokens == "e/tokens"
    assert term.compares_images
    latents = Streamed(clean, *(torch.empty(0) for _ in range(4)))
    found = aligned(term, projected, tokens, streams={LATENTS: latents})
    assert_close(found, aligned(make(name), projected, purified(tokens, clean)))


def test_irepa_normalises_what_is_left(clean: Tensor, tokens: Tensor) -> None:
    latents = Streamed(clean, *(torch.empty(0) for _ in range(4)))
    projected = torch.randn_like(tokens)
    term = make("irepa", purify=True)
    targets = spatially_normalised(purified(tokens, clean), 0.6)
    expected = -torch.cosine_similarity(projected, targets, dim=-1).mean(dim=1)
    assert_close(aligned(term, projected, tokens, streams={LATENTS: latents}), expected)


@pytest.mark.slow
def test_a_purified_run_lowers_its_loss_and_resumes_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    whole = trained_in_parts(trainable, tmp_path, PURIFY, "train.batch_size=21", parts=(4, 8))
    assert RunTerms.of(whole.train).arrays == ("efficientnet-lite0/tokens",)
    assert_falls(whole, "alignment/efficientnet-lite0")


def test_a_fit_needs_the_whole_batch(trainable: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="micro_batches: 'repa' needs the whole batch at once"):
        trainable(PURIFY, "train.compute.micro_batches=2")
