"""Images as PNG files, one by one or by threads beside the drawing of the next ones.

S: an image's side in px.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from cache.files import atomic_file

Pixels: TypeAlias = npt.NDArray[np.uint8]
# Each encodes some 80 images of 256 px a second, and waits for the disk besides.
WRITING_THREADS = 4


def save_png(path: Path, pixels: Pixels) -> None:
    """Write pixels, uint8 [height, width, 3]; the file is there whole or not at all."""
    with atomic_file(path) as stream:
        Image.fromarray(pixels).save(stream, format="png")


def save_grid(path: Path, images: Sequence[Pixels], columns: int) -> None:
    """Write images, uint8 [S, S, 3], row by row as one picture."""
    side, rows = images[0].shape[0], -(-len(images) // columns)
    canvas = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for index, pixels in enumerate(images):
        top, left = (index // columns) * side, (index % columns) * side
        canvas[top : top + side, left : left + side] = pixels
    save_png(path, canvas)


@contextmanager
def png_writer(most: int) -> Iterator[Callable[[Path, Pixels], None]]:
    """A `save_png` that leaves the work to threads; behind the block, all files are there.

    most: how many images may wait before it waits, too. What went wrong with a file is raised by
    a later call, or at the end of the block. If that ends by an error, files that are begun are
    finished, and the others left out.
    """
    pool = ThreadPoolExecutor(WRITING_THREADS)
    writes: deque[Future[None]] = deque()

    def write(path: Path, pixels: Pixels) -> None:
        while writes and (len(writes) >= most or writes[0].done()):
            writes.popleft().result()
        writes.append(pool.submit(save_png, path, pixels))

    try:
        yield write
        for begun in writes:
            begun.result()
    finally:
        pool.shutdown(cancel_futures=True)
