"""An encoder that is a class of somebody's own; registers it, also as a Dask worker's --preload."""

from torch import Tensor, nn

from stages.encode.networks.registry import ENCODERS, HALF, EncoderSpec

NAME = "patches"


class Patches(nn.Module):
    """A network of somebody's own: patches and their mean, each through one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, 8)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.embed(inputs).flatten(2).mT
        return tokens.mean(1, keepdim=True), tokens


SPEC = EncoderSpec(
    "patches:Patches",
    stride=8,
    input_size=256,
    mean=HALF,
    std=HALF,
    has_class_token=True,
    sizing="any",
    unpublished="patches are at example.org/patches",
    arguments={"width": 12},
    library="torch",
)


def dask_setup(_worker: object) -> None:
    """Called by Dask in a worker."""
    ENCODERS[NAME] = SPEC
