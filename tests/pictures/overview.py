"""Draws the picture at the top of the README, by the tool itself.

    python tests/pictures/overview.py FOLDER

FOLDER gets photographs of scikit-image at 256 px, a cache of them with two encoders, and the
pictures of `repa-cache inspect`; `overview.png` of these becomes the README's, in fewer colours.
"""

import sys
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file

sys.path.extend([str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "tools")])

from saliency_vit import load_saliency_vit

from pipeline.commands.build import build
from pipeline.commands.inspect import inspect
from pipeline.config import load_config
from pipeline.inspection.gallery import InspectOptions, select, write_gallery
from stages.encode.images.sources.samples import open_photograph
from stages.encode.networks.registry import ENCODERS

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "rocket", "coins")
CONFIGURATION = """
[dataset]
source = "imagefolder"
path = "photographs"
resolution = 256

[cache]
path = "photographs.zarr"

[latents]
vae = "demo-autoencoder"

[encoders.saliency-vit-s]
weights = "saliency-vit-s.safetensors"

[encoders.efficientnet-lite0]

[train]
model = "SiT-XS/4"
run = "run"
align = []
depth = 2
"""


def main(folder: Path) -> None:
    """Make the picture."""
    for name in PHOTOGRAPHS:
        (folder / "photographs" / name).mkdir(parents=True)
        open_photograph(name, 256).save(folder / "photographs" / name / f"{name}.png")
    save_file(load_saliency_vit().state_dict(), folder / "saliency-vit-s.safetensors")
    # It has the shape of DINOv2's smallest network, and other weights.
    ENCODERS["saliency-vit-s"] = ENCODERS["dinov2-vit-s"]
    (folder / "pipeline.toml").write_text(CONFIGURATION)
    config = load_config(folder / "pipeline.toml")
    build(config)
    contents = inspect(config)
    keys = tuple(f"{name}/{name}.png" for name in PHOTOGRAPHS)
    write_gallery(config.encode, contents, select(contents, InspectOptions(keys)), None)
    with Image.open(folder / "photographs-inspect" / "overview.png") as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(Path(__file__).with_name("overview.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
