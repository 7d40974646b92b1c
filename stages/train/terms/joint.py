"""What is diffused along with the latents: at the same time, with noise of its own.

B images, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import NonNegativeFloat, model_validator

from stages.model.sizes import CLASS_TOKEN
from stages.train.terms.denoising import squared_error
from stages.train.terms.term import Term

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from stages.train.terms.seen import Named, Posed, Seen, Shapes
    from stages.train.train_settings import TrainSettings


class Joint(Term):
    """Something of an encoder that the model takes and predicts beside the latents.

    stream: its name among what is diffused.
    """

    stream: ClassVar[str]

    encoder: str
    """One of `[encoders]`."""

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.until is not None:
            raise ValueError(f"{self.kind} has no end: the model takes what it adds at every step")
        return self

    def problems(self, train: TrainSettings) -> Iterator[str]:
        if train.family != "SiT":
            yield f"kind: {self.kind!r} is for SiT, whose velocity it has, too"
        same = [term for term in train.align if isinstance(term, type(self))]
        if self is not same[0]:
            yield f"kind: a run has one entry of {self.kind!r} at most, got {len(same)}"

    @property
    def encoders(self) -> tuple[str, ...]:
        return (self.encoder,)

    @abstractmethod
    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Of what is diffused, for an image."""

    @abstractmethod
    def model_options(self, shapes: Shapes) -> Mapping[str, Any]:
        """Fields of the transformer's configuration that take it in."""

    @abstractmethod
    def clean(self, batch: Named) -> Tensor:
        """What is diffused of B images, [B, ...]. batch: the arrays that it reads, and moments."""

    def kept(self, clean: Tensor, drawn: Named) -> Tensor:  # noqa: ARG002
        """What of it a step of training has."""
        return clean

    def given(self, posed: Posed, drawn: Named) -> Posed:  # noqa: ARG002
        """The same with what of it the model is given."""
        return posed

    def draws(self, shapes: Shapes) -> Mapping[str, tuple[int, ...]]:
        return {noise_of(self.stream): self.shape(shapes)}

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        streamed = seen.streams[self.stream]
        return [squared_error(streamed.prediction, streamed.target)]


class ClassToken(Joint):
    """REG: an encoder's class token as one more token (arXiv 2507.01467, eq. 5)."""

    stream: ClassVar[str] = CLASS_TOKEN

    kind: Literal["class-token"] = "class-token"
    """Which loss it is."""
    weight: NonNegativeFloat = 0.03
    """Of this loss in the total."""

    @property
    def arrays(self) -> tuple[str, ...]:
        return (f"{self.encoder}/vector",)

    @property
    def on_grid(self) -> tuple[str, ...]:
        return ()

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        return shapes.arrays[self.arrays[0]]

    def model_options(self, shapes: Shapes) -> Mapping[str, Any]:
        return {"class_features": self.shape(shapes)[-1]}

    def clean(self, batch: Named) -> Tensor:
        return batch[self.arrays[0]].float()


def noise_of(stream: str) -> str:
    """The name of a stream's noise among what is drawn."""
    return f"{stream}/noise"
