"""How fast sampling is against the published sampler.

    python tests/benchmarks/sample.py [--models SiT-S/2,SiT-B/2] [--images 4] [--steps 16]
        [--rounds 3] [--interval 0 0.7] [--guidance 1.8] [--device cuda] [--precision auto]
        [--compile auto]

Both draw latents from the same model with random weights, by Euler-Maruyama: this project's
sampler, and plain_sampling.py, which computes the projectors and both classes at every step. That
both draw the same latents, where no noise is added on the way, is checked first. They alternate,
round after round; the gain is the median over the rounds. Decoding, alike for both, is left out.
"""

import argparse
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from plain_sampling import sample
from plain_training import SiT

from stages.encode.networks.autoencoder import Autoencoder
from stages.model.transformer_config import TransformerConfig, config_named
from stages.placement import find_device
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampler import Sampler, make_sampled, sampling_precision
from stages.sample.told import labels_of
from stages.train.compute import arithmetic, autocast

OWN, PUBLISHED = "this project", "published sampler"
# Of DINOv2-B's tokens, to which the published sampler projects.
FEATURES = 768
COMPILE: dict[str, Any] = {"auto": "auto", "true": True, "false": False}


def config_of(name: str) -> TransformerConfig:
    """The published model of a name for ImageNet at 256 px."""
    return config_named(
        name,
        side=32,
        channels=4,
        classes=1000,
        has_null_class=True,
    )


class Samplers:
    """Both samplers of one model with random weights that are not zero."""

    def __init__(self, config: TransformerConfig, settings: SampleSettings, device: Any) -> None:
        self.settings, self.device = settings, device
        self.precision = sampling_precision(settings, device)
        torch.manual_seed(0)
        self.plain = SiT(config, dropping=0.1, features=(FEATURES,)).eval()
        for parameter in self.plain.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        own = make_sampled(config, self.plain.state_dict(), device)
        self.plain.to(device)
        vae = Autoencoder(str(files("stages.encode.networks") / "demo_autoencoder"), device)
        self.own = Sampler(settings, own, "linear", vae, device)

    def draw_own(self, count: int) -> torch.Tensor:
        return self.own.latents(range(count))

    def draw_published(self, count: int) -> torch.Tensor:
        settings = self.settings
        noise = self.own._noise(range(count), 0)
        labels = torch.tensor(labels_of(settings, range(count), 1000), device=self.device)
        arguments = (settings.steps, settings.guidance, settings.guidance_interval)
        with arithmetic(self.precision, deterministic=False), autocast(self.precision, self.device):
            return sample(self.plain, noise, labels, *arguments)


def check_agreement(settings: SampleSettings, device: torch.device) -> None:
    """That both draw the same latents of a small model, without the noise of the way."""
    settings = settings.model_copy(update={"precision": "float32", "compile": False})
    both = Samplers(config_of("SiT-XS/2"), settings, device)
    start = both.own._noise

    def silent(indices: Any, draw: int) -> torch.Tensor:
        noise = start(indices, draw)
        return noise if draw == 0 else torch.zeros_like(noise)

    with (
        patch.object(both.own, "_noise", silent),
        patch("torch.randn_like", torch.zeros_like),
    ):
        torch.testing.assert_close(
            both.draw_own(3).cpu(), both.draw_published(3).cpu(), rtol=1e-3, atol=1e-3
        )


def seconds(draw: Callable[[int], torch.Tensor], images: int) -> float:
    start = time.perf_counter()
    draw(images).cpu()
    return time.perf_counter() - start


def compare(name: str, settings: SampleSettings, images: int, rounds: int, device: Any) -> None:
    """Print the speed of both for one model."""
    both = Samplers(config_of(name), settings, device)
    draws = {OWN: both.draw_own, PUBLISHED: both.draw_published}
    spent: dict[str, list[float]] = {sampler: [] for sampler in draws}
    for turn in range(rounds + 1):
        for sampler in list(draws)[:: 1 if turn % 2 else -1]:
            # The first round compiles, and fills caches.
            found = seconds(draws[sampler], images if turn or device.type == "cuda" else 1)
            if turn:
                spent[sampler].append(found)
    gain = median(b / a for a, b in zip(spent[OWN], spent[PUBLISHED], strict=True))
    speeds = {sampler: images / median(found) for sampler, found in spent.items()}
    print(
        f"{name}: {', '.join(f'{s} {v:.3f} images/s' for s, v in speeds.items())}; gain {gain:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="SiT-S/2,SiT-B/2")
    parser.add_argument("--images", type=int, default=4, help="in each round, as one batch")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=float, nargs=2, default=(0.0, 0.7))
    parser.add_argument("--guidance", type=float, default=1.8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", choices=COMPILE, default="auto")
    options = parser.parse_args()
    device = find_device(options.device)
    settings = SampleSettings(
        solver="euler-maruyama",
        steps=options.steps,
        guidance=options.guidance,
        guidance_interval=tuple(options.interval),
        precision=options.precision,
        compile=COMPILE[options.compile],
    )
    check_agreement(settings, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads; torch {version('torch')}")
    precision = sampling_precision(settings, device)
    print(f"{precision}, compile {options.compile}, {options.images} images, {options.steps} steps")
    for model in options.models.split(","):
        compare(model, settings, options.images, options.rounds, device)


if __name__ == "__main__":
    main()
