"""The optimiser and the moving average of the weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from stages.train.compute import own, whole
from stages.train.train_settings import TrainSettings

# Where the fused optimiser clips gradients as it reads them, which saves a pass over them; a scaler
# has other things to tell it.
DIVIDING = {"cuda"}
# Added to a norm, as torch does.
EPSILON = 1e-6


def make_optimiser(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; without weight decay, as by default, it is that of DiT, SiT and REPA."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def make_replayable(optimiser: torch.optim.Optimizer) -> None:
    """Let a recorded step read the learning rate, which becomes a tensor on the device."""
    for group in optimiser.param_groups:
        device = group["params"][0].device
        group.update(lr=torch.tensor(group["lr"], device=device), capturable=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimiser_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser by the names of the parameters, the same on every device."""
    state: dict[str, Any] = get_optimizer_state_dict(model, optimiser)
    for group in state["param_groups"]:
        group.update(lr=float(group["lr"]), capturable=False)
    return state


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of a step, counted from 0: constant after a linear rise."""
    rise = (step + 1) / settings.warmup_steps if settings.warmup_steps else 1.0
    return settings.learning_rate * min(1.0, rise)


def update_weights(
    optimiser: torch.optim.AdamW, scaler: torch.amp.GradScaler, norm: Tensor, limit: float
) -> None:
    """Make a step with gradients clipped to a norm, unless that which they have is not finite.

    norm: of the whole gradient; limit: the largest. The device decides, so that nobody has to wait
    for it.
    """
    has_scaler = scaler.is_enabled()
    if not has_scaler:
        # What a scaler would tell the fused optimiser.
        optimiser.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    if has_scaler or norm.device.type not in DIVIDING:
        nn.utils.clip_grads_with_norm_(parameters_of(optimiser), limit, norm)
    else:
        optimiser.grad_scale = ((norm + EPSILON) / limit).clamp(min=1)  # type: ignore[attr-defined]
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()


def gradient_norm(optimiser: torch.optim.Optimizer) -> Tensor:
    """The norm of the whole gradient, of which this process may hold a part."""
    gradients = (parameter.grad for parameter in parameters_of(optimiser))
    return whole(nn.utils.get_total_norm([one for one in gradients if one is not None]))


def parameters_of(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """What it updates."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


class Average:
    """The exponential moving average of a model's parameters, in float32.

    tensors: by their names; held in the same parts as those of the model. held_by: an equal model
    whose parameters they are to be.
    """

    def __init__(self, model: nn.Module, decay: float, held_by: nn.Module | None = None) -> None:
        parameters = dict(model.named_parameters())
        if held_by is None:
            self.tensors = {name: p.detach().clone() for name, p in parameters.items()}
        else:
            self.tensors = {name: p.detach() for name, p in held_by.named_parameters()}
        self._decay = decay
        self._averaged = [own(tensor) for tensor in self.tensors.values()]
        self._followed = list(parameters.values())

    @torch.no_grad()
    def update(self) -> None:
        """Set average = decay * average + (1 - decay) * parameters, over all of them at once."""
        followed = [own(parameter) for parameter in self._followed]
        torch._foreach_lerp_(self._averaged, followed, 1 - self._decay)
