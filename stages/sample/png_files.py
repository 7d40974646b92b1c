"""Images as PNG files, one by one or by threads beside the drawing of the next ones.

S: an image's side in px.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cache.files import atomic_file

Pixels: TypeAlias = npt.NDArray[np.uint8]
# Each encodes some 80 images of 256 px a second, and waits for the disk besides.
WRITING_THREADS = 4
# Of captions: px of a letter and of an image's side at least, and lines at most.
LETTER, LEAST_SIDE, MOST_LINES = 12, 160, 4


def save_png(path: Path, pixels: Pixels) -> None:
    """Write pixels, uint8 [height, width, 3]; the file is there whole or not at all."""
    with atomic_file(path) as stream:
        Image.fromarray(pixels).save(stream, format="png")


def save_grid(
    path: Path, images: Sequence[Pixels], columns: int, captions: Sequence[str] | None = None
) -> None:
    """Write images, uint8 [S, S, 3], row by row as one picture, with captions under them."""
    if captions is not None:
        return _save_captioned(path, images, columns, captions)
    side, rows = images[0].shape[0], -(-len(images) // columns)
    canvas = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for index, pixels in enumerate(images):
        top, left = (index // columns) * side, (index % columns) * side
        canvas[top : top + side, left : left + side] = pixels
    return save_png(path, canvas)


def _save_captioned(
    path: Path, images: Sequence[Pixels], columns: int, captions: Sequence[str]
) -> None:
    """Small images are enlarged, so that there is room for words."""
    font = ImageFont.load_default(LETTER)
    side = images[0].shape[0]
    side *= max(1, -(-LEAST_SIDE // side))
    texts = [_wrapped(text, font, side - 2 * LETTER) for text in captions]
    below = (max(text.count("\n") for text in texts) + 2) * LETTER * 5 // 4
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * side, rows * (side + below)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (pixels, text) in enumerate(zip(images, texts, strict=True)):
        left, top = index % columns * side, index // columns * (side + below)
        shown = Image.fromarray(pixels).resize((side - 4, side - 4), Image.Resampling.LANCZOS)
        canvas.paste(shown, (left + 2, top + 2))
        place = (left + side / 2, top + side + LETTER / 3)
        draw.multiline_text(place, text, "black", font, anchor="ma", align="center")
    save_png(path, np.asarray(canvas))


def _wrapped(text: str, font: Any, width: int) -> str:
    """A text in lines of a width in px; what is longer than `MOST_LINES` is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} ..."]
    return "\n".join(lines)


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
