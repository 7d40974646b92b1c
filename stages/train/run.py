"""The state of a run: its model, moving average, optimiser and step."""

from dataclasses import asdict
from typing import Any

import torch

from cache.errors import RepaCacheError
from cache.recipe import differences
from stages.placement import Placement
from stages.train import checkpoint
from stages.train.batches import CachedBatches
from stages.train.checkpoint import Checkpoint
from stages.train.optim import make_average, make_optimiser
from stages.train.randomness import Stream, seed_for
from stages.train.settings import TrainSettings
from stages.train.transformer import Transformer, TransformerConfig

# Settings that may change between two parts of one run.
CHANGEABLE = frozenset(
    {"run", "steps", "checkpoint_every", "log_every", "keep", "device", "reading"}
)


class RunError(RepaCacheError):
    """A run cannot start, or cannot go on with these settings."""


class Run:
    """A run at some step, new or restored from its newest checkpoint.

    Raises RunError if the cache does not suit the model, or if the checkpoint was made with
    other settings or from other cached tensors.
    """

    def __init__(self, settings: TrainSettings, batches: CachedBatches, place: Placement) -> None:
        self._settings = settings
        self._identity: dict[str, Any] = {
            "settings": settings.model_dump(mode="json", exclude=set(CHANGEABLE)),
            "columns": batches.fingerprints,
            "rows": batches.rows_identity,
        }
        config = transformer_config(settings, batches)
        check_grids(config, settings, batches)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(settings.seed, Stream.WEIGHTS))
            self.model = Transformer(config)
        found = checkpoint.latest(settings.run)
        if found is not None:
            self._check(found)
            self.model.load_state_dict(found.weights("model"))
        self.model.to(place.device).train()
        self.average = make_average(self.model)
        self.optimiser = make_optimiser(self.model, settings.learning_rate)
        self.step = 0
        if found is not None:
            self.average.load_state_dict(found.weights("ema"))
            self.optimiser.load_state_dict(found.optimiser())
            self.step = int(found.state["step"])
        self._saved = self.step

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one."""
        if self.step == self._saved:
            return
        checkpoint.save(
            self._settings.run,
            self.step,
            {"model": self.model.state_dict(), "ema": self.average.state_dict()},
            self.optimiser.state_dict(),
            {**self._identity, "model": asdict(self.model.config)},
            self._settings.keep,
        )
        self._saved = self.step

    def _check(self, found: Checkpoint) -> None:
        for part in ("settings", "columns", "rows"):
            if changed := differences(found.state[part], self._identity[part], "run"):
                raise RunError(
                    f"{found.folder} was made with other {part} ({'; '.join(changed)}). "
                    "Restore them, or choose another train.run."
                )


def transformer_config(settings: TrainSettings, batches: CachedBatches) -> TransformerConfig:
    """The transformer that suits a cache."""
    channels, side, _ = batches.latent_shape
    return TransformerConfig(
        side=side,
        patch=settings.patch,
        channels=channels,
        depth=settings.size.depth,
        width=settings.size.width,
        heads=settings.size.heads,
        classes=batches.classes,
        features=tuple(shape[-1] for shape in batches.token_shapes),
        align_depth=settings.depth,
        projector_width=settings.projector_width,
        has_null_class=settings.label_dropping > 0,
    )


def check_grids(config: TransformerConfig, settings: TrainSettings, batches: CachedBatches) -> None:
    """Raise RunError unless every encoder's tokens lie on the transformer's grid."""
    for encoder, (tokens, _) in zip(settings.encoders, batches.token_shapes, strict=True):
        if tokens != config.grid**2:
            raise RunError(
                f"{encoder} has {tokens} tokens ({tokens**0.5:g} x {tokens**0.5:g}), "
                f"{settings.model} has {config.grid**2} ({config.grid} x {config.grid}). "
                f"Choose another patch size, or set encoders.{encoder}.input_size and rebuild."
            )
