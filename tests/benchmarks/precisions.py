"""How far latents and tokens are from those of float32 if networks compute less precisely.

    python tests/benchmarks/precisions.py [--device cuda] [--images 32] [--resolution 256]
        [--batch 16] [--random]

Crops of photographs through the demo's autoencoder and EfficientNet-Lite0, with their real weights;
with --random through the architectures of SD-VAE and DINOv2-B instead, whose weights are random.
For each precision that the device has: the norm of the difference over that of the float32
result, of all images together and of the worst one. Beside it, what storing the float32 result as
float16 costs. TF32 is a thing of GPUs; a CPU shows float16 alone.
"""

import argparse
import platform
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from stages.encode.images.sources.samples import LICENCES, open_photograph
from stages.encode.network_settings import DEMO_AUTOENCODER, LatentsSettings, Precision
from stages.encode.networks.autoencoder import Autoencoder
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import find_encoder
from stages.placement import find_device

Network = Callable[[Tensor], dict[str, Tensor]]


def crops(count: int, side: int) -> Tensor:
    """Crops of photographs at random places, uint8 [count, 3, side, side]."""
    generator = np.random.default_rng(0)
    photographs = [np.asarray(open_photograph(name, 2 * side)) for name in LICENCES]
    found = []
    for number in range(count):
        pixels = photographs[number % len(photographs)]
        top, left = (int(generator.integers(0, size - side + 1)) for size in pixels.shape[:2])
        found.append(pixels[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def networks(
    device: torch.device, side: int, precision: Precision, *, is_random: bool
) -> dict[str, Network]:
    """An autoencoder and an encoder, the same whenever they are made."""
    torch.manual_seed(0)
    vae, encoder = DEMO_AUTOENCODER, "efficientnet-lite0"
    if is_random:
        vae, encoder = "stabilityai/sd-vae-ft-mse", "dinov2-vit-b"
    location, spec = LatentsSettings(vae=vae).location, find_encoder(encoder)
    size = spec.size_for(side)
    return {
        vae: Autoencoder(location, device, precision, untrained=is_random).encode,
        encoder: FrozenEncoder(spec, size, None, device, precision, untrained=is_random).features,
    }


def encoded(network: Network, images: Tensor, batch: int) -> Tensor:
    """Moments or tokens, [B, ...], float64."""
    parts = [next(iter(network(some).values())).cpu() for some in images.split(batch)]
    return torch.cat(parts).double()


def show(name: str, how: str, found: Tensor, exact: Tensor) -> None:
    """Print the difference of all images together, and of the worst."""
    wrong, right = (found - exact).flatten(1).norm(dim=1), exact.flatten(1).norm(dim=1)
    together, worst = wrong.norm() / right.norm(), (wrong / right).max()
    print(f"{name:<28} {how:<20} {together:8.1e}   worst {worst:8.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--random", action="store_true", help="large networks, random weights")
    options = parser.parse_args()
    device, side = find_device(options.device), options.resolution
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}; {options.images} images, {side} px")
    images, exact = crops(options.images, side), dict[str, Tensor]()
    precisions: tuple[Precision, ...] = get_args(Precision)
    for precision in precisions:
        if precision == "tf32" and device.type != "cuda":
            continue
        made = networks(device, side, precision, is_random=options.random)
        for network, run in made.items():
            found = encoded(run, images, options.batch)
            if precision == "float32":
                exact[network] = found
                show(network, "stored as float16", found.half().double(), found)
            else:
                show(network, f"computed in {precision}", found, exact[network])


if __name__ == "__main__":
    main()
