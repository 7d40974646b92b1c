"""Targets without what the latents say themselves (LAP).

B images, T tokens on a square grid, D features, C latent channels, h and w the latent's sides, P a
patch's side, K = C P P + 1.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, pixel_unshuffle

# Of the mean square, added to each of them, which keeps a singular matrix invertible.
RIDGE = 1e-10


@torch.no_grad()
def purified(tokens: Tensor, clean: Tensor) -> Tensor:
    """Tokens [B, T, D] minus their least-squares fit from patches of clean latents and a one.

    One fit of all tokens given; clean: [B, C, h, w]. It never waits for the device.
    """
    patch = clean.shape[-1] // math.isqrt(tokens.shape[1])
    # Latents [B, C, h, w] become patches [B, C P P, T], then [B T, K] with the one.
    patches = pixel_unshuffle(clean, patch).flatten(2).mT.flatten(0, 1).double()
    inputs = pad(patches, (0, 1), value=1.0)
    squares = inputs.mT @ inputs
    squares.diagonal().add_(RIDGE * squares.diagonal().mean())
    root, _ = torch.linalg.cholesky_ex(squares)
    # An orthonormal basis of what can be fitted, [B T, K], in which float32 is enough.
    basis: Tensor = torch.linalg.solve_triangular(root, inputs.mT, upper=False).mT.float()
    flat = tokens.flatten(0, 1)
    return (flat - basis @ (basis.mT @ flat)).view_as(tokens)
