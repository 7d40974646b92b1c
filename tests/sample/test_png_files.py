"""Images that threads write while others are drawn."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.sample import png_files
from stages.sample.png_files import WRITING_THREADS, Pixels, png_writer, save_png

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), np.uint8)


def test_files_of_threads_are_those_of_one_after_another(tmp_path: Path) -> None:
    with png_writer(most=3) as write:
        for number, pixels in enumerate(PIXELS):
            write(tmp_path / f"{number}.png", pixels)
    assert len(list(tmp_path.iterdir())) == len(PIXELS)
    for number, pixels in enumerate(PIXELS):
        with Image.open(tmp_path / f"{number}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)
    save_png(tmp_path / "alone.png", PIXELS[7])
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "7.png").read_bytes()


def test_no_more_images_wait_than_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, returned, full = threading.Event(), list[int](), threading.Event()

    def waits(path: Path, pixels: Pixels) -> None:
        assert goes_on.wait(60)
        save_png(path, pixels)

    def draw() -> None:
        with png_writer(most=5) as write:
            for number in range(8):
                if number == 5:
                    full.set()
                write(tmp_path / f"{number}.png", PIXELS[number])
                returned.append(number)

    monkeypatch.setattr(png_files, "save_png", waits)
    drawing = threading.Thread(target=draw)
    drawing.start()
    assert full.wait(60)
    # The sixth cannot return before a file is written.
    drawing.join(0.05)
    assert returned == [0, 1, 2, 3, 4]
    goes_on.set()
    drawing.join()
    assert returned == list(range(8))
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("most", [1, 100])
def test_what_goes_wrong_with_a_file_is_raised(tmp_path: Path, most: int) -> None:
    with pytest.raises(FileNotFoundError), png_writer(most) as write:
        for number, pixels in enumerate(PIXELS):
            write(tmp_path / ("nowhere/a.png" if number == 8 else f"{number}.png"), pixels)
    assert all(path.suffix == ".png" for path in tmp_path.iterdir())


def test_who_is_interrupted_leaves_what_is_begun_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, interrupted = threading.Barrier(WRITING_THREADS + 1), threading.Event()
    real_shutdown = ThreadPoolExecutor.shutdown

    def late(_descriptor: int) -> None:
        if not interrupted.is_set():
            begun.wait(60)
            assert interrupted.wait(60)

    def shutdown(pool: ThreadPoolExecutor, **options: bool) -> None:
        real_shutdown(pool, wait=False, **options)
        interrupted.set()
        real_shutdown(pool)

    monkeypatch.setattr(os, "fsync", late)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    with pytest.raises(KeyboardInterrupt), png_writer(most=100) as write:
        for number, pixels in enumerate(PIXELS):
            write(tmp_path / f"{number}.png", pixels)
        begun.wait(60)
        raise KeyboardInterrupt
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == list(range(WRITING_THREADS))
    for number in range(WRITING_THREADS):
        with Image.open(tmp_path / f"{number}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), PIXELS[number])
