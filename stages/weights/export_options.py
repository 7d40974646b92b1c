"""What `export` is told beyond the configuration."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Weights(StrEnum):
    """Which weights of a checkpoint."""

    EMA = "ema"
    MODEL = "model"
    EMA2 = "ema2"


class Layout(StrEnum):
    """Whose code a file of weights is of.

    repa: that of REPA, with projectors or without; dit: that of DiT; sit: that of SiT with its
    defaults, in whose published files half of the output's channels are dropped; sit-no-sigma:
    that of SiT with learn_sigma=False, which its samplers use for a file of one's own;
    lightningdit: that of LightningDiT; redi: that of ReDi, with one projector or none; jit: that of
    JiT, and of iREPA and PixelREPA for it. In SiT's,
    LightningDiT's and ReDi's code time runs from noise to data, in REPA's and here from data to
    noise: names and shapes are the same, numbers are not.
    """

    REPA = "repa"
    SIT = "sit"
    SIT_NO_SIGMA = "sit-no-sigma"
    DIT = "dit"
    LIGHTNINGDIT = "lightningdit"
    REDI = "redi"
    JIT = "jit"

    @property
    def has_time_reversed(self) -> bool:
        """Whether time 0 is noise there, and not here."""
        return self not in (Layout.REPA, Layout.DIT, Layout.JIT)


@dataclass(frozen=True)
class ExportOptions:
    """What to export and where to.

    path: the file to write; step: of the checkpoint, by default the newest; layout: by default
    that of REPA for SiT, of DiT for DiT, of JiT for JiT, and of ReDi for a SiT that diffuses
    components along.
    """

    path: Path
    step: int | None = None
    weights: Weights = Weights.EMA
    layout: Layout | None = None
