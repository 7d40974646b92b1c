"""The floor of a Frechet distance: what as many real images as there are samples are measured at.

Few images make a distance too large, and no samples can be expected below their floor. The part
of the reference that stands for the samples is compared with the rest of it, as the samples are
with all of it; a second part as small as the first would err as much as that once more.
"""

from dataclasses import dataclass

from stages.evaluate.metrics import Gaussian, frechet_distance

# A covariance takes two.
FEWEST = 2


@dataclass(frozen=True)
class Floor:
    """The distance of a part of a reference. images: in that part, at most those asked for."""

    value: float
    images: int


def part_size(samples: int, images: int, *, is_apart: bool) -> int | None:
    """How many of a number of images can stand for samples, or None if there are too few.

    is_apart: whether they are compared with the rest of these images, of which there are to be
    as many at least.
    """
    size = min(samples, images // 2 if is_apart else images)
    return size if size >= FEWEST else None


def floor_of(part: Gaussian, whole: Gaussian) -> Floor:
    """The floor by a part of a whole.

    Statistics that do not tell of how many images they are do not tell either whether the part
    is among these, and cannot be freed of it.
    """
    assert part.images is not None
    rest = whole if whole.images is None else whole.without(part)
    return Floor(frechet_distance(part, rest), part.images)
