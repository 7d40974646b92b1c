"""The optimiser and the moving average of the weights."""

import copy

import torch
from torch import nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def make_optimiser(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW without weight decay, as DiT, SiT and REPA use it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
    )


def make_average(model: nn.Module) -> nn.Module:
    """A frozen copy of the model, to be moved by `update_average`."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Set average = decay * average + (1 - decay) * model, over all parameters at once."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
