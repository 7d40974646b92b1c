"""The door for Python: caches and batches of them, and every command as a function.

    import repa_cache

    cache = repa_cache.open("imagenet256.zarr")
    cache["dinov2-vit-b"].tokens[[3, 1]]          # float32 [2, T, D], however they are stored
    for batch in cache.batches(256, encoders=["dinov2-vit-b"], device="cuda"):
        batch.latents, batch.labels, batch.tokens["dinov2-vit-b"]

N rows of a cache, T tokens, D features, C latent channels, h and w the latent's sides. What is
heavy, as torch and zarr, is imported by what needs it. All errors that a user can act on are an
`Error`.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

ROOT = Path(__file__).parent
PACKAGES = ("cache", "pipeline", "stages")


class _OwnPackages:
    """Finds the packages beside this file first: a working folder may have a `cache.py` too."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PACKAGES else None


def _claim_packages() -> None:
    """Have the packages of this project found here. Raises ImportError if others were imported."""
    for name in PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and (file is None or Path(file).parent != ROOT / name):
            raise ImportError(
                f"{file or 'a folder'} was imported as {name!r}, which is the name of a package of "
                "repa-cache. Give it another name."
            )
    sys.meta_path.insert(0, _OwnPackages())


_claim_packages()

import stages  # noqa: E402, F401 - found by the above; it prepares the process for a GPU
from cache.errors import RepaCacheError as Error  # noqa: E402

if TYPE_CHECKING:
    from typing import Unpack

    import numpy as np
    import numpy.typing as npt

    from cache.captions import Captions
    from cache.features import Features as Features
    from cache.features import Rows as Rows
    from cache.rows import Keys
    from cache.stores.places import Place
    from pipeline.analysis.analyses import cknna as cknna
    from pipeline.analysis.analyses import compare as compare
    from pipeline.analysis.analyses import losses as losses
    from pipeline.analysis.analyses import probe as probe
    from pipeline.commands import app as app
    from pipeline.commands.bench import bench as bench
    from pipeline.commands.build import build as build
    from pipeline.commands.copy import copy as copy
    from pipeline.commands.evaluate import evaluate as evaluate
    from pipeline.commands.export import export as export
    from pipeline.commands.init import init as init
    from pipeline.commands.inspect import inspect as inspect
    from pipeline.commands.plan import plan as plan
    from pipeline.commands.report import report as report
    from pipeline.commands.run import run as run
    from pipeline.commands.sample import sample as sample
    from pipeline.commands.sweep import sweep as sweep
    from pipeline.commands.train import train as train
    from pipeline.commands.verify import verify as verify
    from pipeline.config import Config as Config
    from stages.latents import Rule
    from stages.model.conditions import Context
    from stages.train.batch_stream import Batch as Batch
    from stages.train.batch_stream import CachedImages as CachedImages
    from stages.train.train_settings import CachedTensors

# Where what is imported when it is asked for stands.
LATER = {
    "app": "pipeline.commands",
    "Config": "pipeline.config",
    **dict.fromkeys(("Features", "Rows"), "cache.features"),
    **dict.fromkeys(("Batch", "CachedImages"), "stages.train.batch_stream"),
    **dict.fromkeys(("cknna", "compare", "losses", "probe"), "pipeline.analysis.analyses"),
    **{
        name: f"pipeline.commands.{name}"
        for name in (
            *("init", "plan", "build", "inspect", "verify", "copy", "bench"),
            *("train", "sample", "evaluate", "run", "sweep", "report", "export"),
        )
    },
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})


def load_config(
    path: str | Path = "pipeline.toml", overrides: Sequence[str] = (), *, command: str | None = None
) -> "Config":
    """A configuration, for the commands.

    overrides: `section.key=value`, as after --set; command: by whose name what it needs, such as
    the images, has to be there. Raises Error with everything that is wrong.
    """
    if command is not None:
        from pipeline.commands.arguments import load

        return load(command, Path(path), list(overrides))
    from pipeline.config import load_config

    return load_config(Path(path), overrides, needs=())


def open(path: "str | Place") -> "Cache":  # noqa: A001 - as Image.open and zarr.open
    """The cache at a path or an address. Raises Error if there is none, or if it is damaged."""
    from cache.stores.places import place_of

    return Cache(place_of(path) if isinstance(path, str) else path)


class Reading(TypedDict, total=False):
    """How batches are read, which changes nothing of them: `[train.reading]` has the defaults."""

    threads: int
    ahead: int
    memory_gb: float
    verify: bool
    timeout_seconds: float
    in_flight: int
    local: Path
    local_gb: float


class Cache:
    """A cache opened for reading.

    labels: int32 [N]; keys: [N] strings; classes: a name per label; encoders: names, of finished
    columns and others. Its repr tells how far each column is.
    """

    def __init__(self, path: "Place") -> None:
        from cache import reader

        self.path, self._cache = path, reader.Cache(path)
        table = self._cache.rows
        self.labels: npt.NDArray[np.int32] = table.label
        self.keys: Keys = table.key
        self.classes: tuple[str, ...] = table.classes

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        lines = (f"  {name}: {state}" for name, state in self._cache.states().items())
        head = f"Cache({str(self.path)!r}): {len(self):,} rows, {len(self.classes):,} classes"
        return "\n".join((head, *lines))

    @property
    def encoders(self) -> tuple[str, ...]:
        from cache.layout import FEATURES
        from cache.metadata import column_names, titles

        return tuple(titles(column_names(self.path), FEATURES))

    def __getitem__(self, encoder: str) -> "Features":
        """An encoder's column. Raises Error if it is missing or not finished."""
        from cache.features import Features
        from cache.layout import FEATURES

        return Features(self._cache.column(FEATURES + encoder, verify=True))

    @cached_property
    def latents(self) -> "Rows":
        """Mean and standard deviation of the only VAE's latents, [N, 2C, h, w].

        Of an autoencoder without a posterior: its latents, [N, C, h, w].
        """
        from cache.features import Rows
        from stages.latents import latents_column, main_array

        reader = self._cache.column(latents_column(self.path, None), verify=True)
        array = main_array(reader.column).name
        return Rows(reader.column, array, partial(reader.values, array))

    def batches(
        self,
        batch_size: int,
        encoders: Sequence[str] = (),
        *,
        class_tokens: Sequence[str] = (),
        text: str | None = None,
        vae: str | None = None,
        scaling: "Rule" = "auto",
        flip: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        steps: int | None = None,
        device: str = "cpu",
        block_rows: int = 1,
        **reading: "Unpack[Reading]",
    ) -> "Iterator[Batch]":
        """The batches that training with this seed would see, from a step on.

        batch_size: over all ranks; encoders, class_tokens: whose tokens and class tokens
        are read; text: the text encoder whose tokens of a caption of each image are read;
        scaling: of the latents, as `latents.scaling`; flip: whether half of the images are read
        mirrored; rank, world: which of how many processes this is; steps: how many, by default
        without end; block_rows: that stay together when an epoch is shuffled. Threads that read
        ahead end when it is closed or collected.
        Raises Error if a column is missing or not finished, or if nothing can be read so.
        """
        from stages.placement import Placement, find_device
        from stages.train.batch_stream import Wanted, stream
        from stages.train.batches import ENDLESS, Order
        from stages.train.train_settings import ReadingSettings

        return stream(
            self._tensors(vae, flip=flip, text=text, scaling=scaling),
            Wanted(tuple(encoders), tuple(class_tokens)),
            Order(seed, batch_size, block_rows),
            Placement(find_device(device), rank, world),
            ReadingSettings(**reading),
            range(start, ENDLESS if steps is None else start + steps),
        )

    def dataset(
        self,
        encoders: Sequence[str] = (),
        *,
        class_tokens: Sequence[str] = (),
        vae: str | None = None,
        verify: bool = True,
    ) -> "CachedImages":
        """Its images as a map-style data set of torch, for any DataLoader."""
        from stages.train.batch_stream import CachedImages, Wanted

        wanted = Wanted(tuple(encoders), tuple(class_tokens))
        again = {"class_tokens": wanted.class_tokens, "vae": vae, "verify": verify}
        return CachedImages(
            self._tensors(vae, flip=False),
            wanted,
            verify=verify,
            remake=partial(_dataset, self.path.absolute(), wanted.tokens, **again),
        )

    def captions(self, row: int) -> list[str]:
        """The captions of an image. Raises Error if the cache has none."""
        return self._told.of(range(len(self))[row])

    def empty_context(self, text: str) -> "Context":
        """The empty caption by a text encoder, a batch of one, which stands for dropped ones."""
        from stages.placement import find_device
        from stages.train.cached_captions import CachedCaptions

        captions = CachedCaptions(self.path, text, self._cache.rows, verify=True)
        return captions.empty(find_device("cpu"))

    @cached_property
    def _told(self) -> "Captions":
        from cache.captions import Captions, has_captions

        if not has_captions(self.path):
            raise Error("it has no captions", where=self.path)
        return Captions(self.path, self._cache.rows)

    def _tensors(
        self, vae: str | None, *, flip: bool, text: str | None = None, scaling: "Rule" = "auto"
    ) -> "CachedTensors":
        from stages.latents import latents_column
        from stages.train.train_settings import CachedTensors

        return CachedTensors(self.path, latents_column(self.path, vae), flip, text, scaling)


def _dataset(path: "Place", encoders: Sequence[str], **options: Any) -> "CachedImages":
    """A data set in another process, where this module is imported before any other of ours."""
    return open(path).dataset(encoders, **options)
