"""Principal components of standardised features, of more rows than fit into memory.

N rows, D features, R components.
"""

import torch
from torch import Tensor

# What components of an encoder's tokens are made by, in the order in which it is applied.
STATISTICS = ("mean", "std", "pca_mean", "components", "explained_variance")


class RunningMoments:
    """The mean, [D], and the scatter about it, [D, D], of rows that come in parts, in float64.

    Sums over millions of rows saturate in float32, and sums of squares cancel: each part is
    centred at its own mean and then joined with those before (Chan, Golub and LeVeque, 1983).
    """

    def __init__(self, features: int, device: torch.device | None = None) -> None:
        self.count = 0
        self.mean = torch.zeros(features, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(features, features, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Take in more rows, [n, D]."""
        if not len(rows):
            return
        rows = rows.to(self.mean)
        mean = rows.mean(dim=0)
        centred, shift = rows - mean, mean - self.mean
        total = self.count + len(rows)
        self.scatter += centred.T @ centred
        self.scatter += torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total


def principal_components(moments: RunningMoments, count: int) -> dict[str, Tensor]:
    """The statistics by which rows become their first components, float32, by `STATISTICS`.

    mean, std: of each feature, [D], over N; pca_mean: of standardised features, [D], which is
    zero where the others are exact; components: [R, D], of which the largest entry of each is
    positive; explained_variance: of all D components, over N - 1, the largest first.
    """
    deviation = (moments.scatter.diagonal() / moments.count).sqrt()
    # A feature that never changes, but for rounding, has no scale.
    least = 8 * torch.finfo(torch.float64).eps * moments.mean.abs()
    std = torch.where(deviation > least, deviation, torch.ones_like(deviation))
    covariance = moments.scatter / torch.outer(std, std) / max(moments.count - 1, 1)
    variances, vectors = torch.linalg.eigh(covariance)
    # Columns in ascending order become rows in descending order.
    components = vectors.T.flip(0)[:count]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    found = {
        "mean": moments.mean,
        "std": std,
        "pca_mean": torch.zeros_like(std),
        "components": components * largest.sign(),
        "explained_variance": variances.flip(0).clamp(min=0),
    }
    return {name: values.float() for name, values in found.items()}


def projected(tokens: Tensor, statistics: dict[str, Tensor]) -> Tensor:
    """Tokens [..., D] as components [..., R], float32, not rescaled (ReDi, arXiv 2504.16064)."""
    standardised = (tokens.float() - statistics["mean"]) / statistics["std"]
    return (standardised - statistics["pca_mean"]) @ statistics["components"].T
