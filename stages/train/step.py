"""One step of the optimiser."""

import torch
from torch import Tensor

from stages.placement import Placement
from stages.train.batches import Batch
from stages.train.graph import Replayed, Work
from stages.train.losses import TrainingLoss
from stages.train.meter import Measured
from stages.train.optim import learning_rate, make_replayable, set_learning_rate, update_weights
from stages.train.parallel import clip_gradients, synchronised
from stages.train.precision import autocast, precision_of
from stages.train.randomness import Draws
from stages.train.run import Run
from stages.train.train_settings import TrainSettings


class Step:
    """Makes steps of a run: forward, backward, update, average. It never waits for the device."""

    def __init__(
        self, settings: TrainSettings, run: Run, loss: TrainingLoss, place: Placement
    ) -> None:
        self._settings = settings
        self._run = run
        self._loss = loss
        self._device = place.device
        self._precision = precision_of(settings, place.device)
        self._work: Work = self._made
        if place.device.type == "cuda":
            make_replayable(run.optimiser)
            if settings.compute.graph and place.world == 1:
                self._work = Replayed(self._made, place.device)

    def __call__(self, batch: Batch, draws: Draws) -> Measured:
        """Make the next step; what it measured is valid until the one after it."""
        run = self._run
        set_learning_rate(run.optimiser, learning_rate(self._settings, run.step))
        measured = self._work(batch, draws)
        run.step += 1
        return measured

    def _made(self, batch: Batch, draws: Draws) -> Measured:
        """Forward, backward, update, average: the same whatever the step, but for its inputs."""
        run, parts = self._run, self._settings.compute.micro_batches
        terms, losses = [], []
        for number, part in enumerate(zip(batch.split(parts), draws.split(parts), strict=True)):
            with synchronised(run.network, is_last=number == parts - 1):
                found = self._loss(self._predict, *part)
                run.scaler.scale(found.total / parts).backward()
            terms.append(found.terms.detach())
            losses.append(found.total.detach())
        norm = self._update()
        level = self._loss.objective.level(draws.time)
        return Measured(torch.cat(terms, dim=1), level, torch.stack(losses).mean(), norm)

    def _predict(self, noisy: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        with autocast(self._precision, self._device):
            predicted: tuple[Tensor, list[Tensor]] = self._run.network(
                noisy, time, labels, project=self._loss.is_aligned
            )
        return predicted

    def _update(self) -> Tensor:
        """Update weights and average; returns the norm of the gradient."""
        run = self._run
        run.scaler.unscale_(run.optimiser)
        norm = clip_gradients(run.model.parameters(), self._settings.gradient_clip)
        update_weights(run.optimiser, run.scaler, norm)
        run.average.update()
        return norm
