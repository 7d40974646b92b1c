"""The section of pipeline.toml that sampling reads."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, create_model, field_validator

from stages.encode.network_settings import HubName, LatentsSettings
from stages.model.interpolants import Shift
from stages.sample.solvers import AUTO, SOLVERS
from stages.sample.solvers.solver import SolverOptions
from stages.setting_types import Count, Few, Kinds, OneOf, Seed

# The published evaluation decodes with another VAE than the one that encoded.
PUBLISHED_DECODERS = {"stabilityai/sd-vae-ft-mse": "stabilityai/sd-vae-ft-ema"}


class SampleSettings(SolverOptions):
    """What sampling by any solver has in common."""

    images: Count = 50_000
    """How many are drawn."""
    solver: Annotated[str, OneOf("stages.sample.solvers:NAMES")] = "auto"
    """From noise to latents; `auto` is that of the model's paper, euler-maruyama for SiT, ddpm for
    DiT and jit-heun for JiT."""
    steps: Annotated[int, Field(gt=0, le=1_000_000)] = 250
    """How many the solver makes; dopri5 chooses its steps by itself."""
    time_shift: Shift | None = None
    """How far the times of SiT's steps are moved towards noise, as by `train.time_shift`, which it
    does not follow by itself; by default not at all."""
    guidance: NonNegativeFloat = 1.0
    """Scale of classifier-free guidance; 1 for none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The times, from 0 (clean) to 1 (noise), between which guidance applies."""
    guided_channels: Count | None = None
    """How many of the latent's channels guidance applies to; by default all, as in REPA's code. The
    codes of SiT and DiT guide 3."""
    class_guidance: NonNegativeFloat | None = None
    """Scale of guidance of the class token that a model diffuses along (REG); by default none."""
    guide_components: bool = False
    """Whether guidance also moves the components that a model diffuses along (ReDi)."""
    representation_guidance: NonNegativeFloat = 1.0
    """Scale of guidance towards what a model predicts of images with their components (ReDi), from
    what it predicts without, of all channels; 1 for none. Added to the guidance by labels, on the
    same interval."""
    contrastive_correction: bool | None = None
    """Whether guided steps with a scale above 1 make up for contrastive training (Delta-FM), by the
    mean of the latents that the run keeps; by default if the run was trained so."""
    prompts: tuple[str, ...] = ()
    """Captions that an MMDiT draws images of, image after image and over again; by default those
    of the cache, one of each image's."""
    labels: Literal["random", "balanced"] = "random"
    """Drawn at random, or balanced: image i has label i modulo the number of classes."""
    seed: Seed = 0
    """Of noise and labels."""
    vae: HubName | None = None
    """The one that decodes; by default that which the paper takes for the latents' VAE."""
    uint8: Literal["truncate", "round"] = "truncate"
    """How values become whole numbers: as in REPA's code (truncate), or SiT's and DiT's (round)."""
    npz: bool = False
    """Whether all images are written as one file in ADM's format too."""
    grid: tuple[Few, Few] = (8, 8)
    """Rows and columns of the picture of samples."""
    batch_size: Count = 64
    """Images drawn at once on GPUs; a CPU draws one with each thread."""
    precision: Literal["auto", "bfloat16", "float16", "tf32", "float32"] = "auto"
    """Of matrix products; `auto` is TF32 on GPUs, as published, and float32 elsewhere."""
    compile: bool | Literal["auto"] = "auto"
    """Whether torch.compile makes the model's blocks faster; `auto` on GPUs."""

    @field_validator("guidance_interval")
    @classmethod
    def _check_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"expected 0 <= low <= high <= 1, got {low} and {high}")
        return interval

    def decoder(self, latents: LatentsSettings) -> LatentsSettings:
        """The VAE that decodes, for latents of some VAE."""
        vae = self.vae or PUBLISHED_DECODERS.get(latents.vae, latents.vae)
        return latents.model_copy(update={"vae": vae})


def _with_options(options: type[SolverOptions]) -> type[SampleSettings]:
    """The settings of samples by a solver with options of its own."""
    if options is SolverOptions:
        return SampleSettings
    bases: tuple[Any, ...] = (options, SampleSettings)
    return create_model(f"SampleWith{options.__name__}", __base__=bases)


def _sampling() -> Mapping[str, type[SampleSettings]]:
    """The settings for each name that `sample.solver` takes."""
    distinct = dict.fromkeys(solver.options for solver in SOLVERS.values())
    made = {options: _with_options(options) for options in distinct}
    return {AUTO: SampleSettings, **{name: made[own.options] for name, own in SOLVERS.items()}}


SAMPLING = Kinds("solver", _sampling())
# `[sample]` with any solver.
if TYPE_CHECKING:
    AnySampling = SampleSettings
else:
    AnySampling = SAMPLING.union
