"""What a worker has to have in common with the build that it works for: weights and software.

Workers on other machines find weights by the same names, and need not find the same.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from cache.errors import RepaCacheError, StaleCacheError
from cache.layout import Column
from cache.metadata import check_recipe
from stages.cluster import ClusterError, NoGpuError
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import Maker
from stages.encode.building.provenance import OWN, versions
from stages.packages import OPTIONAL

# Of a recipe, and what they are of.
DIGESTS = {"weights_sha256": "weights", "vocabulary_sha256": "vocabulary"}


class WorkerError(ClusterError):
    """A worker cannot make shards of the build; the message says on which host and why."""


@contextmanager
def named_host() -> Iterator[None]:
    """Errors in the block say on which host it ran."""
    try:
        yield
    except NoGpuError:
        # It has its own way to say so.
        raise
    except RepaCacheError as error:
        raise WorkerError(str(error), where=f"Dask worker on {socket.gethostname()}") from error


def software(settings: EncodeSettings) -> dict[str, str]:
    """The versions of what decides the bytes of a build's shards."""
    libraries = {encoder.library for encoder in settings.encoders.values()}
    if not all(text.imported for text in settings.texts.values()):
        libraries.add("transformers")
    return versions(sorted(libraries & OPTIONAL.keys()))


def other_software(own: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """A sentence about a worker whose software is not that of the build, if it is not.

    Raises WorkerError if it runs another version of this program, which may make other shards by
    the same settings.
    """
    others = [
        f"{name} {own[name]} (the build's is {wanted[name]})"
        for name in wanted
        if own[name] != wanted[name]
    ]
    if own[OWN] != wanted[OWN]:
        raise WorkerError(
            f"it runs {', '.join(others)}", remedy="Install the same version of repa-cache there."
        )
    if not others:
        return None
    return (
        f"the Dask worker on {socket.gethostname()} has {', '.join(others)}: its shards may differ "
        "in their last bits"
    )


def check_alike(work: Sequence[tuple[Column, Maker]]) -> None:
    """Raise WorkerError if this worker would make other columns than the build has begun.

    work: those columns, and what would make their shards here.
    """
    for column, maker in work:
        try:
            check_recipe(column, maker.recipe)
        except StaleCacheError as error:
            raise _unlike(column, maker, error) from error


def _unlike(column: Column, maker: Maker, error: StaleCacheError) -> WorkerError:
    others = [
        f"{what} (sha256 {maker.recipe.get(field)}, the build's {column.recipe.get(field)})"
        for field, what in DIGESTS.items()
        if maker.recipe.get(field) != column.recipe.get(field)
    ]
    if not others:
        return WorkerError(f"it would make another {column.name}: {error.what}")
    return WorkerError(
        f"it has other {' and other '.join(others)} of {column.name}",
        remedy="Copy the build's files to where it finds these, or stop this worker.",
    )
