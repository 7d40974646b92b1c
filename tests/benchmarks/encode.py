"""How fast images are encoded, against the networks alone and the published way.

    python tests/benchmarks/encode.py FOLDER [--networks small|real] [--images 512] [--rounds 5]
        [--device cuda --precision float16 --batch 128 --threads 16 --encoders dinov2-vit-b,...]

All three encode the same photographs of 500 x 375 px (JPEG) with the same networks:

- this project: `repa-cache build`, from files on disk to a finished cache;
- the networks alone: the forward passes on crops that lie in memory already, nothing stored;
- the published way: one image at a time, and a `.npy` file for each tensor of it.

They alternate, round after round; a ratio is the median over the rounds. Real networks have the
real architectures with random weights, so that nothing is downloaded. FOLDER is left empty.
"""

import argparse
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from pipeline.config import Config, load_config
from stages.encode.build import BuildSummary, build
from stages.encode.columns import Maker, load_makers
from stages.encode.crops import Crops
from stages.encode.encoders import find_encoder
from stages.encode.images import centre_crop, decode
from stages.encode.photographs import LICENCES, open_photograph
from stages.encode.weights import create_network
from stages.placement import find_device
from stages.vision import AutoencoderKL

SIZE = (500, 375)
CLASSES = 10

CONFIG = """
[dataset]
source = "imagefolder"
path = "images"
resolution = 256

[cache]
path = "cache.zarr"
rows_per_shard = {shard}

[latents]
vae = "{vae}"
precision = "{precision}"

[build]
batch_size = {batch}
threads = {threads}
device = "{device}"

[train]
run = "run"
encoders = []
"""
ENCODER = """
[encoders.{name}]
precision = "{precision}"
{weights}
"""
# Of the VAE of Stable Diffusion, which is that of SiT and DiT.
STABLE_DIFFUSION = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}


def write_photographs(folder: Path, count: int) -> None:
    """JPEG files cut from photographs, no two alike, with the noise of a camera."""
    photographs = [open_photograph(name, 500) for name in LICENCES]
    generator = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        left = int(generator.integers(0, photograph.width - SIZE[0] + 1))
        top = int(generator.integers(0, photograph.height - SIZE[1] + 1))
        pixels = np.asarray(photograph.crop((left, top, left + SIZE[0], top + SIZE[1])))
        noisy = pixels + generator.normal(0, 4, pixels.shape)
        path = folder / f"class{number % CLASSES}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=95)


def write_networks(folder: Path, options: argparse.Namespace) -> Config:
    """A configuration with the networks that are to be measured."""
    vae, encoders = "demo-autoencoder", {"efficientnet-lite0": ""}
    if options.networks == "real":
        vae = "sd-vae"
        AutoencoderKL(**STABLE_DIFFUSION).save_pretrained(folder / vae)
        encoders = {}
        for name in options.encoders.split(","):
            spec = find_encoder(name)
            network = create_network(spec, spec.size_for(256))
            torch.save(network.state_dict(), folder / f"{name}.pth")
            encoders[name] = f'weights = "{name}.pth"'
    text = CONFIG.format(vae=vae, shard=options.shard, **vars(options))
    for name, weights in encoders.items():
        text += ENCODER.format(name=name, weights=weights, precision=options.precision)
    (folder / "pipeline.toml").write_text(text)
    return load_config(
        folder / "pipeline.toml",
        [f"latents.vae={folder / vae}"] if "-" in vae and vae != "demo-autoencoder" else [],
    )


@dataclass(frozen=True)
class Bench:
    """The three ways to encode the same images."""

    config: Config
    makers: list[Maker]
    device: torch.device
    files: list[Path]
    crops: list[Crops]
    folder: Path

    def built(self) -> tuple[float, BuildSummary]:
        """Seconds of the whole build but for loading networks."""
        shutil.rmtree(self.config.cache.path, ignore_errors=True)
        made = build(self.config.encode, self.device)
        return made.seconds, made

    def networks_alone(self) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for crops in self.crops:
                there = crops.to(self.device)
                for maker in self.makers:
                    maker.network(there)
        self._synchronize()
        return time.perf_counter() - start

    def published(self, count: int) -> float:
        """Seconds for all images, from those of the first `count`."""
        shutil.rmtree(self.folder / "npy", ignore_errors=True)
        (self.folder / "npy").mkdir()
        start = time.perf_counter()
        for number, file in enumerate(self.files[:count]):
            pixels = torch.from_numpy(centre_crop(decode(file.read_bytes()), 256).copy())
            crops = Crops.of(pixels.permute(2, 0, 1)[None].to(self.device))
            for maker in self.makers:
                for name, tensor in maker.network(crops).items():
                    np.save(self.folder / "npy" / f"{number}-{name}.npy", tensor[0].cpu().numpy())
        return (time.perf_counter() - start) * len(self.files) / count

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def batches(files: list[Path], size: int) -> Iterator[Crops]:
    for start in range(0, len(files), size):
        pixels = [centre_crop(decode(f.read_bytes()), 256) for f in files[start : start + size]]
        yield Crops.of(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))


def measure(bench: Bench, options: argparse.Namespace) -> None:
    images, few = len(bench.files), min(options.published, len(bench.files))
    speeds: dict[str, list[float]] = {"this project": [], "networks alone": [], "published way": []}
    for turn in range(options.rounds + 1):
        seconds, made = bench.built()
        round_speeds = (
            images / seconds,
            images / bench.networks_alone(),
            images / bench.published(few),
        )
        if turn == 0:
            continue  # Warms up.
        for name, speed in zip(speeds, round_speeds, strict=True):
            speeds[name].append(speed)
        print(f"round {turn}: {made.counts.note(made.seconds)}", flush=True)
    for name, values in speeds.items():
        ratios = [a / b for a, b in zip(speeds["this project"], values, strict=True)]
        speed = f"{median(values):8.1f} images/s"
        print(f"  {name:<16} {speed}   this project / this: {median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", choices=("small", "real"), default="small")
    parser.add_argument("--encoders", default="dinov2-vit-b")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument(
        "--published", type=int, default=64, help="images encoded the published way"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shard", type=int, default=256)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_photographs(folder / "images", options.images)
    config = write_networks(folder, options)
    device = find_device(options.device)
    files = sorted((folder / "images").rglob("*.jpg"))
    crops = list(batches(files, options.batch))
    makers = load_makers(config.encode, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "diffusers", "pillow"))
    print(f"{name}, {torch.get_num_threads()} threads; {packages}")
    print(", ".join(maker.column for maker in makers), options.precision, f"batch {options.batch}")
    measure(Bench(config, makers, device, files, crops, folder), options)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
