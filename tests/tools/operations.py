"""How many operations are dispatched: each costs the host some time, whatever the device does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Operations(TorchDispatchMode):
    """Counts them, by their names and by their kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        function: OpOverload,
        _types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        if function.namespace == "aten":
            self.found[str(function)] += 1
            self.kinds[kind_of(function)] += 1
        return function(*arguments, **(options or {}))


def kind_of(function: OpOverload) -> str:
    """Whether an operation multiplies matrices, makes a view of a tensor, or does anything else."""
    if function._overloadpacket in flop_registry or "scaled_dot_product" in str(function):
        return "products"
    return "views" if function.is_view else "others"
