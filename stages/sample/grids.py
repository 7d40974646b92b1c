"""Pictures of samples: grids of images, the same ones whoever draws them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cache.files import atomic_file
from stages.encode.networks.autoencoder import Autoencoder
from stages.model.transformer import TransformerConfig
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampler import Sampler, make_sampled
from stages.train.train_settings import TrainSettings
from stages.weights.run_folder import grid_path


def save_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write pixels, uint8 [height, width, 3]."""
    with atomic_file(path) as stream:
        Image.fromarray(pixels).save(stream, format="png")


def save_grid(path: Path, images: Sequence[npt.NDArray[np.uint8]], columns: int) -> None:
    """Write images, uint8 [S, S, 3], row by row as one picture."""
    side, rows = images[0].shape[0], -(-len(images) // columns)
    canvas = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for index, pixels in enumerate(images):
        top, left = (index // columns) * side, (index % columns) * side
        canvas[top : top + side, left : left + side] = pixels
    save_png(path, canvas)


class GridDrawer:
    """Draws RUN/grids/step-00010000.png: the same noises and labels at every step.

    Call it with the step, the weights of a moving average by name, and what model they are of.
    """

    def __init__(
        self, settings: SampleSettings, train: TrainSettings, vae: str, device: torch.device
    ) -> None:
        self._settings = settings
        self._train = train
        self._device = device
        self._autoencoder = Autoencoder(vae, device)

    def __call__(self, step: int, weights: Mapping[str, Tensor], config: TransformerConfig) -> None:
        model = make_sampled(config, weights, self._device)
        sampler = Sampler(
            self._settings, model, self._train.interpolant, self._autoencoder, self._device
        )
        rows, columns = self._settings.grid
        drawn = sampler.draw(range(rows * columns))
        images = [image.permute(1, 2, 0).numpy() for _, image in drawn]
        path = grid_path(self._train.run, step)
        path.parent.mkdir(exist_ok=True)
        save_grid(path, images, columns)
