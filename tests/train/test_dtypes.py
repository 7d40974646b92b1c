"""What of a step is in half precision, and what stays in float32."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from methods import OF_LAYERS
from runs import watched_step
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline.config import Config
from stages.model.sizes import LATENTS
from stages.train.compute import HALF_PRECISIONS
from stages.train.meter import Measured
from stages.train.step import Step
from stages.train.terms.repa import Repa
from stages.train.terms.seen import Seen

IN_HALF = {
    *("PatchEmbedding", "TimeEmbedding", "Linear", "Attention", "FinalLayer", "MLPProjector"),
    *("prediction", "projection"),
}
# Beside norms: the sum of all blocks, what is looked up, and all that is not of a module.
IN_FLOAT32 = {
    *("Block", "LabelEmbedding"),
    *("poses", "aligned", "measured", "weights", "average", "optimiser"),
}


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[torch.dtype]]]:
    """Those of what a step makes, by what it is."""
    found = defaultdict[str, set[torch.dtype]](set)
    real_losses, real_loss, real_step = Repa.losses, Repa.loss, Step.__call__

    def note(what: str, *tensors: Any) -> None:
        found[what] |= {one.dtype for one in tree_leaves(tensors) if isinstance(one, Tensor)}

    def module(made_by: nn.Module, _inputs: Any, output: Any) -> None:
        note(type(made_by).__name__, tree_leaves(output)[0])

    def losses(term: Repa, seen: Seen) -> Sequence[Tensor]:
        *poses, prediction = seen.streams[LATENTS]
        note("poses", poses, seen.level)
        note("prediction", prediction)
        note("projection", seen.projected)
        return real_losses(term, seen)

    def loss(term: Repa, projected: Tensor, tokens: Tensor) -> Tensor:
        note("aligned", projected, tokens)
        return real_loss(term, projected, tokens)

    def step(own: Step, *arguments: Any) -> Measured:
        measured, run = real_step(own, *arguments), own._run
        note("measured", measured)
        note("weights", list(run.model.parameters()))
        note("average", run.averages["ema"].tensors)
        note("optimiser", list(run.optimiser.state.values()))
        return measured

    monkeypatch.setattr(Repa, "losses", losses)
    monkeypatch.setattr(Repa, "loss", loss)
    monkeypatch.setattr(Step, "__call__", step)
    with nn.modules.module.register_module_forward_hook(module):
        yield found


@pytest.mark.parametrize(
    ("settings", "norms"),
    [((), {"LayerNorm"}), ((*OF_LAYERS.values(),), {"RMSNorm", "Rotary"})],
    ids=["sit", "layers"],
)
@pytest.mark.parametrize("precision", HALF_PRECISIONS)
def test_products_are_in_half_precision_and_all_that_adds_up_in_float32(
    trainable: Callable[..., Config],
    dtypes: dict[str, set[torch.dtype]],
    precision: str,
    settings: tuple[str, ...],
    norms: set[str],
) -> None:
    watched_step(trainable(f"train.precision={precision}", *settings), nullcontext())
    half = {name: {HALF_PRECISIONS[precision]} for name in IN_HALF}
    full = {name: {torch.float32} for name in IN_FLOAT32 | norms}
    assert {name: dtypes[name] for name in half | full} == half | full
