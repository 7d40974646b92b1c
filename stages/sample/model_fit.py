"""Whether a model can be sampled as configured."""

from stages.encode.networks.autoencoder import Autoencoder, NoAutoencoder
from stages.model.transformer_config import TransformerConfig
from stages.sample.sample_settings import SampleSettings
from stages.sample.solvers import SOLVERS, find_solver
from stages.sample.solvers.solver import SampleError


def check_fit(
    settings: SampleSettings, config: TransformerConfig, autoencoder: Autoencoder | NoAutoencoder
) -> None:
    """Raise SampleError if a model cannot be sampled as configured."""
    _check_solver(settings, config)
    _check_guidance(settings, config)
    if (settings.guided_channels or 0) > config.channels:
        raise SampleError(
            f"the model's latents have {config.channels} channels, got {settings.guided_channels}",
            where="sample.guided_channels",
        )
    if autoencoder.channels != config.channels:
        raise SampleError(
            f"its latents have {autoencoder.channels} channels, but those of the model have "
            f"{config.channels}",
            where="sample.vae",
            remedy="Set it to the VAE that the model was trained for.",
        )


def _check_solver(settings: SampleSettings, config: TransformerConfig) -> None:
    solver = find_solver(settings.solver, config.family)
    if SOLVERS[solver].family != config.family:
        fitting = [name for name, other in SOLVERS.items() if other.family == config.family]
        raise SampleError(
            f"{solver!r} is for {SOLVERS[solver].family}, but the model is a {config.family}; "
            f"choose from {', '.join(fitting)}",
            where="sample.solver",
        )
    if problem := SOLVERS[solver].problem_with(settings.steps):
        raise SampleError(problem, where="sample.steps")
    if settings.time_shift is not None and not SOLVERS[solver].has_grid:
        raise SampleError(f"{solver!r} has no grid of times to shift", where="sample.time_shift")


def _check_guidance(settings: SampleSettings, config: TransformerConfig) -> None:
    scales = {"guidance": settings.guidance, "class_guidance": settings.class_guidance}
    for name, scale in scales.items():
        if scale not in (None, 1) and not config.has_null_class:
            raise SampleError(
                f"sample.{name} is {scale}, but the model was trained without label dropping and "
                "has no null class",
                remedy="Set it to 1, or train with label dropping.",
            )
    if settings.class_guidance is not None and not config.class_features:
        raise SampleError(
            f"sample.class_guidance is {settings.class_guidance}, but the model has no class token",
            remedy="Leave it out.",
        )
    needs_components = settings.guide_components or settings.representation_guidance != 1
    if needs_components and not config.joint_channels:
        raise SampleError(
            "sample.guide_components and sample.representation_guidance are for models that "
            "diffuse components along, and this one does not.",
        )
