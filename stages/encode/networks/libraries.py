"""Where networks come from: the libraries, each with a module of this room that speaks to it.

To add a library, write such a module and add an entry to `LIBRARIES`.
B images, S their side in px, T tokens on a square grid, P tokens before them, D features.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from stages.encode.networks.registry import EncoderError, EncoderSpec
from stages.setting_types import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn


class Library(NamedTuple):
    """A library, called as the package that is imported.

    networks: the module that implements `Networks`; finder: the function, `module:name`, from the
    name of a model to its `EncoderSpec`, for those that are not in the registry. It is called
    whenever a configuration is read, and had better import neither torch nor the library.
    """

    networks: str
    finder: str | None = None


class Networks(Protocol):
    """What stage one needs of a library; each raises EncoderError if it cannot be had."""

    def create_network(self, spec: EncoderSpec, input_size: int) -> "nn.Module":
        """A network with random weights, on torch's default device, which may be meta."""

    def load_network(self, spec: EncoderSpec, input_size: int, weights: Path | None) -> "nn.Module":
        """A network with published weights, or those of a local file, on the CPU."""

    def weights_sha256(self, network: "nn.Module") -> str:
        """The sha256 of the weights as loaded, by which a cache knows them."""

    def run_to_layer(
        self, network: Any, inputs: "Tensor", spec: EncoderSpec
    ) -> "tuple[Tensor, Tensor]":
        """Prefix tokens [B, P, D], the class token first, and patch tokens [B, T, D].

        inputs: [B, 3, S, S], normalised.
        """


LIBRARIES: dict[str, Library] = {
    "timm": Library(
        "stages.encode.networks.timm_library", "stages.encode.networks.timm_index:timm_encoder"
    ),
    "torch": Library("stages.encode.networks.torch_modules"),
    "transformers": Library(
        "stages.encode.networks.transformers_library",
        "stages.encode.networks.transformers_index:transformers_encoder",
    ),
}


def library_of(spec: EncoderSpec) -> Networks:
    """The library of an encoder; imports it."""
    return cast("Networks", import_module(LIBRARIES[spec.library].networks))


def find_model(library: str, model: str) -> EncoderSpec:
    """The encoder that is a model of a library. Raises EncoderError if there is none."""
    if library not in LIBRARIES:
        raise EncoderError(f"unknown library {library!r}; {nearest(library, LIBRARIES)}")
    finder = LIBRARIES[library].finder
    if finder is None:
        raise EncoderError(f"models of {library} go by their names in the registry, got {model!r}")
    module, _, function = finder.partition(":")
    return cast("EncoderSpec", getattr(import_module(module), function)(model))
