"""How fast images are encoded, against the networks alone and the published way.

    python tests/benchmarks/encode.py FOLDER [--networks small|real] [--resolution 256]
        [--height 375] [--images 512] [--rounds 5] [--batch 32] [--threads 4]
        [--device cuda] [--precision float16] [--encoders dinov2-vit-b,dinov2-vit-l]

All three encode the same photographs (JPEG, 4:3, 375 px high) with the same networks:

- this project: `repa-cache build`, from files on disk to a finished cache;
- the networks alone: the forward passes on crops that lie in memory already, nothing stored;
- the published way: one image at a time, and a `.npy` file for each tensor of it, in a process
  of its own.

They alternate, round after round; a ratio is the median over the rounds. Real networks have the
real architectures with random weights, so that nothing is downloaded. FOLDER is left empty.
"""

import argparse
import multiprocessing
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from pipeline.config import Config, load_config
from stages.encode.build import BuildSummary, build
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import Maker, load_makers
from stages.encode.images.crop import centre_crop, decode
from stages.encode.images.crop_batches import Crops
from stages.encode.images.sources.samples import LICENCES, open_photograph
from stages.encode.networks.registry import find_encoder
from stages.encode.networks.timm_library import create_network
from stages.placement import find_device
from stages.vision import AutoencoderKL

CLASSES = 10

CONFIG = """
[dataset]
source = "imagefolder"
path = "images"
resolution = {resolution}

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
align = []
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


def write_photographs(folder: Path, count: int, height: int) -> None:
    """JPEG files cut from photographs, no two alike, with the noise of a camera."""
    width = height * 4 // 3
    photographs = [open_photograph(name, width) for name in LICENCES]
    generator = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        left = int(generator.integers(0, photograph.width - width + 1))
        top = int(generator.integers(0, photograph.height - height + 1))
        pixels = np.asarray(photograph.crop((left, top, left + width, top + height)))
        noisy = pixels + generator.normal(0, 4, pixels.shape)
        path = folder / f"class{number % CLASSES}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=95)


def write_networks(folder: Path, options: argparse.Namespace) -> Config:
    """A configuration with the networks that are to be measured."""
    vae, encoders = "demo-autoencoder", {"efficientnet-lite0": ""}
    if options.networks == "real":
        vae, encoders = str(folder / "sd-vae"), {}
        AutoencoderKL(**STABLE_DIFFUSION).save_pretrained(vae)
        for name in options.encoders.split(","):
            spec = find_encoder(name)
            network = create_network(spec, spec.size_for(options.resolution))
            torch.save(network.state_dict(), folder / f"{name}.pth")
            encoders[name] = f'weights = "{name}.pth"'
    text = CONFIG.format(vae=vae, **vars(options))
    for name, weights in encoders.items():
        text += ENCODER.format(name=name, weights=weights, precision=options.precision)
    (folder / "pipeline.toml").write_text(text)
    return load_config(folder / "pipeline.toml")


@dataclass(frozen=True)
class Bench:
    """Two ways to encode the same images; seconds for all of them."""

    config: Config
    makers: list[Maker]
    device: torch.device
    crops: list[Crops]

    def built(self) -> tuple[float, BuildSummary]:
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
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def publish(settings: EncodeSettings, device: str, files: list[Path], answers: Connection) -> None:
    """Encode files one by one whenever asked to, and answer with the seconds for each."""
    makers = load_makers(settings, torch.device(device))
    folder = settings.cache.path.with_name("npy")
    while answers.recv():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        start = time.perf_counter()
        for number, file in enumerate(files):
            pixels = centre_crop(decode(file.read_bytes()), settings.dataset.resolution)
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(device)
            for maker in makers:
                for name, tensor in maker.network(Crops.of(image)).items():
                    np.save(folder / f"{number}-{name}.npy", tensor[0].cpu().numpy())
        answers.send((time.perf_counter() - start) / len(files))


def batches(files: list[Path], options: argparse.Namespace) -> Iterator[Crops]:
    for start in range(0, len(files), options.batch):
        some = files[start : start + options.batch]
        pixels = [centre_crop(decode(file.read_bytes()), options.resolution) for file in some]
        yield Crops.of(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))


def measure(bench: Bench, published: Connection, images: int, rounds: int) -> None:
    speeds: dict[str, list[float]] = {"this project": [], "networks alone": [], "published way": []}
    for turn in range(rounds + 1):
        seconds, made = bench.built()
        alone = bench.networks_alone()
        published.send(True)
        each = published.recv()
        if turn == 0:
            continue  # Warms up.
        for name, speed in zip(speeds, (images / seconds, images / alone, 1 / each), strict=True):
            speeds[name].append(speed)
        print(f"round {turn}: {made.counts.note(made.seconds)}", flush=True)
    published.send(False)
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
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--height", type=int, default=375)
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
    write_photographs(folder / "images", options.images, options.height)
    config = write_networks(folder, options)
    device = find_device(options.device)
    files = sorted((folder / "images").rglob("*.jpg"))
    crops = list(batches(files, options))
    makers = load_makers(config.encode, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "diffusers", "pillow"))
    print(f"{name}, {torch.get_num_threads()} threads; {packages}")
    columns = ", ".join(maker.column for maker in makers)
    print(f"{columns}; {options.precision}, batch {options.batch}, {options.resolution} px")
    context, (here, there) = multiprocessing.get_context("spawn"), multiprocessing.Pipe()
    few = files[:: max(1, len(files) // options.published)]
    child = context.Process(target=publish, args=(config.encode, options.device, few, there))
    child.start()
    measure(Bench(config, makers, device, crops), here, len(files), options.rounds)
    child.join()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
