"""The Gaussian diffusion of DiT: a linear schedule, and a variance that is learned.

Improved DDPM (arXiv 2102.09672), of which DiT (arXiv 2212.09748) takes the losses. B images, C
latent channels, h and w the latent's sides; times are whole numbers of steps from 0 to 999.
"""

import math
from functools import cache

import torch
from torch import Tensor

from stages.model.sizes import DIFFUSION_STEPS

BETA_RANGE = (1e-4, 0.02)
# A value of a latent counts as one of 255 steps between -1 and 1, as if it were a pixel's.
HALF_STEP = 1 / 255
LEAST_PROBABILITY = 1e-12


def linear_betas() -> Tensor:
    """The variances that the steps add, float64 [1000]."""
    return torch.linspace(*BETA_RANGE, DIFFUSION_STEPS, dtype=torch.float64)


class Schedule:
    """Tables over the steps of a diffusion, computed in float64.

    They are DDPM's (arXiv 2006.11239, section 2): of q(x_t | x_0), its mean's share of x_0
    (signal) and standard deviation (noise); of q(x_{t-1} | x_t, x_0), the weights of x_0 and x_t
    in its mean and the logarithm of its variance; and that of beta, the variance's upper bound.

    beta: the variances that the steps add, float64 [steps]; dtype: of the tables.
    """

    def __init__(
        self, beta: Tensor, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        kept = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        variance = beta * (1 - before) / (1 - kept)
        # The first is zero: its place is taken by the second, if there is one.
        variance[0] = variance[:2][-1]
        tables = {
            "signal": kept.sqrt(),
            "noise": (1 - kept).sqrt(),
            "mean_of_clean": beta * before.sqrt() / (1 - kept),
            "mean_of_noisy": (1 - before) * (1 - beta).sqrt() / (1 - kept),
            "least_log_variance": variance.log(),
            "most_log_variance": beta.log(),
        }
        self._tables = {name: table.to(dtype).to(device) for name, table in tables.items()}

    def at(self, name: str, time: Tensor | int) -> Tensor:
        """A table's value at one time, or its values at times [B], as [B, 1, 1, 1]."""
        values = self._tables[name][time]
        return values if values.ndim == 0 else values[:, None, None, None]

    def clean(self, noisy: Tensor, time: Tensor | int, noise: Tensor) -> Tensor:
        """The clean latents from which noise [B, C, h, w] leads to noisy ones."""
        return (noisy - self.at("noise", time) * noise) / self.at("signal", time)

    def mean(self, clean: Tensor, noisy: Tensor, time: Tensor | int) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0), [B, C, h, w]."""
        return self.at("mean_of_clean", time) * clean + self.at("mean_of_noisy", time) * noisy

    def log_variance(self, fraction: Tensor, time: Tensor | int) -> Tensor:
        """The logarithm of a variance between its bounds (improved DDPM, eq. 15).

        fraction: where between them, from -1 to 1, [B, C, h, w].
        """
        share = (fraction + 1) / 2
        most, least = (self.at(f"{bound}_log_variance", time) for bound in ("most", "least"))
        return share * most + (1 - share) * least


@cache
def schedule(device: torch.device) -> Schedule:
    """The schedule of training on a device."""
    return Schedule(linear_betas(), device)


def diffuse(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Noisy latents at times [B] (DDPM, eq. 4). clean, noise and result: [B, C, h, w]."""
    table = schedule(clean.device)
    return table.at("signal", time) * clean + table.at("noise", time) * noise


def variational_bound(
    clean: Tensor, noisy: Tensor, time: Tensor, predicted_noise: Tensor, fraction: Tensor
) -> Tensor:
    """The term of the variational bound of each image, [B], in bits per value.

    (Improved DDPM, eq. 4 to 7, 15.) All but time are [B, C, h, w]; predicted_noise gives the
    mean; fraction: between -1 and 1, where the logarithm of the variance lies between its bounds.
    """
    table = schedule(clean.device)
    log_variance = table.log_variance(fraction, time)
    mean = table.mean(table.clean(noisy, time, predicted_noise), noisy, time)
    true_mean, least = table.mean(clean, noisy, time), table.at("least_log_variance", time)
    divergence = _gaussian_divergence(true_mean, least, mean, log_variance)
    likelihood = _log_likelihood(clean, mean, log_variance / 2)
    first = (time == 0)[:, None, None, None]
    return torch.where(first, -likelihood, divergence).flatten(1).mean(1) / math.log(2)


def _gaussian_divergence(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor
) -> Tensor:
    """KL divergence between Gaussians, value by value, in nats."""
    gap = log_variance - other_log_variance
    return (-1 - gap + gap.exp() + (mean - other_mean) ** 2 * (-other_log_variance).exp()) / 2


def _log_likelihood(clean: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Of values in steps of 2 / 255 under a Gaussian, whose tails the end steps take, in nats."""
    scale, shift = (-log_std).exp(), clean - mean
    below_upper = _normal_cdf(scale * (shift + HALF_STEP))
    below_lower = _normal_cdf(scale * (shift - HALF_STEP))
    probability = torch.where(
        clean < -0.999,
        below_upper,
        torch.where(clean > 0.999, 1 - below_lower, below_upper - below_lower),
    )
    return probability.clamp(min=LEAST_PROBABILITY).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The usual approximation by tanh, which the published losses contain."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
