"""What is measured of cached latents: means and deviations of channels, and whether scaling fits.

B images, N rows, C latent channels, h and w the latent's sides.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cache import ledger, metadata
from cache.layout import Column
from cache.reader import PartialReader, invalid_rows
from cache.rows import RowTable
from stages.encode.building.principal_components import RunningMoments
from stages.latents import (
    DEVIATIONS,
    MEANS,
    MEASURED,
    MEASURED_ROWS,
    Rule,
    is_drawn,
    latent_shape,
    main_array,
    scaling_of,
)
from stages.progress import progress, say

ROWS_AT_ONCE = 1024
# By which a deviation is told, and how far from 1 it may be.
SAMPLE_ROWS = 256
LEAST, MOST = 0.5, 2.0


def keep_statistics(column: Column, rows: RowTable) -> None:
    """Measure a column of latents, if it is whole and that was not done.

    Rows that are added later change nothing. Nobody else may be preparing.
    """
    if MEASURED in metadata.read_group(column.folder) or ledger.missing(column, rows):
        return
    there = _valid_rows(column, ())
    if len(there):
        mean, deviation = _statistics(column, there, f"{column.name}: mean and deviation")
        measured = {MEANS: mean.tolist(), DEVIATIONS: deviation.tolist(), MEASURED_ROWS: len(there)}
        metadata.update_group(column.folder, {MEASURED: measured})


def say_how_far_from_one(column: Column, rule: Rule, rows: RowTable) -> None:
    """Say so if latents are scaled to a deviation far from 1, by a sample of those there are."""
    there = _valid_rows(column, ledger.missing(column, rows))[:SAMPLE_ROWS]
    if not len(there) or (
        rule == "measured" and MEASURED not in metadata.read_group(column.folder)
    ):
        return
    scaling = scaling_of(column, rule)
    mean, deviation = _statistics(column, there)
    shape = (1, -1, 1, 1)
    # Every place is scaled alike.
    means = ((mean.view(shape) - scaling.shift) * scaling.scale).flatten()
    deviations = (deviation.view(shape) * scaling.scale).flatten()
    overall = float((deviations.square().mean() + means.var(correction=0)).sqrt())
    if not LEAST < overall < MOST:
        say(
            f"{column.name}: its latents are scaled to a deviation of {overall:.2g}, and diffusion "
            'models are made for 1. latents.scaling = "measured" makes it so, without encoding '
            "them again."
        )


def _valid_rows(column: Column, missing: Sequence[int]) -> np.ndarray:
    """The rows of finished shards whose images could be decoded."""
    valid = np.ones(column.rows, np.bool_)
    for shard in missing:
        valid[column.shard_rows(shard)] = False
    valid[list(invalid_rows(column, missing))] = False
    return np.flatnonzero(valid)


def _statistics(
    column: Column, rows: np.ndarray, title: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel, float64 [C], over images, places and the posterior."""
    channels, *_ = latent_shape(column)
    reader, array = PartialReader(column), main_array(column).name
    moments = RunningMoments(channels)
    variance = torch.zeros(channels, dtype=torch.float64)
    with progress(title or "", len(rows), "images", quiet=title is None) as advance:
        for part in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
            # [B, C or 2C, h, w] to [B h w, C or 2C].
            values = torch.from_numpy(reader.values(array, part)).double()
            places = values.movedim(1, -1).flatten(0, -2)
            moments.add(places[:, :channels])
            if is_drawn(column):
                variance += places[:, channels:].square().sum(dim=0)
            advance(len(part), "")
    variance = (moments.scatter.diagonal() + variance) / moments.count
    return moments.mean, variance.sqrt()
