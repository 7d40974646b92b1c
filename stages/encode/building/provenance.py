"""Which software made a column."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from cache.recipe import Recipe
from stages.packages import OPTIONAL

# This program, among packages.
OWN = "repa-cache"


def provenance(recipe: Recipe) -> dict[str, str]:
    """Which software makes a column, and when: of use to readers, without effect on identity."""
    library = str(recipe.get("library"))
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **versions([library] if library in OPTIONAL else []),
    }


def versions(libraries: Sequence[str] = ()) -> dict[str, str]:
    """Those of Python and of the packages that make columns. libraries: more packages."""
    packages = (OWN, "torch", "timm", "diffusers", "pillow", *libraries)
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
