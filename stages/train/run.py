"""The state of a run: its model, moving average, optimiser and step."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

from cache.recipe import differences, flatten, written
from stages.model.families import make_transformer
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig
from stages.placement import Placement
from stages.train import compute
from stages.train.cached_data import CachedData, notes_on_means
from stages.train.float8 import use_float8
from stages.train.meter import Meter
from stages.train.optim import Average, make_optimiser, optimiser_state
from stages.train.randomness import Stream, seed_for
from stages.train.run_model import config_of, make_modules
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import RunError, TrainSettings
from stages.weights import checkpoint
from stages.weights.checkpoint import Checkpoint
from stages.weights.fitting import start_from
from stages.weights.run_folder import checkpoint_path

# Settings that may change between two parts of one run.
CHANGEABLE = {
    *("run", "steps", "device", "reading", "compute", "on_nonfinite"),
    *("checkpoint_every", "keep", "keep_every", "log_every", "grid_every", "tensorboard", "wandb"),
}


class Run:
    """A run at some step, new or restored from a checkpoint.

    found: its newest checkpoint, if it has any; active: the terms whose modules are trained;
    network: the model as it has to be called; teacher: the moving average as a model, up to the
    last block that a term sees of it, if any does; modules: of terms, by the terms' numbers; notes:
    what is to be said of what it reads. Raises RunError if the cache does not suit the model,
    or the kernels of attention the device, or if the checkpoint was made with other settings or
    from other cached tensors; WeightsError if the weights it is to start from do not suit the
    model.
    """

    def __init__(
        self,
        settings: TrainSettings,
        cached: CachedData,
        place: Placement,
        found: Checkpoint | None,
        active: RunTerms,
    ) -> None:
        self._settings, self._place, self._cached = settings, place, cached
        self._is_sharded = place.world > 1 and settings.compute.parallel == "fsdp"
        self._identity: dict[str, Any] = {
            "settings": kept_settings(settings),
            "columns": cached.fingerprints,
            "rows": cached.rows_identity,
            **({"scaling": cached.scaling.told} if cached.scaling.rule != "factor" else {}),
        }
        self.notes = list(notes_on_means(RunTerms.of(settings).arrays, cached.column))
        config = config_of(settings, cached)
        check_grids(config, settings, cached)
        if found is not None:
            self._check(found)
        precision = compute.precision_of(settings, place.device)
        is_masked = cached.captions is not None and cached.captions.is_masked
        kernels = settings.compute.attention
        compute.check_attention(kernels, precision, place.device, is_masked=is_masked)
        self.modules: Mapping[int, nn.Module] = {}
        self.model = self._make_model(config, found)
        trained = {self.modules.get(one.number) for one in active.every}
        for module in self.modules.values():
            module.requires_grad_(module in trained)
        self.model.to(place.device).train()
        depth = max(active.teacher_depths, default=0)
        self.teacher = deepcopy(self.model).requires_grad_(False) if depth else None
        self._prepare(self.model, precision, reshard=settings.compute.reshard)
        if self.teacher is not None:
            # No backward pass of the teacher would end what is whole of it.
            self._prepare(self.teacher, precision, reshard=True)
        self.network = compute.replicate(self.model, place)
        self.averages = {"ema": Average(self.model, settings.ema_decay, self.teacher)}
        if settings.second_ema_decay is not None:
            self.averages["ema2"] = Average(self.model, settings.second_ema_decay)
        if self.teacher is not None:
            # Nobody sees what the blocks behind would make.
            self.teacher.keep_blocks(depth)
        self.optimiser = make_optimiser(self.model, settings)
        self.scaler = compute.make_scaler(precision, place.device)
        self.step = 0
        if found is not None:
            self._restore(found)
        self.saved = found

    def _prepare(self, model: Transformer, precision: str, *, reshard: bool) -> None:
        """Have a model computed as set, and leave each process the part that it holds."""
        place = self._place
        if precision == "float8":
            use_float8(model, place.device)
        compute.compile_blocks(model, self._settings.compute.compile, place.device)
        if self._is_sharded:
            compute.shard(model, place, precision, reshard=reshard)

    def _make_model(self, config: TransformerConfig, found: Checkpoint | None) -> Transformer:
        settings = self._settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(settings.seed, Stream.WEIGHTS))
            model = make_transformer(
                config,
                fused_attention=settings.compute.fused_attention,
                recompute=settings.compute.recompute_activations,
                make_lists=lambda: self._make_lists(config),
            )
        if found is not None:
            with checkpoint.reading_of(found):
                model.load_state_dict(found.weights("model"))
        elif settings.init_from is not None:
            which, layout = settings.init_weights, settings.init_layout
            start_from(settings.init_from, which, model, self._place, layout)
        return model

    def _make_lists(self, config: TransformerConfig) -> Mapping[str, list[nn.Module]]:
        """The modules of all terms, also of those that have ended, in the lists that hold them."""
        self.modules, lists = make_modules(self._settings, config, self._cached.shape)
        return lists

    def _restore(self, found: Checkpoint) -> None:
        for title, average in self.averages.items():
            weights = found.weights(title)
            shapes = {name: tensor.shape for name, tensor in average.tensors.items()}
            if shapes != {name: tensor.shape for name, tensor in weights.items()}:
                checkpoint.check_whole(
                    found, f"{title}.safetensors does not hold the tensors of the model"
                )
            for name, tensor in weights.items():
                compute.fill(average.tensors[name], tensor)
        state = optimiser_state(self.model, self.optimiser)
        found.load_optimiser(state, is_sharded=self._is_sharded)
        set_optimizer_state_dict(self.model, self.optimiser, state)
        self.scaler.load_state_dict(found.state["scaler"])
        self.step = found.step

    @property
    def _text(self) -> dict[str, Any]:
        """By which text encoder it reads captions, if it does, so that it can be told of others."""
        captions = self._cached.captions
        if captions is None:
            return {}
        return {"text": {"encoder": self._settings.text, "recipe": written(captions.column.recipe)}}

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def whole_average(self) -> dict[str, Tensor]:
        """The moving average; all processes have to ask together."""
        tensors = self.averages["ema"].tensors
        return {name: compute.whole(tensor) for name, tensor in tensors.items()}

    def save(self, meter: Meter) -> None:
        """Write a checkpoint of the present step, unless there is one."""
        settings = self._settings
        if self.step == (self.saved.step if self.saved is not None else 0):
            return
        path = checkpoint_path(settings.run, self.step)
        checkpoint.save(
            path,
            self._place,
            weights={
                "model": dict(self.model.named_parameters()),
                **{title: average.tensors for title, average in self.averages.items()},
            },
            optimiser=optimiser_state(self.model, self.optimiser),
            measured=meter.state,
            state={
                "step": self.step,
                **self._identity,
                "model": asdict(self.model.config),
                **({"notes": self.notes} if self.notes else {}),
                **self._text,
                "scaler": self.scaler.state_dict(),
            },
            is_sharded=self._is_sharded,
        )
        if self._place.is_main:
            checkpoint.remove_outdated(settings.run, settings.keep, settings.keep_every)
        self.saved = Checkpoint(path)

    def _check(self, found: Checkpoint) -> None:
        # What is not scaled by channels is scaled as the recipe of its column has it.
        none: dict[str, Any] = {"scaling": {}}
        there = {**none, **found.state, "settings": flatten(kept_settings(found.settings))}
        here = {**none, **self._identity, "settings": flatten(self._identity["settings"])}
        for part in ("settings", "columns", "rows", "scaling"):
            if changed := differences(there[part], here[part], "run"):
                raise RunError(
                    f"{found.folder} was made with other {part} ({'; '.join(changed)})",
                    remedy="Restore them, or choose another train.run.",
                )


def kept_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings of all parts of a run; of what it started from the name, as folders move."""
    kept = settings.model_dump(mode="json", exclude=CHANGEABLE)
    if settings.init_from is not None:
        kept["init_from"] = settings.init_from.name
    return kept


def check_grids(config: TransformerConfig, settings: TrainSettings, cached: CachedData) -> None:
    """Raise RunError unless tokens lie on the transformer's grid where they have to."""
    for encoder in settings.on_grid:
        tokens = cached.column(encoder).array("tokens").row_shape[0]
        if tokens != config.grid**2:
            raise RunError(
                f"{encoder} has {tokens} tokens ({tokens**0.5:g} x {tokens**0.5:g}), "
                f"{settings.model} has {config.grid**2} ({config.grid} x {config.grid})",
                remedy=(
                    f"Choose another patch size, or set encoders.{encoder}.input_size and rebuild."
                ),
            )
