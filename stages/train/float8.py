"""Matrix products of a transformer's blocks in 8 bits, by torchao."""

import torch
from torch import nn

from stages.model.transformer import Transformer
from stages.packages import importing_quietly
from stages.train.train_settings import RunError

# From which on GPUs multiply in float8, and what sizes of matrices they multiply.
CAPABILITY = (8, 9)
MULTIPLE = 16


def use_float8(model: Transformer, device: torch.device) -> None:
    """Let the blocks' linear layers multiply in float8, forward and backward.

    Each matrix is scaled by its largest value. Weights keep their names and stay in float32. What
    sees one vector an image, as modulation does, stays as it is: it would gain nothing. A CPU
    imitates it, and rounds alike. Raises RunError if a GPU has no such products.
    """
    with importing_quietly():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        raise RunError(
            f"'float8' needs a GPU of compute capability {'.'.join(map(str, CAPABILITY))} or more",
            where="train.precision",
            remedy='Set it to "auto".',
        )
    convert_to_float8_training(
        model.blocks,
        module_filter_fn=_is_converted,
        config=Float8LinearConfig(emulate=device.type != "cuda"),
    )


def _is_converted(module: nn.Module, name: str) -> bool:
    assert isinstance(module, nn.Linear)
    sizes = module.in_features, module.out_features
    return "adaLN_modulation" not in name and all(size % MULTIPLE == 0 for size in sizes)
