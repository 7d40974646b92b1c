"""How fast this machine decodes and encodes: short measurements, which write nothing.

B images, S their side in px.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cache.captions import CAPTIONS
from cache.layout import FLIPPED
from cache.storage import compress
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import load_makers
from stages.encode.building.encoding_device import Device, Job
from stages.encode.building.texts import TextBatch, load_text_makers
from stages.encode.building.token_batches import Batch
from stages.encode.images.crop import Pixels, centre_crop, decode
from stages.encode.images.crop_batches import IMAGE_ERRORS, Crops
from stages.encode.images.sources import Source
from stages.encode.measuring.foresight import ForeseenColumn
from stages.progress import progress

MEASURE_SECONDS = 2.0
# Images that are compressed, and that threads decode between two looks at the clock.
SAMPLE_IMAGES = 64
# As long as most captions.
TYPICAL_TEXT = "a small cup of coffee on a wooden table"


@dataclass(frozen=True)
class Decoding:
    """How images are read, decoded and cropped.

    images_per_second: by as many threads as in a build; core_seconds: of one core for an image;
    compressed: what is left of their pixels.
    """

    images_per_second: float
    core_seconds: float
    compressed: float


def measure_decoding(source: Source, settings: EncodeSettings, seconds: float) -> Decoding:
    """Decode images from all over a data set for some seconds, as many threads as a build.

    seconds: 0 for a single sample. Images that cannot be decoded count as any other.
    """
    resolution, threads = settings.dataset.resolution, settings.build.decoding_threads()
    places = np.random.default_rng(0).permutation(len(source.keys)).tolist()

    def crop(place: int) -> Pixels | None:
        try:
            return centre_crop(decode(source.read(place)), resolution)
        except IMAGE_ERRORS:
            return None

    sizes: list[int] = []
    with ThreadPoolExecutor(threads) as pool:
        if seconds:
            # Threads start, archives are opened, and decoders are loaded.
            list(pool.map(crop, places[-threads:]))
        done, start, began = 0, time.perf_counter(), time.process_time()
        for first in range(0, len(places), SAMPLE_IMAGES):
            crops = list(pool.map(crop, places[first : first + SAMPLE_IMAGES]))
            done, spent = done + len(crops), time.perf_counter() - start
            busy = time.process_time() - began
            if first == 0:
                sizes = [len(compress(c.transpose(2, 0, 1))) for c in crops if c is not None]
                start, began = time.perf_counter() - spent, time.process_time() - busy
            if spent >= seconds:
                break
    row_bytes = 3 * resolution**2
    compressed = sum(sizes) / max(len(sizes), 1) / row_bytes
    return Decoding(done / spent, busy / done, compressed)


def measure_networks(
    settings: EncodeSettings, foreseen: Sequence[ForeseenColumn], device: torch.device
) -> dict[str, float]:
    """Seconds that each column takes for an image, with its network on a device.

    Weights are random: speed does not depend on them. Batches grow to those of a build as far as
    there is time. Mirrored columns take what the others do, imported ones and pixels nothing.
    """
    columns = {one.column.name: one.column for one in foreseen if one.flops}
    seconds: dict[str, float] = {}
    with progress("measure", len(foreseen), "columns") as advance:
        for maker in load_makers(settings, device, untrained=True):
            name, plain = maker.column, maker.column.removesuffix(FLIPPED)
            if plain in seconds:
                seconds[name] = seconds[plain]
            elif name in columns:
                job, side = Job(columns[name], maker), settings.dataset.resolution
                seconds[name] = _seconds_per_row(settings, job, device, partial(_images, side))
            else:
                seconds[name] = 0.0
            advance(1, name)
        texts = {name: own for name, own in settings.texts.items() if not own.imported}
        encoded = settings.model_copy(update={"texts": texts})
        for text_maker in load_text_makers(encoded, device, None):
            name = f"{CAPTIONS}/{text_maker.column}"
            job = Job(columns[name], text_maker)
            seconds[name] = _seconds_per_row(settings, job, device, _texts)
            advance(1, name)
    # What is made of other columns has no network.
    return {one.column.name: 0.0 for one in foreseen} | seconds


def _images(side: int, size: int) -> Batch:
    return Crops.of(torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8))


def _texts(size: int) -> Batch:
    return TextBatch(np.array([TYPICAL_TEXT] * size, object))


def _seconds_per_row(
    settings: EncodeSettings, job: Job, device: torch.device, batch_of: Callable[[int], Batch]
) -> float:
    """The least of batches that grow to those of a build, as far as there is time."""
    runner = Device(device)

    def spent(size: int) -> float:
        batch = batch_of(size)
        # The first batch of a size finds memory and chooses kernels.
        seconds = [sum(runner.encode(batch, [job]).wait()[1]) for _ in range(2)]
        return seconds[-1]

    least, size, start = spent(1), 1, time.perf_counter()
    # Two batches of twice the size.
    while time.perf_counter() - start + 4 * size * least <= MEASURE_SECONDS:
        size = min(2 * size, settings.build.images_at_once(device))
        least = min(least, spent(size) / size)
    return least
