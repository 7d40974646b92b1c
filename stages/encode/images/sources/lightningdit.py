"""Latents as LightningDiT's preprocessing leaves them, drawn once from the posterior, no images.

Its `extract_features.py` writes safetensors files of some 10,000 images each: `latents` and
`latents_flip`, of the mirrored images, float32 [n, C, h, w] as the autoencoder gives them, and
`labels`, int64 [n]. Training sees them in the order of the files' names.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.encode.images.sources.folders import file_stamp
from stages.encode.images.sources.named_files import checked_array
from stages.encode.images.sources.names import numbered
from stages.encode.images.sources.source import (
    FileSettings,
    KeyList,
    LeftOut,
    Reason,
    Source,
    SourceError,
)

LATENTS, MIRRORED, LABELS = "latents", "latents_flip", "labels"
SUFFIX = ".safetensors"
# Means and deviations of channels, which lie beside the files.
STATISTICS = "latents_stats.pt"


class Shard(NamedTuple):
    """A file, and its labels [n]."""

    path: Path
    labels: npt.NDArray[np.int64]


def lightningdit_folder(dataset: FileSettings) -> Source:
    """A folder of such files. Raises SourceError."""
    path = dataset.local_path
    if path is None or not path.is_dir():
        raise SourceError(f"dataset.path: no folder {path}. Name the one with the files in it.")
    left_out = LeftOut()
    found = sorted(path.iterdir())
    for file in found:
        if file.suffix != SUFFIX and file.name != STATISTICS:
            left_out.add(Reason.OTHER, file.name)
    wanted = (LATENTS, MIRRORED) if dataset.flip else (LATENTS,)
    shards = [_open(file, wanted) for file in found if file.suffix == SUFFIX]
    if not shards:
        raise SourceError(f"dataset.path: {path} has no files *{SUFFIX}.")
    labels, classes = numbered(np.concatenate([one.labels for one in shards]).tolist(), path)
    places = _Places(shards)
    return Source(
        keys=places.keys,
        labels=labels,
        classes=classes,
        read=lambda index: b"".join(places.read(name, index).tobytes() for name in wanted),
        stamp=places.stamp,
        latents=partial(places.read, LATENTS),
        mirrored_latents=partial(places.read, MIRRORED) if dataset.flip else None,
        has_images=False,
        left_out=left_out,
    )


class _Places:
    """Where each image lies: in which file, and where in it."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        counts = [len(one.labels) for one in shards]
        self._starts = np.cumsum([0, *counts])
        self.keys = KeyList.of(
            [
                f"{one.path.stem}/{place:06}"
                for one, count in zip(shards, counts, strict=True)
                for place in range(count)
            ]
        )
        self._shape = self.read(LATENTS, 0).shape

    def read(self, name: str, index: int) -> npt.NDArray[np.float32]:
        """The latents [C, h, w] of an image. Raises SourceError if they are misshapen."""
        shard, place = self._find(index)
        where = f"{shard.path}: {name} of {place}"
        stored = _opened(shard.path, file_stamp(shard.path)).get_slice(name)[place]
        latents = checked_array(stored, 3, where)
        if index and latents.shape != self._shape:
            raise SourceError(f"{where}: shape {latents.shape}, but others have {self._shape}.")
        return latents

    def stamp(self, index: int) -> int:
        return file_stamp(self._find(index)[0].path)

    def _find(self, index: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[number], index - int(self._starts[number])


@lru_cache(maxsize=1024)
def _opened(path: Path, _stamp: int) -> Any:
    """What reads a file, which cannot be sent to another process. Raises SourceError."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path}: {error}.") from error


def _open(path: Path, wanted: Sequence[str]) -> Shard:
    file = _opened(path, file_stamp(path))
    lacking = {*wanted, LABELS} - set(file.keys())
    if lacking:
        raise SourceError(f"{path}: no {' and no '.join(sorted(lacking))}.")
    labels = np.asarray(file.get_tensor(LABELS))
    counts = {len(labels), *(file.get_slice(name).get_shape()[0] for name in wanted)}
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(counts) != 1:
        raise SourceError(f"{path}: expected a label and latents of each image.")
    return Shard(path, labels.astype(np.int64))
