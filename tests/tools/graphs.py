"""What torch compiles, noted by a compiler that hands back what it was given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def noted_graphs() -> Iterator[list[set[str]]]:
    """The names of the weights that each graph takes; a graph that is made anew counts again."""
    found: list[set[str]] = []
    real = torch.compile

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        inputs = (str(node.target) for node in graph.graph.nodes if node.op == "placeholder")
        found.append({name for name in inputs if "parameters" in name})
        return graph.forward

    torch._dynamo.reset()
    with patch("torch.compile", lambda function, **_: real(function, backend=backend)):
        yield found
