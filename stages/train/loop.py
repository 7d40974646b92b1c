"""Stage two: the training loop, and what stops it before its last step."""

import gc
import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from cache.errors import RepaCacheError
from cache.files import write_atomically
from cache.locking.locks import claimed
from cache.order import Rows
from stages.model.transformer_config import TransformerConfig
from stages.placement import Placement, machine_memory
from stages.processes import InterruptedWorkError, stop_request
from stages.progress import progress, say
from stages.train.batches import CachedBatches, Order, store_reading
from stages.train.cached_data import CachedData
from stages.train.compute import arithmetic, precision_of
from stages.train.latent_mean import keep_mean
from stages.train.log import open_sinks
from stages.train.meter import Interval, Meter, RunLog
from stages.train.randomness import Randomness
from stages.train.run import Run
from stages.train.run_model import shapes_for
from stages.train.step import Step
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import CachedTensors, RunError, TrainSettings
from stages.weights import checkpoint

# Draws samples of a model's moving average: step, weights by name, what model they are of.
DrawGrid = Callable[[int, Mapping[str, Tensor], TransformerConfig], None]
SHOWN_ROWS = 8


class NonFiniteLossError(RepaCacheError):
    """A loss or gradient is infinite or not a number; the message names step and rows."""


@dataclass(frozen=True)
class TrainSummary:
    """What a run has reached, and how long this call took for its part of it.

    start, step: before and after this call; seconds: of the steps between.
    """

    start: int
    step: int
    seconds: float
    parameters: int


def train(
    settings: TrainSettings,
    tensors: CachedTensors,
    place: Placement,
    draw_grid: DrawGrid | None = None,
    begun: Callable[[], None] = lambda: None,
) -> TrainSummary:
    """Train from a cache, or go on from the run's newest checkpoint.

    draw_grid: called every `grid_every` steps; begun: called once it is known that the run can
    go on as configured; both on rank 0 only.

    A signal stops the run with a checkpoint, raising InterruptedWorkError. Raises RunError if
    others train this run, NonFiniteLossError if a step's loss or gradient is not finite.
    """
    reading = settings.reading
    cached = CachedData(
        tensors, settings.encoders, verify=reading.verify, reading=store_reading(reading)
    )
    start, seconds = None, 0.0
    alone = claimed(settings.run / ".lock", say) if place.is_main else nullcontext()
    precision, deterministic = precision_of(settings, place.device), settings.compute.deterministic
    with (
        arithmetic(precision, deterministic=deterministic),
        alone as other,
        stop_request() as is_asked,
    ):
        if other is not None:
            what = f"{settings.run} is being trained by {other}"
            raise RunError(what, remedy="Choose another train.run.")
        stop = Agreement(is_asked, place)
        while True:
            stretch = Stretch(settings, cached, place, draw_grid)
            if start is None:
                start = stretch.start
                if place.is_main:
                    begun()
                stretch.introduce()
            began = time.monotonic()
            step = stretch.train(stop)
            seconds += time.monotonic() - began
            if step < stretch.end or step >= settings.steps:
                break
            # The next one has a model of its own, beside which this one may not fit.
            del stretch
            gc.collect()
        stop.close()
    if step < settings.steps:
        raise InterruptedWorkError(
            f"Stopped after step {step} of {settings.steps}, with a checkpoint in {settings.run}",
            remedy="Run the same command to go on.",
        )
    return TrainSummary(start, step, seconds, stretch.parameters)


class Stretch:
    """Steps of a run that have the same terms; the next stretch begins as if resumed.

    start, end: the first step, and that after the last one; parameters: number of trained ones.
    """

    def __init__(
        self,
        settings: TrainSettings,
        cached: CachedData,
        place: Placement,
        draw_grid: DrawGrid | None,
    ) -> None:
        found = checkpoint.agreed_latest(settings.run, place)
        self.start = found.step if found else 0
        self._every = RunTerms.of(settings)
        self.end = self._every.end(self.start, settings.steps)
        self._terms = self._every.at(self.start)
        self._settings, self._place, self._draw_grid = settings, place, draw_grid
        self._cached = cached
        self._run = Run(settings, cached, place, found, self._terms)
        self.parameters = self._run.parameters
        order = Order(settings.seed, settings.batch_size, settings.block_rows)
        arrays, reading = self._terms.arrays, settings.reading
        with machine_memory(place) as shared:
            self._batches = CachedBatches(
                cached, arrays, order, place, reading, self.end, shared=shared
            )
        self._meter = Meter(self._terms.names, place)
        if found is not None:
            self._meter.restore(found.measured)
        self._note = ""

    def introduce(self) -> None:
        """Say what is special about what the run reads, and keep what it needs of all of it."""
        for line in self._run.notes if self._place.is_main else ():
            say(line)
        if any(term.needs_latent_mean for term in self._settings.align):
            keep_mean(self._settings.run, self._cached, self._place)

    def randomness(self) -> Randomness:
        """What is drawn for any step."""
        cached, config = self._cached, self._run.model.config
        draws = self._terms.draws(lambda term: shapes_for(term, config, cached.shape))
        return Randomness(self._settings, cached.latent_shape, self._place, draws)

    def train(self, stop: "Agreement") -> int:
        """Make the steps up to the end, or until asked to stop; returns the step reached."""
        settings, place, run, batches = self._settings, self._place, self._run, self._batches
        randomness = self.randomness()
        step = Step(settings, run, self._terms, self._cached, place)
        sinks = open_sinks(settings, run.step) if place.is_main else []
        log = RunLog(sinks, settings, run.step, place.device)
        show = progress("train", settings.steps, "steps", run.step, quiet=not place.is_main)
        with closing(batches), closing(log), show as advance:
            while run.step < self.end and not stop.is_reached():
                self._meter.add(step(batches.read(run.step), randomness.at(run.step)))
                batches.prefetch()
                is_last = self._every.at(run.step) != self._terms
                if run.step % settings.log_every == 0 or is_last:
                    self._write(log)
                if run.step % settings.checkpoint_every == 0:
                    self._save()
                if settings.grid_every and run.step % settings.grid_every == 0:
                    self._draw()
                advance(1, self._note)
            self._save()
        return run.step

    def _measured(self) -> Interval:
        """What was measured since the last line of the log, unless it says to stop."""
        interval, run = self._meter.reduce(), self._run
        # Scaling makes gradients overflow now and then, and skips those steps.
        bad = interval.nonfinite(gradients=not run.scaler.is_enabled())
        if bad and self._settings.on_nonfinite == "stop":
            step = run.step - len(interval.rows) + bad[0]
            rows = self._batches.images(step)
            folder, keys = self._settings.run, self._cached.keys
            raise nonfinite_error(folder, step + 1, rows, keys, self._place)
        return interval

    def _write(self, log: RunLog) -> None:
        values = self._measured().values()
        self._meter.clear()
        log.write(self._run.step, values, self._batches.wait_seconds)
        self._note = f"loss {values['loss']:.3f}" if "loss" in values else "every step was skipped"

    def _save(self) -> None:
        self._measured()
        self._run.save(self._meter)

    def _draw(self) -> None:
        average = self._run.whole_average()
        if self._draw_grid is not None and self._place.is_main:
            self._draw_grid(self._run.step, average, self._run.model.config)


class Agreement:
    """Whether any process was asked to stop: all have to leave the loop at the same step.

    Each step tells the others and reads what all told at the step before, so that nobody waits.
    """

    def __init__(self, is_asked: Callable[[], bool], place: Placement) -> None:
        self._is_asked = is_asked
        self._world = place.world
        self._told: tuple[torch.Tensor, torch.distributed.Work] | None = None

    def is_reached(self) -> bool:
        """To be asked once before every step, by all processes."""
        if self._world == 1:
            return self._is_asked()
        asked = False
        if self._told is not None:
            requests, work = self._told
            work.wait()
            asked = bool(requests)
        requests = torch.tensor(int(self._is_asked()))
        self._told = requests, torch.distributed.all_reduce(requests, async_op=True)
        return asked

    def close(self) -> None:
        """Wait for what was told last; to be asked once after the last step, by all processes.

        An exchange that nobody waits for would keep the processes from ending.
        """
        if self._told is not None:
            self._told[1].wait()
            self._told = None


def nonfinite_error(
    run: Path, step: int, rows: Rows, keys: npt.NDArray[Any], place: Placement
) -> NonFiniteLossError:
    """The error for a step; a file of the run lists the images of its batch.

    step: counted from 1, as in the log; rows: of the batch, over all processes; keys: of all
    images.
    """
    path = run / f"nonfinite-step-{step:08d}.json"
    images = {int(row): str(keys[row]) for row in rows}
    if place.is_main:
        write_atomically(path, json.dumps({"step": step, "images": images}, indent=1).encode())
    shown = ", ".join(f"{row} ({key})" for row, key in list(images.items())[:SHOWN_ROWS])
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    last = checkpoint.latest(run)
    good = f"The last good checkpoint is {last.folder}" if last else "There is no checkpoint yet"
    return NonFiniteLossError(
        "the loss or its gradient is infinite or not a number, and no weight was changed by it. "
        f"Rows of the batch: {shown}{more}; all are in {path}. {good}",
        where=f"step {step}",
        remedy=(
            'Try a lower train.learning_rate, train.precision = "float32", or train.on_nonfinite = '
            '"skip".'
        ),
    )
