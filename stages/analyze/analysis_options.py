"""What the analyses are told: which weights, which images, and how they are probed."""

from dataclasses import dataclass

from cache.errors import RepaCacheError
from cache.stores.places import Place
from stages.weights.export_options import Weights

# Images of the paper's analysis (REPA, appendix C.1).
ROWS = 10_000
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
# Of CKNNA, as in the paper.
NEIGHBOURS = 10
HELD_OUT = 0.2
# What tables of probes call them, beside cached features.
HIDDEN_STATES = "hidden states"
EPOCHS = 90


class AnalysisError(RepaCacheError):
    """A run or a cache cannot be analysed in the way that is asked for."""


@dataclass(frozen=True)
class StateOptions:
    """Whose hidden states are analysed, and where.

    step: of the run's checkpoint, by default the newest; cache: where it lies, if not where the
    run's configuration says; rows: the most images that are used; levels: of noise, from 0, clean,
    to 1; blocks: counted from 1, none for all; is_conditional: whether the model is told each
    image's label, instead of none; seed: of the noise; batch_size: images per forward pass.
    """

    step: int | None = None
    weights: Weights = Weights.EMA
    cache: Place | None = None
    rows: int = ROWS
    levels: tuple[float, ...] = LEVELS
    blocks: tuple[int, ...] = ()
    is_conditional: bool = False
    seed: int = 0
    batch_size: int = 64
    device: str = "auto"


@dataclass(frozen=True)
class AlignmentOptions:
    """How CKNNA is measured.

    neighbours: of each image; is_raw: whether features are taken as they are. By default they are
    brought to unit length, as Huh et al. do (appendix C): otherwise the longest features are the
    neighbours of all images.
    """

    neighbours: int = NEIGHBOURS
    is_raw: bool = False


@dataclass(frozen=True)
class ProbeOptions:
    """How a linear probe is trained (REPA, appendix C.1).

    held_out: the share of images that it is judged by; batch_size: of the others. Batches are
    smaller and steps larger than the paper's 16,384 images at 1e-3: 90 epochs of 10,000 images
    would be 90 steps of these, after which probes are far from what they can be.
    """

    held_out: float = HELD_OUT
    epochs: int = EPOCHS
    batch_size: int = 256
    learning_rate: float = 1e-2
    seed: int = 0
