"""The terms of a run: the names of their losses, what they read, and which are part of a step."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from stages.train.terms.denoising import CleanImage, NoiseAndVariance, Objective, Velocity
from stages.train.terms.joint import Joint
from stages.train.terms.seen import Shapes
from stages.train.terms.term import Term
from stages.train.train_settings import TrainSettings


def objective_of(settings: TrainSettings) -> Objective:
    """The denoising objective of a run."""
    if settings.family == "DiT":
        return NoiseAndVariance()
    if settings.family == "JiT":
        own = settings.pixels
        return CleanImage(
            noise_scale=own.noise_scale,
            time_mean=own.time_mean,
            time_deviation=own.time_deviation,
        )
    return Velocity(
        interpolant=settings.interpolant, distribution=settings.times, shift=settings.time_shift
    )


class RunTerm(NamedTuple):
    """A term of a run: its number, the objective's being 0, and names of its losses of its own."""

    number: int
    term: Term
    names: tuple[str, ...]


@dataclass(frozen=True)
class RunTerms:
    """The objective and the entries of `[[train.align]]`, or those of them that a step has."""

    every: tuple[RunTerm, ...]

    @classmethod
    def of(cls, settings: TrainSettings) -> "RunTerms":
        terms = (objective_of(settings), *settings.align)
        seen: Counter[str] = Counter()
        every = []
        for number, term in enumerate(terms):
            seen.update(term.names)
            names = (name if seen[name] == 1 else f"{name}/{seen[name]}" for name in term.names)
            every.append(RunTerm(number, term, tuple(names)))
        return cls(tuple(every))

    def at(self, step: int) -> "RunTerms":
        """Those that are part of a step, counted from 0."""
        return RunTerms(tuple(one for one in self.every if one.term.is_active(step)))

    def end(self, step: int, last: int) -> int:
        """The first step behind one, at most `last`, that lacks a term of it."""
        ends = (one.term.until for one in self.at(step).every)
        return min((end for end in ends if end is not None and end < last), default=last)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all losses."""
        return tuple(name for one in self.every for name in one.names)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of each loss in the total, before any of them fades; less than 0 of what is maximised."""
        return tuple(
            -one.term.weight if one.term.is_maximised else one.term.weight
            for one in self.every
            for _ in one.names
        )

    @property
    def owners(self) -> tuple[int, ...]:
        """The number of each loss's term."""
        return tuple(one.number for one in self.every for _ in one.names)

    def shares(self, step: int) -> Mapping[int, float]:
        """How much of its weight each term has at a step, by number, if that changes."""
        return {one.number: one.term.share(step) for one in self.every if one.term.has_schedule}

    @property
    def arrays(self) -> tuple[str, ...]:
        """What is read of encoders, each once."""
        return tuple(dict.fromkeys(name for one in self.every for name in one.term.arrays))

    @property
    def depths(self) -> frozenset[int]:
        """The blocks whose output is seen."""
        return frozenset(depth for one in self.every for depth in one.term.depths)

    @property
    def teacher_depths(self) -> frozenset[int]:
        """The blocks of the teacher whose output is seen."""
        return frozenset(depth for one in self.every for depth in one.term.teacher_depths)

    def draws(self, shapes_of: Callable[[Term], Shapes]) -> Mapping[str, tuple[int, ...]]:
        """What is drawn for them, and its shape for an image."""
        terms = (one.term for one in self.every)
        return {
            name: shape for term in terms for name, shape in term.draws(shapes_of(term)).items()
        }

    @property
    def joint(self) -> tuple[Joint, ...]:
        """What is diffused along with the latents."""
        return tuple(one.term for one in self.every if isinstance(one.term, Joint))
