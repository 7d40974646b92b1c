"""A strict stand-in for a GPU: the meta device, whose tensors have shapes and no values.

What asks for a value, copies to the host or counts, as `nonzero` does, fails there by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.placement import Placement
from stages.train.optim import make_optimiser, make_replayable

META = torch.device("meta")
PLACE = Placement(META)
# A copy is the last of them, or in inference mode the first.
COPIES = {"aten::_to_copy", "aten::copy_", "aten::to"}


class MixedDevicesError(RuntimeError):
    """An operation takes tensors of the device together with some of the host."""


class Strict(TorchDispatchMode):
    """Refuses operations on tensors of several devices; copies: how many were made to the device.

    A single number of the host is given to a kernel with its launch, but not as an index.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.copies = 0, 0

    def __torch_dispatch__(
        self,
        function: Any,
        _types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        self.operations += 1
        options, name = options or {}, function._schema.name
        made = function(*arguments, **options)
        tensors = [t for t in tree_leaves((arguments, options, made)) if isinstance(t, Tensor)]
        if name in COPIES:
            self.copies += len({tensor.device for tensor in tensors}) > 1
            return made
        is_index = name.startswith("aten::index")
        devices = {tensor.device for tensor in tensors if tensor.ndim or is_index}
        if len(devices) > 1:
            raise MixedDevicesError(f"{function} mixes devices: {sorted(map(str, devices))}")
        return made


@contextmanager
def on_meta() -> Iterator[None]:
    """Have runs on the meta device draw numbers, and update weights as on a GPU."""
    generator = torch.Generator()

    def replayable(*arguments: Any) -> torch.optim.AdamW:
        optimiser = make_optimiser(*arguments)
        make_replayable(optimiser)
        return optimiser

    with (
        torch.library._scoped_library("aten", "IMPL") as library,
        patch("torch.Generator", lambda _: generator),
        patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["meta"]),
        patch("stages.train.run.make_optimiser", replayable),
    ):
        # That of a learning rate on the device, which changes weights in their place.
        library.impl("_fused_adamw_.tensor_lr", lambda *_, **__: None, "Meta")
        yield
