"""What a run sees of a cache: arrays by name, and the images that have them all.

`ENCODER/tokens` are an encoder's tokens [B, T, D]; `ENCODER/directions` the same up to a positive
factor for each token, which spares int8 codes their scales; `ENCODER/vector` its class token, or
the mean of its tokens where it has none, [B, D]; `NAME/unit_tokens` the components of a column of
components, [B, T, R], each divided by its deviation over the images that they were fitted to; any
other array of the column has its own name,
such as `ENCODER/class_token`. All are float32. B images, T tokens, D features, C
latent channels, h and w the latent's sides, N rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.captions import CAPTIONS
from cache.errors import IncompleteCacheError
from cache.layout import PIXELS, Column
from cache.reader import Cache, ColumnReader
from cache.storage import STORAGES, Storage
from cache.stores.kept_rows import BY_RANGES, StoreReading
from stages.latents import LatentScaling, latent_shape, main_array, scaling_of
from stages.train.cached_captions import CachedCaptions
from stages.train.train_settings import CachedTensors

DIRECTIONS, TOKENS, VECTOR, CLASS_TOKEN = "directions", "tokens", "vector", "class_token"
UNIT_TOKENS = "unit_tokens"
# The constant of a column of components that has their variances, the largest first.
VARIANCES = "explained_variance"


def encoder_of(name: str) -> str:
    """Whose array a name means."""
    return name.rpartition("/")[0]


def stored_arrays(name: str, column: Column) -> tuple[str, ...]:
    """The arrays of an encoder's column that one of a batch is made from."""
    array = _array_of(name, column)
    if array == DIRECTIONS:
        return (TOKENS,)
    decoded = {TOKENS, VECTOR, UNIT_TOKENS}
    return (TOKENS, *storage_of(column).beside) if array in decoded else (array,)


def _array_of(name: str, column: Column) -> str:
    """What is made of the arrays: the vector of a column with class tokens is such a one."""
    array = name.rpartition("/")[2]
    has_class_token = any(own.name == CLASS_TOKEN for own in column.arrays)
    return CLASS_TOKEN if array == VECTOR and has_class_token else array


def shape_of(name: str, column: Column) -> tuple[int, ...]:
    """Of one of a batch, for an image."""
    shape = column.array(stored_arrays(name, column)[0]).row_shape
    return shape[-1:] if name.endswith(f"/{VECTOR}") else shape


def notes_on_means(names: Iterable[str], column_of: Callable[[str], Column]) -> Iterator[str]:
    """Where the mean of an encoder's tokens stands for a class token, a line each.

    names: of arrays of a batch; column_of: an encoder's.
    """
    for name in names:
        encoder = encoder_of(name)
        if name.endswith(f"/{VECTOR}") and _array_of(name, column_of(encoder)) == VECTOR:
            yield f"{encoder} has no class token: the mean of its tokens stands for it"


def storage_of(column: Column) -> Storage:
    """How an encoder's tokens are stored."""
    return STORAGES[str(column.recipe["storage"])]


class Decoder:
    """Turns the stored arrays of an encoder into one of a batch, on the device.

    views: the columns of each view of an image; stored: the names of the arrays that it takes.
    """

    def __init__(self, name: str, views: Sequence[Column], device: torch.device) -> None:
        self.name = name
        self._array = _array_of(name, views[0])
        self._storage = storage_of(views[0])
        self.stored = stored_arrays(name, views[0])
        needed = (*self._storage.constants, *((VARIANCES,) if self._array == UNIT_TOKENS else ()))
        self._constants = {
            constant: torch.from_numpy(np.stack([view.constants[constant] for view in views])).to(
                device
            )
            for constant in needed
        }

    def __call__(self, arrays: Mapping[str, Tensor], views: Tensor) -> Tensor:
        """Numbers, float32 [B, ...].

        arrays: the rows of those stored, by name; views: int64 [B], the view that each image is.
        """
        # A constant of each view, [views, D], becomes that of each image, [B, 1, D].
        constants = {name: values[views][:, None] for name, values in self._constants.items()}
        decoded: Tensor
        if self._array == DIRECTIONS:
            decoded = self._storage.directions(arrays[TOKENS], constants)
        elif self._array == UNIT_TOKENS:
            decoded = self._storage.decode(TOKENS, arrays, constants)
            decoded = decoded / constants[VARIANCES][..., : decoded.shape[-1]].sqrt()
        elif self._array in {TOKENS, VECTOR}:
            decoded = self._storage.decode(TOKENS, arrays, constants)
            # Tokens [B, T, D] become their means, [B, D].
            decoded = decoded.mean(dim=1) if self._array == VECTOR else decoded
        else:
            decoded = arrays[self._array].float()
        return decoded


class CachedData:
    """The columns of a run, one reader for each view of an image.

    encoders: whose tokens are read at some step; reading: of a cache in a store; path: of the
    cache; features: their readers, by name; labels: int32 [N]; keys: of the images; captions: if
    any are read; valid: the rows that hold tensors in every column, and have a caption if they are
    read; mirrors_pixels: whether what is read of mirrored images has to be mirrored; latent_array:
    that holds latents; latent_shape: (C, h, w). Raises IncompleteCacheError if a column is missing
    or not finished.
    """

    def __init__(
        self,
        tensors: CachedTensors,
        encoders: Sequence[str],
        *,
        verify: bool = True,
        reading: StoreReading = BY_RANGES,
    ) -> None:
        self.path, cache = tensors.path, Cache(tensors.path, reading)
        self.latents, *features = [
            [cache.column(name, verify=verify) for name in views]
            for views in tensors.columns(encoders)
        ]
        self.features = dict(zip(encoders, features, strict=True))
        readers = [reader for views in (self.latents, *features) for reader in views]
        self.flip = tensors.flip
        self.mirrors_pixels = tensors.flip and tensors.latents == PIXELS
        self.labels, self.keys = cache.rows.label, cache.rows.key
        self.classes = len(cache.rows.classes)
        self.captions: CachedCaptions | None = None
        if tensors.text is not None:
            self.captions = CachedCaptions(
                tensors.path, tensors.text, cache.rows, verify=verify, reading=reading
            )
        self.valid = _valid_rows(readers, self.captions)
        latents = self.latents[0].column
        self.latent_array = main_array(latents).name
        self.latent_shape = latent_shape(latents)
        self._rule = tensors.scaling
        self.fingerprints = {reader.column.name: reader.column.fingerprint for reader in readers}
        self.rows_identity = {"fingerprint": cache.rows.fingerprint, "valid": len(self.valid)}
        if self.captions is not None:
            column = self.captions.column
            self.fingerprints[f"{CAPTIONS}/{column.name}"] = column.fingerprint
            self.rows_identity[CAPTIONS] = self.captions.fingerprint

    @cached_property
    def scaling(self) -> LatentScaling:
        """Of the latents. Raises ScalingError if it is not known."""
        return scaling_of(self.latents[0].column, self._rule)

    def column(self, encoder: str) -> Column:
        """An encoder's, of the images as they are."""
        return self.features[encoder][0].column

    def shape(self, name: str) -> tuple[int, ...]:
        """That of an image's part of an array, one of `stages.train.cached_data`."""
        return shape_of(name, self.column(encoder_of(name)))


def _valid_rows(
    readers: Sequence[ColumnReader], captions: CachedCaptions | None
) -> npt.NDArray[np.int64]:
    """The rows that hold tensors in every column. Raises IncompleteCacheError if none does."""
    told = [] if captions is None else [captions.has_any]
    rows = np.flatnonzero(np.logical_and.reduce([*(reader.valid for reader in readers), *told]))
    if not len(rows):
        raise IncompleteCacheError("No image of the cache could be decoded when it was built.")
    return rows
