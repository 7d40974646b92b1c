"""Stage two: the training loop."""

import time
from contextlib import closing, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stages.interrupt import InterruptedWorkError, StopRequest, stop_request
from stages.placement import Placement
from stages.progress import progress
from stages.train.batches import CachedBatches
from stages.train.log import RunLog
from stages.train.losses import Losses, Objective
from stages.train.optim import update_average
from stages.train.randomness import Draw
from stages.train.run import Run
from stages.train.settings import CachedTensors, TrainSettings


@dataclass(frozen=True)
class TrainSummary:
    """What a run has reached, and how long this call took for its part of it.

    start, step: before and after this call; seconds: of the steps between.
    """

    start: int
    step: int
    seconds: float
    parameters: int


def train(settings: TrainSettings, tensors: CachedTensors, place: Placement) -> TrainSummary:
    """Train from a cache, or go on from the run's newest checkpoint.

    A signal stops the run with a checkpoint, raising InterruptedWorkError.
    """
    batches = CachedBatches(tensors, settings, place)
    run = Run(settings, batches, place)
    draw = Draw(settings, batches.latent_shape, place)
    objective = Objective(settings, batches.scaling, null_class=batches.classes)
    model = DistributedDataParallel(run.model) if place.world > 1 else run.model
    log = closing(RunLog(settings.run / "log.jsonl", run.step)) if place.is_main else nullcontext()
    show = progress("train", settings.steps, "steps", run.step, quiet=not place.is_main)
    start, began, note = run.step, time.monotonic(), ""
    with closing(batches), stop_request() as stop, log as lines, show as advance:
        while run.step < settings.steps and not _agreed(stop, place):
            loss = objective(model, batches.read(run.step), draw.at(run.step))
            loss.total.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            run.optimiser.step()
            run.optimiser.zero_grad()
            update_average(run.average, run.model, settings.ema_decay)
            run.step += 1
            if lines is not None and run.step % settings.log_every == 0:
                values = _values(settings, loss, norm)
                lines.write(run.step, values)
                note = f"loss {values['loss']:.3f}"
            advance(1, note)
            if place.is_main and run.step % settings.checkpoint_every == 0:
                run.save()
        if place.is_main:
            run.save()
    if run.step < settings.steps:
        raise InterruptedWorkError(
            f"Stopped after step {run.step} of {settings.steps}, with a checkpoint in "
            f"{settings.run}. Run the same command to go on."
        )
    return TrainSummary(start, run.step, time.monotonic() - began, run.parameters)


def _agreed(stop: StopRequest, place: Placement) -> bool:
    """Whether any rank was asked to stop: all have to leave the loop at the same step."""
    if place.world == 1:
        return bool(stop)
    request = torch.tensor(int(bool(stop)), device=place.device)
    torch.distributed.all_reduce(request)
    return bool(request)


def _values(settings: TrainSettings, loss: Losses, norm: Tensor) -> dict[str, float]:
    """What the log keeps of a step."""
    alignment = zip(settings.encoders, loss.alignment, strict=True)
    return {
        "loss": loss.total.item(),
        "denoising": loss.denoising.mean().item(),
        **{f"alignment/{encoder}": value.item() for encoder, value in alignment},
        "gradient_norm": norm.item(),
    }
