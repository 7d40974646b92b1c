"""Which software made a column."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version

from cache.recipe import Recipe
from stages.packages import OPTIONAL


def provenance(recipe: Recipe) -> dict[str, str]:
    """Which software makes a column, and when: of use to readers, without effect on identity."""
    packages = ["repa-cache", "torch", "timm", "diffusers", "pillow"]
    if (library := recipe.get("library")) in OPTIONAL:
        packages.append(str(library))
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
