"""Weights for tests: models full of random numbers, files of them, runs and what they export."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from reference import Described, with_projectors
from runs import CPU, newest_of
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from pipeline.commands import app
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig
from stages.weights.fitting import start_from

State = dict[str, Tensor]


def fresh(described: Described | TransformerConfig) -> Transformer:
    """A new model whose every tensor is random, so that none can be right by chance."""
    model = (described if isinstance(described, Described) else Described(described)).make()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.normal_()
    return model


def a_model(
    features: Sequence[int] = (24,), projector_width: int = 16, **changes: Any
) -> Described:
    tiny = TransformerConfig(
        side=8,
        patch=2,
        channels=4,
        depth=2,
        width=48,
        heads=4,
        classes=10,
        has_null_class=True,
    )
    return with_projectors(replace(tiny, **changes), projector_width, features)


def saved(path: Path, config: Described, drop: Iterable[str] = ()) -> Path:
    state = {n: t for n, t in fresh(config).state_dict().items() if n not in drop}
    save_file(state, path)
    return path


def started(path: Path, config: Described | TransformerConfig, which: str = "ema") -> Transformer:
    model = fresh(config)
    start_from(path, which, model, CPU)
    return model


def doubled(state: State, filler: float = 7.0) -> State:
    """SiT's head with as many channels again, row by row: [patch, patch, channel]."""
    state, patch = dict(state), 2
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = list(state[name])
        channels = len(rows) // patch**2
        wide: list[Tensor] = []
        for start in range(0, len(rows), channels):
            cell = rows[start : start + channels]
            wide += [*cell, *(torch.full_like(row, filler) for row in cell)]
        state[name] = torch.stack(wide)
    return state


def export(built: Path, run: Path, out: Path, *arguments: str, status: int = 0) -> str:
    config = ("--config", str(built / "pipeline.toml"), "--set", f"train.run={run}")
    result = CliRunner().invoke(app, ["export", str(out), *config, *arguments])
    assert result.exit_code == status, result.output
    return result.output


def run_with(folder: Path, source: Path, config: TransformerConfig, state: State) -> Path:
    """A run like another one, whose newest checkpoint has some weights."""
    shutil.copytree(source, folder)
    checkpoint = newest_of(folder)
    content = {**checkpoint.state, "model": asdict(config)}
    (checkpoint.folder / "state.json").write_text(json.dumps(content))
    save_file(state, checkpoint.weights_file("ema"))
    return folder


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
