"""Data sets: each gives a stable listing of keys and labels, and the bytes of any image.

To add a source, write a module with a function from its settings to a `Source`, and name it in
`SOURCES`; what it alone takes of `[dataset]` is a class of settings beside it. What it passes over,
it names in `Source.left_out`.
"""

from collections.abc import Mapping

from stages.encode.images.remote.paths import RemotePath
from stages.encode.images.sources.folders import image_folder
from stages.encode.images.sources.lightningdit import lightningdit_folder
from stages.encode.images.sources.repa import RepaSettings, repa_folder
from stages.encode.images.sources.samples import EmbeddedSettings, sample_photos
from stages.encode.images.sources.source import (
    DatasetSettings,
    FileSettings,
    Source,
    SourceError,
    SourceKind,
)
from stages.encode.images.sources.tables import TableSettings, arrow_rows, parquet_rows
from stages.encode.images.sources.tars import tar_archive
from stages.encode.images.sources.u_vit import u_vit_folder
from stages.encode.images.sources.zips import zip_archive
from stages.latents import EXACT, MOMENTS
from stages.packages import is_installed, needs

__all__ = ["SOURCES", "Source", "SourceError", "open_dataset"]

SOURCES: Mapping[str, SourceKind] = {
    "imagefolder": SourceKind(image_folder, reads_folder=True, takes_addresses=True),
    "zip": SourceKind(zip_archive, takes_addresses=True),
    "tar": SourceKind(tar_archive, takes_addresses=True),
    "parquet": SourceKind(parquet_rows, TableSettings, "pyarrow", takes_addresses=True),
    "arrow": SourceKind(arrow_rows, TableSettings, "pyarrow"),
    "repa": SourceKind(repa_folder, RepaSettings, reads_folder=True, brings=MOMENTS),
    "u-vit": SourceKind(u_vit_folder, reads_folder=True, brings=MOMENTS),
    "lightningdit": SourceKind(
        lightningdit_folder,
        reads_folder=True,
        brings=EXACT,
        has_images=False,
        brings_mirrored=True,
    ),
    "sample-photos": SourceKind(sample_photos, EmbeddedSettings, "skimage"),
}


def open_dataset(dataset: DatasetSettings) -> Source:
    """The data set of a configuration.

    Raises SourceError if it is not what the settings say, or if a package is missing.
    """
    kind = SOURCES[dataset.source]
    if isinstance(dataset, FileSettings) and isinstance(dataset.path, RemotePath):
        _check_address(dataset.source, dataset.path)
    if kind.package and not is_installed(kind.package):
        raise SourceError(f"dataset.source: {dataset.source!r} {needs(kind.package)}")
    return kind.open(dataset)


def _check_address(source: str, address: RemotePath) -> None:
    if SOURCES[source].takes_addresses:
        return
    names = ", ".join(repr(name) for name, one in SOURCES.items() if one.takes_addresses)
    raise SourceError(
        f"{source!r} reads files of this machine, and no addresses as {address}",
        where="dataset.path",
        remedy=f"Those of {names} are read from anywhere; others have to be copied first.",
    )
