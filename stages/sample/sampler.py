"""Numbered images from a model: noise, labels, guidance, and how many are drawn at once.

B images, C latent channels, h and w the latent's sides, S the image's side in px.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import TypeAlias

import torch
from torch import Tensor

from stages.encode.networks.autoencoder import Autoencoder, NoAutoencoder
from stages.model.clean_images import noise_scale_of
from stages.model.conditions import Condition, joined_conditions, mapped
from stages.model.families import without_storage
from stages.model.interpolants import shift_of
from stages.model.sizes import DIFFUSION_STEPS
from stages.model.streams import packed, unpacked
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig
from stages.sample.correction import Correction
from stages.sample.model_fit import check_fit
from stages.sample.sample_settings import SampleSettings
from stages.sample.solvers import SOLVERS, find_solver
from stages.sample.solvers.solver import Field, Problem, Time
from stages.sample.thread_pieces import map_by_threads, raise_if_abandoned
from stages.sample.told import Told, by_label
from stages.train.compute import arithmetic, autocast, compile_blocks
from stages.train.randomness import Stream, seed_for

# Some of B images: all of them, none, or those with these numbers.
Some: TypeAlias = slice | Tensor
ALL, NONE = slice(None), slice(0)


class Sampler:
    """Draws numbered images; noise and what they show depend on seed and number alone.

    On a CPU an image does too; on a GPU its last bits also depend on the batch it is drawn in, and
    nothing waits for the device before a batch is decoded, but for `dopri5`. told: what the model
    is told of images, by default their classes; correction: of what a contrastive model predicts,
    in guided steps; noise_scale: of JiT, what noise is multiplied by, `auto` for images of a side.

    Raises SampleError if the model or the autoencoder does not suit the settings.
    """

    def __init__(
        self,
        settings: SampleSettings,
        model: Transformer,
        interpolant: str,
        autoencoder: Autoencoder | NoAutoencoder,
        device: torch.device,
        *,
        told: Told | None = None,
        correction: Correction | None = None,
        noise_scale: float | str = "auto",
    ) -> None:
        self._settings = settings
        self._told = told or by_label(settings, model.config.classes)
        self._config = model.config
        self._interpolant = interpolant
        self._autoencoder = autoencoder
        self._device = device
        self._noise_scale = noise_scale
        # Apple's GPUs have no float64: the state of the solver stays on the CPU there.
        self._state_device = torch.device("cpu") if device.type == "mps" else device
        self._correction = correction and replace(
            correction, mean=correction.mean.to(self._state_device)
        )
        self._precision = sampling_precision(settings, device)
        self._solver = SOLVERS[find_solver(settings.solver, self._config.family)]
        check_fit(settings, self._config, autoencoder)
        compile_blocks(model, settings.compile, device)
        self._model = model

    def draw(self, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """The images with these indices, uint8 [3, S, S] on the CPU, as they are finished."""
        for part, images in self._computed(self._images, indices):
            yield from zip(part, images, strict=True)

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Scaled latents [B, C, h, w] of the images with these indices, in float64."""
        return torch.cat([found for _, found in self._computed(self._solve, indices)])

    def _computed(
        self, compute: Callable[[Sequence[int]], Tensor], indices: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """What is computed for images, with their indices: batches, or on a CPU single images."""
        is_cpu = self._device.type == "cpu"
        size = 1 if is_cpu else self._settings.batch_size
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        with arithmetic(self._precision, deterministic=True):
            if is_cpu:
                yield from zip(parts, map_by_threads(compute, parts), strict=True)
            else:
                yield from zip(parts, map(compute, parts), strict=True)

    def _images(self, indices: Sequence[int]) -> Tensor:
        return self._autoencoder.decode(self._solve(indices), self._settings.uint8)

    @torch.inference_mode()
    def _solve(self, indices: Sequence[int]) -> Tensor:
        settings = self._settings
        given, null = (mapped(condition, self._sent) for condition in self._told(indices))
        field = guided_field(self._predict, self._config, given, null, settings, self._correction)
        problem = Problem(
            field=field,
            start=self._start(indices),
            steps=settings.steps,
            interpolant=self._interpolant,
            noise=lambda draw: self._noise(indices, draw + 1),
            options=settings,
            shift=shift_in(settings, self._config),
        )
        channels, _ = unpacked(self._solver.solve(problem), self._config)
        return channels[:, : self._config.channels]

    def _predict(self, states: Tensor, times: Tensor, given: Condition) -> Tensor:
        raise_if_abandoned()
        device = self._device
        there = mapped(given, lambda tensor: tensor.to(device))
        with autocast(self._precision, device):
            found = predicted(self._model, states.to(device), times.to(device), there)
        return found.to(states.device)

    def _start(self, indices: Sequence[int]) -> Tensor:
        """The noise that images are made of."""
        noise = self._noise(indices, 0)
        if self._config.family == "JiT":
            noise *= noise_scale_of(self._noise_scale, self._config.side)
        return noise

    def _noise(self, indices: Sequence[int], draw: int) -> Tensor:
        """Standard normals for one draw of each image, from the CPU whatever the device."""
        config, seed = self._config, self._settings.seed
        shape = (config.inputs, config.side, config.side)
        seeds = (seed_for(seed, Stream.SAMPLING, index, draw) for index in indices)
        sources = [torch.Generator().manual_seed(one) for one in seeds]
        noise = torch.stack([torch.randn(shape, generator=source) for source in sources])
        class_noise = None
        if features := config.class_features:
            class_noise = torch.stack([torch.randn(features, generator=one) for one in sources])
        return self._sent(packed(noise, class_noise)).double()

    def _sent(self, tensor: Tensor) -> Tensor:
        """A tensor on its way to the solver's states; if that is to a GPU, nobody waits for it."""
        if self._state_device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._state_device, non_blocking=True)


def predicted(model: Transformer, states: Tensor, times: Tensor, given: Condition) -> Tensor:
    """What a model predicts of a solver's states [B, ...], of the same shape but for DiT's."""
    channels, class_token = unpacked(states, model.config)
    output = model(channels, times, given, (), class_token)
    return packed(output.prediction, output.class_prediction)


def guided_field(
    predict: Callable[[Tensor, Tensor, Condition], Tensor],
    config: TransformerConfig,
    given: Condition,
    null: Condition,
    settings: SampleSettings,
    correction: Correction | None = None,
) -> Field:
    """What a model predicts under classifier-free guidance (arXiv 2207.12598).

    On an interval of time (arXiv 2404.07724). predict: states [B, ...] in float32, such as latents
    [B, C, h, w], times [B] and what is told of the images to what `predicted` gives; given, null:
    what is told of the B images, and what tells nothing, on the device of the states; correction:
    of what is predicted of latents, in guided steps.
    """
    scales, towards = _scales(config, settings), settings.representation_guidance
    latents = slice(config.channels * _channel_size(config))
    noise_time = DIFFUSION_STEPS if config.learns_sigma else 1
    within = _strictly_within if config.family == "JiT" else _within

    def field(state: Tensor, time: Time, step_start: Time) -> Tensor:
        """The prediction in float64; only images whose step is guided pay for both classes."""
        guided = within(settings.guidance_interval, step_start / noise_time)
        # What is predicted once more: without labels, and without components.
        by_label = guided if scales else NONE
        by_components = guided if towards != 1 else NONE
        unlabelled = state[by_label]
        blank = _without_components(state[by_components], config)
        times = _per_image(state, time)
        every = predict(
            torch.cat([state, unlabelled, blank]).float(),
            torch.cat([times, times[by_label], times[by_components]]),
            joined_conditions(
                [
                    given,
                    mapped(null, itemgetter(by_label)),
                    mapped(given, itemgetter(by_components)),
                ]
            ),
        ).double()
        ends = [len(state), len(state) + len(unlabelled)]
        conditional, unconditional, unrepresented = every.tensor_split(ends)
        shift = (towards - 1) * (conditional[by_components] - unrepresented)
        for part, scale in scales:
            with_class, without = conditional[by_label, part], unconditional[:, part]
            conditional[by_label, part] = without + scale * (with_class - without)
        conditional[by_components] += shift
        if correction is not None:
            conditional[guided, latents] = correction(conditional[guided, latents])
        return conditional

    return field


def _within(interval: tuple[float, float], level: Time) -> Some:
    """The images whose level of noise lies in an interval.

    One level for all is a number of the host; for levels of each image it waits for the device.
    """
    low, high = interval
    if isinstance(level, Tensor):
        return ((level >= low) & (level <= high)).nonzero().flatten()
    return ALL if low <= level <= high else NONE


def _strictly_within(interval: tuple[float, float], level: Time) -> Some:
    """The same as JiT has it: without the interval's ends, but for pure noise."""
    low, high = interval
    assert isinstance(level, float), "its solvers have one level for all images"
    return ALL if low < level and (level < high or high == 1) else NONE


def _scales(config: TransformerConfig, settings: SampleSettings) -> list[tuple[slice, float]]:
    """The parts of a prediction that are guided, along its second axis, and how far.

    What comes after a latent's channels, such as DiT's variance, is the conditional one's.
    """
    channels, size = settings.guided_channels or config.channels, _channel_size(config)
    scales = [(slice(channels * size), settings.guidance)]
    if settings.guide_components:
        scales.append((slice(config.channels * size, config.inputs * size), settings.guidance))
    if config.class_features and settings.class_guidance is not None:
        scales.append((slice(-config.class_features, None), settings.class_guidance))
    return [(part, scale) for part, scale in scales if scale != 1]


def _channel_size(config: TransformerConfig) -> int:
    """How many numbers of a state's second axis are one channel."""
    # Of a state with a class token, single numbers lie along that axis.
    return config.side**2 if config.class_features else 1


def _without_components(states: Tensor, config: TransformerConfig) -> Tensor:
    """States with zeros in the place of components, as a model sees images that lack them."""
    size, blank = _channel_size(config), states.clone()
    blank[:, config.channels * size : config.inputs * size] = 0
    return blank


def _per_image(state: Tensor, time: Time) -> Tensor:
    """A time for each image, [B], in float32."""
    if isinstance(time, Tensor):
        return time.float()
    return state.new_full((len(state),), time, dtype=torch.float32)


def sampling_precision(settings: SampleSettings, device: torch.device) -> str:
    """The precision of sampling on a device; `auto` is that of the published code, TF32 on GPUs."""
    if settings.precision != "auto":
        return settings.precision
    return "tf32" if device.type == "cuda" else "float32"


def shift_in(settings: SampleSettings, config: TransformerConfig) -> float:
    """How far the times of a solver's grid are shifted, for latents of a model."""
    return shift_of(settings.time_shift, (config.channels, config.side, config.side))


def make_sampled(
    config: TransformerConfig, weights: Mapping[str, Tensor], device: torch.device
) -> Transformer:
    """A model with some weights, without what was trained beside it."""
    model = without_storage(config)
    own = {name: weights[name] for name in model.state_dict()}
    model.load_state_dict(own, assign=True)
    return model.eval().requires_grad_(False).to(device)
