"""timm, diffusers and torch-fidelity, imported in the one way that works beside any torchvision.

All import torchvision. Beside a build of torch that lacks torchvision's compiled operators
(a CPU build of torch and a CUDA build of torchvision, say) that import stops, although
nothing here uses those operators; declaring the two that are looked up at import is enough.
Every module takes them from here, so that this comes first in every process.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

from stages.packages import importing_quietly

# Declarations last as long as the library object does.
_declared: list[torch.library.Library] = []


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        importlib.import_module("torchvision")


_import_torchvision()

if TYPE_CHECKING:
    import timm as timm
    import torch_fidelity as torch_fidelity
    from diffusers import AutoencoderKL as AutoencoderKL


def __getattr__(name: str) -> Any:
    # Each takes seconds: only what is asked for is imported.
    if name in ("timm", "torch_fidelity"):
        return importlib.import_module(name)
    if name.startswith("Autoencoder"):
        # Where torchao is installed, diffusers imports it.
        with importing_quietly():
            return getattr(importlib.import_module("diffusers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
