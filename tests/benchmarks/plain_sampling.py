"""The published sampler in plain PyTorch: what sample.py compares this project's with.

Written from the paper and the description of its code: Euler-Maruyama on a state in float64, with
the projectors computed and both classes evaluated at every step, whether it is guided or not.
B images, C latent channels, h and w the latent's sides.
"""

import torch
from plain_training import SiT
from torch import Tensor

LAST = 0.04


@torch.no_grad()
def sample(
    model: SiT,
    noise: Tensor,
    labels: Tensor,
    steps: int,
    guidance: float,
    interval: tuple[float, float],
) -> Tensor:
    """Latents [B, C, h, w] in float64, from standard normals [B, C, h, w] and labels [B]."""
    null = torch.full_like(labels, model.config.classes)
    times = torch.linspace(1.0, LAST, steps, dtype=torch.float64, device=noise.device)
    times = torch.cat([times, times.new_zeros(1)])
    state = noise.double()
    for number in range(steps):
        time, after = times[number], times[number + 1]
        both = torch.cat([state, state])
        each = torch.ones(len(both), dtype=torch.float64, device=both.device) * time
        velocity, _ = model(both.float(), each.float(), torch.cat([labels, null]))
        velocity = velocity.double()
        # On the linear path: the score from the velocity, and with diffusion 2t the drift.
        score = -((1 - time) * velocity + both) / time
        conditional, unconditional = (velocity - time * score).chunk(2)
        drift = conditional
        if interval[0] <= time <= interval[1]:
            drift = unconditional + guidance * (conditional - unconditional)
        state = state + (after - time) * drift
        if number + 1 < steps:
            state = state + torch.sqrt(2 * time * (time - after)) * torch.randn_like(state)
    return state
