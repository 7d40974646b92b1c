"""When the cache is cheaper than running the encoders in every step.

Published code precomputes latents too, so that only encoders count here. S epochs of a run, A of
them with alignment, T operations of the transformer for an image of a step, E of the encoders, B
epochs after which the cache has cost less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cache.captions import CAPTIONS
from pipeline.config import Config
from pipeline.plan.durations import Pace
from stages.encode.building.recipes import features_column, text_column
from stages.encode.measuring.foresight import ForeseenColumn


@dataclass(frozen=True)
class Gains:
    """What one run and further ones save by reading its encoders' tokens.

    step_flops, encoder_flops: of the transformer and of the run's encoders for an image of a
    step, that is T and E, the mean over A; epochs, aligned_epochs: of a run, S and A;
    build_seconds: of its encoders, over all images and their views; online_epoch_seconds: of the
    same encoders in training, over all images once.
    """

    step_flops: float
    encoder_flops: float
    epochs: float
    aligned_epochs: float
    build_seconds: float
    online_epoch_seconds: float

    @property
    def step_ratio(self) -> float:
        """How many times a step from the cache one with the encoders online costs."""
        return 1 + self.encoder_flops / self.step_flops

    @property
    def break_even_epochs(self) -> float | None:
        """B: epochs that cost as much online as encoding for the cache; None without encoders."""
        if not self.online_epoch_seconds:
            return None
        return self.build_seconds / self.online_epoch_seconds

    @property
    def break_even_runs(self) -> float | None:
        """The same in runs."""
        epochs = self.break_even_epochs
        return None if epochs is None else epochs / self.aligned_epochs

    @property
    def run_saving(self) -> float:
        """The share of a run's operations that the cache saves, once it is there."""
        return self._saving(self.aligned_epochs, 1)

    @property
    def saved_seconds(self) -> float:
        """Of one run, once the cache is there."""
        return self.aligned_epochs * self.online_epoch_seconds

    def saving(self, runs: int) -> float:
        """The share that it saves of so many runs, the encoding for it counted as a loss."""
        return self._saving(runs * self.aligned_epochs - (self.break_even_epochs or 0), runs)

    def _saving(self, saved_epochs: float, runs: int) -> float:
        online = self.epochs * self.step_flops + self.aligned_epochs * self.encoder_flops
        return saved_epochs * self.encoder_flops / (runs * online)


def find_gains(
    config: Config,
    foreseen: Sequence[ForeseenColumn],
    images: int,
    flops: float,
    pace: Pace,
) -> Gains:
    """The gains of the configured run. flops: of the transformer in a step, for one image."""
    train, flip = config.train, config.dataset.flip
    # How many steps read each encoder.
    steps: dict[str, int] = {}
    for term in train.align:
        until = train.steps if term.until is None else min(term.until, train.steps)
        for name in map(features_column, map(config.encode.network, term.encoders)):
            steps[name] = max(steps.get(name, 0), until)
    if train.reads_text and train.text is not None:
        # Dropped captions are encoded too, as one constant is not worth the trouble.
        steps[text_column(train.text)] = train.steps
    of = {one.column.name: one.flops for one in foreseen}
    rows = {one.column.name: one.column.rows for one in foreseen}
    aligned_steps = max(steps.values(), default=train.steps)
    shares = {name: until / aligned_steps for name, until in steps.items()}
    return Gains(
        step_flops=flops,
        encoder_flops=sum(share * of[name] for name, share in shares.items()),
        epochs=train.steps * train.batch_size / images,
        aligned_epochs=aligned_steps * train.batch_size / images,
        build_seconds=sum(
            (1 + (flip and not name.startswith(CAPTIONS))) * rows[name] * pace.building[name]
            for name in steps
        ),
        online_epoch_seconds=images
        * sum(share * pace.online[name] for name, share in shares.items()),
    )
