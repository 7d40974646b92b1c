"""Files of weights that others made: what is in them, without running any code in them."""

import argparse
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cache.errors import RepaCacheError

# How torn files and files of other kinds fail.
READING_ERRORS = (
    OSError,
    RuntimeError,
    LookupError,
    EOFError,
    TypeError,
    ValueError,
    SafetensorError,
)


def read_weight_file(path: Path) -> Any:
    """The content of a file of safetensors or of `torch.save`, on the CPU."""
    if path.suffix == ".safetensors":
        return load_file(path)
    # A namespace of arguments lies in many checkpoints and runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        # Of a checkpoint ten times the size of its network only what is used is read.
        is_mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)


@contextmanager
def reading(path: Path, refused: type[RepaCacheError]) -> Iterator[None]:
    """Raise `refused` if the file is torn, of another kind, or would run code."""
    try:
        yield
    except UnpicklingError as error:
        raise refused(_refusal(path, error)) from error
    except READING_ERRORS as error:
        raise refused(
            f"{path} cannot be read as weights: it is torn, or of another kind ({error})."
        ) from error


def _refusal(path: Path, error: UnpicklingError) -> str:
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted is None:
        return f"{path} cannot be read as weights: it is torn, or of another kind."
    return (
        f"{path} is refused: to unpickle it would run code of {wanted[1]}. If you trust its "
        "authors, load it with torch.load(..., weights_only=False), and save its tensors alone "
        "with safetensors.torch.save_file."
    )
