"""Projectors: from the transformer's hidden tokens to an encoder's feature space."""

from torch import Tensor, nn


class MLPProjector(nn.Sequential):
    """Three linear layers with SiLU between them, applied to each token (REPA, section 3.2)."""

    def __init__(self, width: int, hidden: int, features: int) -> None:
        super().__init__(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, features),
        )

    # The compiler takes up functions of this project only, and passes over those of torch.nn.
    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self:
            tokens = layer(tokens)
        return tokens
