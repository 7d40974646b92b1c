"""The model of a run: its configuration, the modules trained beside it, and what both cost."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from stages.model.families import make_transformer
from stages.model.transformer_config import TransformerConfig, config_named, forward_flops
from stages.train.cached_data import CachedData
from stages.train.terms.run_terms import RunTerms
from stages.train.terms.seen import Shapes
from stages.train.terms.term import Term
from stages.train.train_settings import TrainSettings


def config_of(settings: TrainSettings, cached: CachedData) -> TransformerConfig:
    """The transformer of a run on cached tensors."""
    captions = cached.captions
    features = 0 if captions is None else captions.features
    return config_for(settings, cached.latent_shape, cached.classes, cached.shape, features)


def config_for(
    settings: TrainSettings,
    latent_shape: tuple[int, ...],
    classes: int,
    shape: Callable[[str], tuple[int, ...]],
    context_features: int = 0,
) -> TransformerConfig:
    """The transformer for latents (C, h, w) and classes.

    shape: of an array that a term reads; context_features: of the tokens of captions, if it reads
    these.
    """
    channels, side, _ = latent_shape
    config = config_named(
        settings.model,
        side=side,
        channels=channels,
        classes=0 if context_features else classes,
        has_null_class=settings.label_dropping > 0,
        context_features=context_features,
        qk_norm=settings.qk_norm,
        norm=settings.norm,
        mlp=settings.mlp,
        rotary=settings.rotary,
        value_residual=settings.value_residual,
        dropout=settings.pixels.dropout,
    )
    for term in settings.align:
        config = replace(config, **term.model_options(shapes_for(term, config, shape)))
    return config


def shapes_for(
    term: Term, config: TransformerConfig, shape: Callable[[str], tuple[int, ...]]
) -> Shapes:
    """The sizes that a term depends on. shape: of an array that it reads."""
    latent = (config.channels, config.side, config.side)
    return Shapes(config.width, latent, {name: shape(name) for name in term.arrays}, config)


def make_modules(
    settings: TrainSettings, config: TransformerConfig, shape: Callable[[str], tuple[int, ...]]
) -> tuple[dict[int, nn.Module], dict[str, list[nn.Module]]]:
    """New modules of terms, by the terms' numbers, and in the lists of the model that hold them.

    shape: of an array that a term reads.
    """
    modules: dict[int, nn.Module] = {}
    lists: dict[str, list[nn.Module]] = {}
    every = RunTerms.of(settings).every
    for number, term, _ in every:
        if term.lender(settings) is None:
            module = term.make_module(shapes_for(term, config, shape))
            if module is not None:
                modules[number] = module
                lists.setdefault(term.module_list, []).append(module)
    numbers = {id(term): number for number, term, _ in every}
    for number, term, _ in every:
        if (lender := term.lender(settings)) is not None:
            modules[number] = modules[numbers[id(lender)]]
    return modules, lists


def training_flops(
    settings: TrainSettings,
    config: TransformerConfig,
    shape: Callable[[str], tuple[int, ...]],
    context_tokens: int = 0,
) -> float:
    """Operations of one image's forward and backward pass, with all terms.

    A backward pass is two forward passes; a teacher has none. shape: of an array that a term reads;
    context_tokens: of a caption.
    """
    patches = config.grid**2
    modules = (
        term.module_flops(
            shapes_for(term, config, shape),
            patches + (config.class_tokens if term.sees_class_token else 0),
        )
        for term in settings.align
        if term.lender(settings) is None
    )
    taught = (max(term.teacher_depths, default=0) for term in settings.align)
    parts = [replace(config, depth=depth) for depth in taught if depth]
    teachers = (forward_flops(part, context_tokens) for part in parts)
    return 3.0 * (forward_flops(config, context_tokens) + sum(modules)) + sum(teachers)


def count_parameters(
    settings: TrainSettings, config: TransformerConfig, shape: Callable[[str], tuple[int, ...]]
) -> int:
    """Number of parameters that a run trains. shape: of an array that a term reads."""
    with torch.device("meta"):
        made = (term.make_module(shapes_for(term, config, shape)) for term in settings.align)
        modules = [make_transformer(config), *(module for module in made if module is not None)]
    parameters = (parameter for module in modules for parameter in module.parameters())
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
