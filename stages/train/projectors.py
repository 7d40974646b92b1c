"""Projectors: from the transformer's hidden tokens to an encoder's feature space."""

from torch import nn


def mlp_projector(width: int, hidden: int, features: int) -> nn.Sequential:
    """Three linear layers with SiLU between them, applied to each token (REPA, section 3.2)."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, features),
    )
