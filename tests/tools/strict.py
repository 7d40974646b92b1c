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
    """Refuses operations on tensors of host and device, of which a GPU waits for some.

    A single number of the host goes along with an operation, unless it is an index. copies: those
    between host and device that are waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.copies = 0, list[str]()

    def __torch_dispatch__(
        self,
        function: Any,
        _types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options, name = options or {}, function._schema.name
        made = function(*arguments, **options)
        self.operations += 1
        tensors = [t for t in tree_leaves((arguments, options, made)) if isinstance(t, Tensor)]
        is_copy, is_index = name in COPIES, name.startswith("aten::index")
        devices = {one.device for one in tensors if one.ndim or is_copy or is_index}
        if len(devices) > 1 and not is_copy:
            raise MixedDevicesError(f"{function} mixes devices: {sorted(map(str, devices))}")
        if len(devices) > 1 and not options.get("non_blocking"):
            self.copies.append(str(function))
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
