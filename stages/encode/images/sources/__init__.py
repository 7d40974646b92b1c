"""Data sets: each gives a stable listing of keys and labels, and the bytes of any image.

To add a source, write a module with a function from `dataset.path` and `dataset.resolution`
to a `Source`, and name it in `SOURCES`; one of tables takes a `Choice` of split and columns, too.
What it passes over, it names in `Source.left_out`.
"""

from collections.abc import Callable, Mapping

from stages.encode.images.sources.folders import image_folder
from stages.encode.images.sources.repa import repa_folder
from stages.encode.images.sources.samples import SAMPLE_PHOTOGRAPHS, sample_photos
from stages.encode.images.sources.source import Source, SourceError
from stages.encode.images.sources.tables import Choice, arrow_rows, parquet_rows
from stages.encode.images.sources.tars import tar_archive
from stages.encode.images.sources.zips import zip_archive

__all__ = [
    "EMBEDDED_SOURCES",
    "FOLDER_SOURCES",
    "SAMPLE_PHOTOGRAPHS",
    "SOURCES",
    "SOURCE_PACKAGES",
    "TABLE_SOURCES",
    "Choice",
    "Source",
    "SourceError",
    "image_folder",
    "sample_photos",
]

# The names that `dataset.source` takes.
SOURCES: Mapping[str, Callable[..., Source]] = {
    "imagefolder": image_folder,
    "zip": zip_archive,
    "tar": tar_archive,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
    "repa": repa_folder,
    "sample-photos": sample_photos,
}
# Those that need no `dataset.path`.
EMBEDDED_SOURCES = frozenset({"sample-photos"})
# Those whose `dataset.path` is a folder; others may name a part of an archive, or a pattern.
FOLDER_SOURCES = frozenset({"imagefolder", "repa"})
# Those that need a package of their own, by the name that it is imported by.
SOURCE_PACKAGES = {"arrow": "pyarrow", "parquet": "pyarrow", "sample-photos": "skimage"}
# Those that have splits and columns to choose from.
TABLE_SOURCES = frozenset({"arrow", "parquet"})
