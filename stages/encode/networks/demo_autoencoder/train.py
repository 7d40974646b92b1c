"""Trains the demo autoencoder: an AutoencoderKL small enough to ship, for 64 px photographs.

Run it as `python -m stages.encode.networks.demo_autoencoder.train FOLDER`; it takes a quarter of
an hour on two CPU cores and needs only scikit-image's photographs. It writes the diffusers folder,
and prints the reconstruction PSNR of photographs that are not trained on.

The network starts as a plain down- and upsampling of the colours, not as noise: residual
branches start at zero, and three channels carry the colours from one end to the other. That
start alone gives 25 dB; from a random start the same network has 18 dB after as many steps.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stages.encode.images.sources.samples import LICENCES, open_photograph
from stages.progress import progress

HELD_OUT = ("chelsea", "rocket")
TRAINED_ON = tuple(name for name in LICENCES if name not in HELD_OUT)
SIDE = 64
SHORT_SIDES = (96, 128, 160, 192, 256, 320, 400)
STEPS = 2500
BATCH = 8
LEARNING_RATE = 1e-3
KL_WEIGHT = 1e-6
EMA_DECAY = 0.995
# Constant channels this large leave a group norm nearly linear in the colours beside them.
CONSTANT = 8.0
# The posterior's standard deviation starts at exp(-4).
LOG_VARIANCE = -8.0
COLOURS = range(3)
AS_IT_IS = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
AVERAGE = torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]])
SMOOTH = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def make_model() -> Any:
    """The network at its start: it reproduces images at a quarter of their resolution."""
    from stages.vision import AutoencoderKL

    model: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "ResnetBlock2D":
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
        _carry_colours(model)
    return model.to(memory_format=torch.channels_last)


def _carry_colours(model: Any) -> None:
    encoder, decoder = model.encoder, model.decoder
    _carry(encoder.conv_in, AS_IT_IS)
    _carry(decoder.conv_in, AS_IT_IS)
    for block in encoder.down_blocks[:2]:
        _carry(block.downsamplers[0].conv, AVERAGE)
    for block in decoder.up_blocks[:2]:
        _carry(block.upsamplers[0].conv, SMOOTH)
    for block in (*encoder.down_blocks[:2], *decoder.up_blocks[:2]):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                _carry(resnet.conv_shortcut, torch.ones(1, 1))
    for half, blocks in ((encoder, encoder.down_blocks), (decoder, decoder.up_blocks)):
        _split_signs(blocks[2].resnets[0].conv_shortcut, half.conv_norm_out.num_groups)
        _join_signs(half.conv_norm_out, half.conv_out)
    latents = model.config.latent_channels
    encoder.conv_out.weight[latents:] *= 0.1
    encoder.conv_out.bias[latents:] = LOG_VARIANCE
    for convolution in (model.quant_conv, model.post_quant_conv):
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)


def _carry(convolution: nn.Conv2d, kernel: Tensor) -> None:
    """Let the first three channels pass through a convolution, each by itself."""
    for colour in COLOURS:
        _set_row(convolution, colour, colour, kernel, 0.0)


def _split_signs(convolution: nn.Conv2d, groups: int) -> None:
    """Give each colour a group with the channels +colour, -colour, +constant and -constant."""
    size = convolution.out_channels // groups
    for colour in COLOURS:
        rows = ((1.0, 0.0), (-1.0, 0.0), (0.0, CONSTANT), (0.0, -CONSTANT))
        for offset, (weight, bias) in enumerate(rows):
            kernel = torch.full((1, 1), weight)
            _set_row(convolution, size * colour + offset, colour, kernel, bias)


def _join_signs(norm: nn.GroupNorm, convolution: nn.Conv2d) -> None:
    """Undo the norm's scale; then silu(x) - silu(-x) = x gives the colour back."""
    size = norm.num_channels // norm.num_groups
    for colour in COLOURS:
        first = size * colour
        norm.weight[first : first + 2] = CONSTANT * math.sqrt(2 / size)
        _set_row(convolution, colour, first, AS_IT_IS, 0.0)
        convolution.weight[colour, first + 1] = -AS_IT_IS


def _set_row(
    convolution: nn.Conv2d, output: int, channel: int, kernel: Tensor, bias: float
) -> None:
    nn.init.zeros_(convolution.weight[output])
    convolution.weight[output, channel] = kernel
    assert convolution.bias is not None
    convolution.bias[output] = bias


def pixels(image: Image.Image) -> Tensor:
    """An image as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Crops:
    """Random crops of the photographs at many scales, with colours mixed at random."""

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._photographs = [
            pixels(open_photograph(name, side)) for name in TRAINED_ON for side in SHORT_SIDES
        ]

    def batch(self) -> Tensor:
        """Crops in [-1, 1], [BATCH, 3, SIDE, SIDE]."""
        crops = torch.stack([self._crop() for _ in range(BATCH)])
        return crops.contiguous(memory_format=torch.channels_last)

    def _crop(self) -> Tensor:
        image = self._photographs[self._integer(len(self._photographs))]
        top, left = (self._integer(side - SIDE + 1) for side in image.shape[1:])
        crop = image[:, top : top + SIDE, left : left + SIDE].float() / 127.5 - 1
        if self._integer(2):
            crop = crop.flip(2)
        if self._integer(2):
            crop = crop.transpose(1, 2)
        if self._integer(2):
            mix = torch.eye(3) + 0.25 * torch.randn(3, 3, generator=self._random)
            shift = 0.2 * torch.randn(3, 1, 1, generator=self._random)
            crop = (torch.einsum("ij,jhw->ihw", mix, crop) + shift).clamp(-1, 1)
        return crop

    def _integer(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._random))


def train(model: Any) -> Any:
    """Train with L1 and a weak KL term; returns the moving average of the weights."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    crops = Crops(seed=0)
    with progress("autoencoder", STEPS, "steps") as advance:
        for step in range(STEPS):
            rate = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * rate
            images = crops.batch()
            posterior = model.encode(images).latent_dist
            error = (model.decode(posterior.sample()).sample - images).abs().mean()
            (error + KL_WEIGHT * posterior.kl().mean()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            average.update_parameters(model)
            advance(1, f"L1 {error.item():.4f}")
    return average.module


@torch.no_grad()
def set_scaling(model: Any) -> None:
    """Set the scaling factor that gives latents of the training crops unit variance."""
    crops = Crops(seed=1)
    latents = torch.cat([model.encode(crops.batch()).latent_dist.mean for _ in range(32)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))


@torch.no_grad()
def reconstruction_psnr(model: Any, images: Sequence[Image.Image]) -> float:
    """Mean PSNR in dB over the crops of SIDE px that tile some images, after rounding."""
    values = []
    for image in map(pixels, images):
        tiles = image.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)
        crops = tiles.permute(1, 2, 0, 3, 4).flatten(0, 1).float()
        decoded = model.decode(model.encode(crops / 127.5 - 1).latent_dist.mean).sample
        rounded = (decoded * 127.5 + 127.5).clamp(0, 255).round()
        errors = (rounded - crops).square().flatten(1).mean(1).clamp_min(1e-3)
        values.append(10 * torch.log10(255**2 / errors))
    return torch.cat(values).mean().item()


def main(folder: Path) -> None:
    """Train, save in half precision, and measure what was saved."""
    torch.manual_seed(0)
    model = train(make_model())
    set_scaling(model)
    model.half().save_pretrained(folder)
    saved = type(model).from_pretrained(folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    for name in HELD_OUT:
        psnr = reconstruction_psnr(saved, [open_photograph(name, 160)])
        sys.stdout.write(f"{name}: {psnr:.2f} dB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
