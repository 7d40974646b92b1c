"""One training step of the program itself, on inputs that a test gives."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.latents import LatentScaling
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig
from stages.placement import Placement
from stages.train.compute import make_scaler
from stages.train.optim import Average, make_optimiser
from stages.train.run_model import config_for, make_modules
from stages.train.step import Step
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import TrainSettings

CPU = Placement(torch.device("cpu"))


def fresh_run(model: Transformer, settings: TrainSettings) -> Any:
    """A run at its first step, with a model's weights and an optimiser of its own."""
    return SimpleNamespace(
        model=model,
        network=model,
        teacher=None,
        modules=dict(enumerate(model.projectors, start=1)),
        averages={"ema": Average(model, settings.ema_decay)},
        optimiser=make_optimiser(model, settings),
        scaler=make_scaler("float32", CPU.device),
        step=0,
    )


class Stepped(NamedTuple):
    """Losses of every image by name, [B], what is minimised, and the model with gradients."""

    losses: dict[str, Tensor]
    total: Tensor
    model: Transformer


def settings_of(align: Sequence[Mapping[str, Any]], **train: Any) -> TrainSettings:
    document = {"run": "run", "precision": "float32", "align": list(align), **train}
    return TrainSettings.model_validate_json(json.dumps(document))


def model_of(
    settings: TrainSettings, config: TransformerConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Transformer, dict[int, torch.nn.Module]]:
    """A model of any size with all that the terms train, and their modules by number."""
    modules, lists = make_modules(settings, config, shapes.__getitem__)
    return Transformer(config, make_lists=lambda: lists), modules


def stepped(
    settings: TrainSettings,
    config: TransformerConfig,
    state: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    drawn: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None = None,
) -> Stepped:
    """Forward and backward of a step.

    state: the model's weights; batch: `clean` latents [B, C, h, w], `labels` [B] that are not
    dropped any more, and cached arrays by name; drawn: `noise`, `time` and what terms draw;
    average: the weights of the moving average, by default the model's.
    """
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in batch.items()}
    options = config_for(settings, shapes["clean"], config.classes, shapes.__getitem__)
    config = TransformerConfig(
        **{**vars(options), **{name: getattr(config, name) for name in ("depth", "width", "heads")}}
    )
    model, modules = model_of(settings, config, shapes)
    model.load_state_dict(dict(state))
    teacher = deepcopy(model)
    if average is not None:
        teacher.load_state_dict(dict(average))
    run = SimpleNamespace(network=model, model=model, modules=modules, teacher=teacher)
    cached = SimpleNamespace(scaling=LatentScaling(1, 0), classes=config.classes, captions=None)
    terms = RunTerms.of(settings)
    step = Step(settings, run, terms, cached, CPU)  # type: ignore[arg-type]
    clean = batch["clean"]
    losses = step._losses(
        {**batch, "moments": torch.cat([clean, torch.zeros_like(clean)], dim=1)},
        {
            "posterior": torch.zeros_like(clean),
            "dropped": torch.zeros(len(clean), dtype=torch.bool),
            **drawn,
        },
    )
    total = step._total(losses)
    total.backward()
    return Stepped(dict(zip(terms.names, losses, strict=True)), total, model)
