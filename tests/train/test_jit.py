"""JiT against tensors of its published code: the network, its loss and their gradients."""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import assert_gradients
from places import GOLDEN
from runs import CPU, image_bytes, newest, trained, trained_in_parts
from safetensors import safe_open
from stepping import settings_of
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Config, ConfigError
from stages.encode.build import build
from stages.encode.networks.autoencoder import NoAutoencoder
from stages.model.attention import rotate, turned_by_place
from stages.model.families import make_transformer, without_storage
from stages.model.masked_adapter import MaskedAdapter
from stages.model.pixel_transformer import PixelTransformer
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig, config_named, forward_flops
from stages.sample.generate import sample
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampled_weights import SampleOptions
from stages.sample.sampler import Sampler, make_sampled
from stages.sample.samples import Samples
from stages.train.run_model import make_modules
from stages.train.terms.denoising import CleanImage, squared_error
from stages.train.terms.pixel_repa import PixelRepa
from stages.train.terms.seen import Shapes
from stages.train.terms.term import Alignment
from stages.weights.checkpoint import CheckpointError
from stages.weights.export import export
from stages.weights.export_options import ExportOptions, Layout, Weights
from stages.weights.published import WeightsError

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
MASK = "mask_token"
SIZES = json.loads((GOLDEN / "official_jit.json").read_text())
with safe_open(GOLDEN / "jit.safetensors", "pt") as file:
    RUNS = json.loads(file.metadata()["config"])["runs"]


def small() -> TransformerConfig:
    """The model of the golden tensors."""
    return TransformerConfig(
        side=32,
        patch=8,
        channels=3,
        depth=3,
        width=32,
        heads=2,
        classes=10,
        has_null_class=True,
        qk_norm=True,
        norm="rms-affine",
        mlp="swiglu",
        bottleneck=6,
        label_tokens=3,
        label_tokens_from=2,
    )


@pytest.fixture
def model(jit: Any) -> Transformer:
    made = make_transformer(small())
    assert isinstance(made, PixelTransformer)
    made.load_state_dict(jit.below("model."))
    return made


def posed(jit: Any, prefix: str = "in") -> tuple[Tensor, Tensor, Tensor]:
    """Model's input, target and time."""
    objective, time = CleanImage(noise_scale=1.0), jit[f"{prefix}.t"]
    noisy, target = objective.pose(jit["in.x"], jit["in.noise"], time)
    return noisy, target, time


def test_times_and_positions_are_those_of_the_published_code(jit: Any, model: Transformer) -> None:
    for prefix in ("in", "clipped"):
        normal = jit[f"{prefix}.time_normal"]
        time = CleanImage().times(lambda _, normal=normal: normal, (3, 32, 32))
        assert_close(time, jit[f"{prefix}.t"])
    fresh = make_transformer(small())
    assert_close(fresh.pos_embed, model.pos_embed)
    assert_close(jit["in.pixels"].float() / 127.5 - 1, jit["in.x"], rtol=0, atol=2e-7)
    for name, front in (("rope", 0), ("rope.in_context", 3)):
        features = jit[f"{name}.in"].shape[-1]
        turned = rotate(jit[f"{name}.in"], turned_by_place(features, 4, front, torch.device("cpu")))
        assert_close(turned, jit[f"{name}.out"], **TOLERANCE)


def test_a_block_is_that_of_the_published_code(jit: Any, model: Transformer) -> None:
    embedded = model.x_embedder(jit["plain.model_input"]) + model.pos_embed
    assert_close(embedded, jit["tokens_before_blocks"], **TOLERANCE)
    rotation = turned_by_place(16, 4, 0, torch.device("cpu"))
    out, _ = model.blocks[0](jit["block.x"], jit["block.condition"], rotation)
    assert_close(out, jit["block.out"], **TOLERANCE)


@pytest.mark.parametrize(("name", "times"), [("plain", "in"), ("clipped", "clipped")])
def test_predictions_and_losses_are_those_of_the_published_code(
    jit: Any, model: Transformer, name: str, times: str
) -> None:
    noisy, target, time = posed(jit, times)
    assert_close(noisy, jit[f"{name}.model_input"], **TOLERANCE)
    assert_close(target, jit[f"{name}.velocity"], **TOLERANCE)
    output = model(noisy, time, jit["in.labels_after_drop"])
    assert_close(output.prediction, jit[f"{name}.prediction"], **TOLERANCE)
    velocity = CleanImage().compared(output.prediction, noisy, time)
    loss = squared_error(velocity, target)
    assert_close(loss, jit[f"{name}.denoising_loss"], **TOLERANCE)
    if name == "plain":
        loss.mean().backward()
        own = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        expected = jit.below("plain.grad.")
        assert own.keys() == expected.keys()
        for key, gradient in expected.items():
            assert_close(own[key], gradient, rtol=1e-3, atol=1e-5)


def test_noise_is_scaled_by_the_side_of_images(jit: Any, model: Transformer) -> None:
    noisy, target = CleanImage(noise_scale=2.0).pose(jit["in.x"], jit["in.noise"], jit["in.t"])
    prediction = model(noisy, jit["in.t"], jit["in.labels_after_drop"]).prediction
    loss = squared_error(CleanImage().compared(prediction, noisy, jit["in.t"]), target)
    assert_close(loss, jit["noise_scale_2.denoising_loss"], **TOLERANCE)
    large = torch.zeros(1, 3, 512, 512)
    scaled, _ = CleanImage().pose(large, torch.ones_like(large), torch.zeros(1))
    assert_close(scaled, 2 * torch.ones_like(large))


def test_hidden_tokens_are_of_patches_alone_before_and_behind_those_of_the_class(
    jit: Any, model: Transformer
) -> None:
    noisy, _, time = posed(jit)
    hidden = model(noisy, time, jit["in.labels_after_drop"], (1, 2, 3)).patches
    assert [tokens.shape for tokens in hidden.values()] == [(3, 16, 32)] * 3
    assert_close(hidden[2], jit["pixelrepa.hidden"], **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in SIZES["sizes"] if name.startswith("JiT-")])
def test_sizes_and_names_are_the_published_ones(name: str) -> None:
    patch = int(name.rpartition("/")[2])
    config = config_named(name, side=16 * patch, channels=3, classes=1000, has_null_class=True)
    model = without_storage(config)
    published = SIZES["sizes"][name]
    assert sum(parameter.numel() for parameter in model.parameters()) == published["total"]
    assert config.label_tokens == published["in_context_len"]
    dropped = replace(config, dropout=0.2)
    having = [depth for depth in range(config.depth) if dropped.dropout_in(depth)]
    assert [having[0], having[-1]] == published["dropout_blocks"]
    if name == "JiT-B/16":
        shapes = {
            re.sub(r"blocks\.\d+", "blocks.{i}", key): list(value.shape)
            for key, value in model.state_dict().items()
        }
        assert shapes == SIZES[f"{name} state_dict"]
    # Two operations a multiplication; the paper counts one (section 3: 25, 88, 182, 383 GFLOP).
    paper = {"B": 25, "L": 88, "H": 182, "G": 383}[name[4]]
    assert forward_flops(config) / 2e9 == pytest.approx(paper, rel=0.03)


@pytest.mark.parametrize("name", RUNS)
def test_samples_are_those_of_the_published_sampler(
    jit: Any, model: Transformer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = RUNS[name]
    low, high = run["interval"]
    settings = SampleSettings(
        solver=f"jit-{run['method']}",
        steps=run["steps"],
        guidance=run["guidance"],
        guidance_interval=(1 - high, 1 - low),
        precision="float32",
    )
    told = by_given(jit["sampler.y"])
    sampler = Sampler(
        settings,
        model.eval(),
        "linear",
        NoAutoencoder(),
        torch.device("cpu"),
        told=told,
        noise_scale=run["noise_scale"],
    )
    monkeypatch.setattr(sampler, "_noise", lambda at, _: jit["sampler.noise"][list(at)].double())
    found = sampler.latents([0, 1])
    assert_close(found.float(), jit[f"sampler.{name}"], rtol=1e-4, atol=2e-4)
    if name == "heun.interval":
        pixels = NoAutoencoder().decode(jit[f"sampler.{name}"], "round")
        assert torch.equal(pixels, jit[f"sampler.{name}.image"])


def by_given(labels: Tensor) -> Any:
    return lambda at: (labels[list(at)], torch.full((len(at),), 10))


@pytest.mark.parametrize(("kind", "depth"), [("repa", 2), ("irepa", 3)])
def test_alignments_are_those_of_irepa_s_code_for_jit(jit: Any, kind: str, depth: int) -> None:
    own = {"projector_width": 32} if kind == "repa" else {"alpha": 0.8}
    align = [{"kind": kind, "encoder": f"e{n}", "depth": depth, **own} for n in range(2)]
    settings = settings_of(align, model="JiT-XS/8")
    targets = [jit[f"in.target_tokens.{n}"] for n in range(2)]
    modules, lists = make_modules(settings, small(), lambda name: targets[int(name[1])].shape[1:])
    model = make_transformer(small(), make_lists=lambda: lists)
    model.load_state_dict({**jit.below("model."), **named(jit.below(f"{kind}.model."), kind)})
    noisy, target, time = posed(jit)
    output = model(noisy, time, jit["in.labels_after_drop"], (depth,))
    losses = []
    for number, term in enumerate(settings.align):
        assert isinstance(term, Alignment)
        projected = modules[number + 1](output.patches[depth])
        assert_close(projected, jit[f"{kind}.projected.{number}"], **TOLERANCE)
        losses.append(term.loss(projected, term.targets(targets[number], {})).mean())
    loss = torch.stack(losses).mean()
    assert_close(loss, jit[f"{kind}.projection_loss"], rtol=0, atol=1e-6)
    denoising = squared_error(CleanImage().compared(output.prediction, noisy, time), target).mean()
    assert_close(denoising + 0.5 * loss, jit[f"{kind}.loss"], **TOLERANCE)
    loss.backward()
    assert_gradients(model, named(jit.below(f"{kind}.projection_grad."), kind))


def named(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Tensors by the names of this project, which are REPA's for the layers of REPA."""
    if kind == "irepa":
        return tensors
    return {name.replace("projection_layer.", ""): tensor for name, tensor in tensors.items()}


def test_files_of_jit_s_code_are_read_and_written(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    """As JiT, iREPA and PixelREPA publish them: under `net.`, with all that is trained beside."""
    config = tiny("latents.vae=pixels", "train.model=JiT-XS/8", "sample.solver=jit-heun")
    build(config.encode, CPU.device)
    trained(config)
    own = newest(config)
    path = tmp_path / "checkpoint-last.pth"
    exported = export(config.train.run, ExportOptions(path))
    assert (exported.layout, exported.model) == (Layout.JIT, "JiT-XS/8")
    content = torch.load(path, weights_only=True)
    names = {name for name in own.weights("ema") if not name.startswith("projectors.")}
    for part in ("model", "model_ema1", "model_ema2"):
        assert content[part].keys() == {f"net.{name}" for name in names}
    beside = {
        "net.mask_token": torch.zeros(1, 1, 128),
        "masked_transformer_adapter.blocks.0.x": torch.zeros(1),
        "repa_model.x": torch.zeros(1),
        "scale.mean": torch.zeros(1),
    }
    published = {
        "model": {**content["model"], **beside},
        "model_ema1": content["model_ema1"],
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 3,
        "args": argparse.Namespace(model="JiT-XS/8"),
    }
    torch.save(published, path)
    place = CPU.device
    for which in (Weights.EMA, Weights.MODEL):
        options = SampleOptions(official=path, weights=which, folder=tmp_path / which)
        drawn = sample(config.sample, options, config.train, config.decoder, CPU)
        assert drawn.images == config.sample.images
    run = sample(config.sample, SampleOptions(), config.train, config.decoder, CPU)
    other = Samples(tmp_path / "ema", config.sample.images)
    assert image_bytes(run.samples) == image_bytes(other)
    started = tiny(
        "latents.vae=pixels",
        "train.model=JiT-XS/8",
        f"train.init_from={path}",
        f"train.run={tmp_path / 'started'}",
    )
    trained(started)
    wrong = tiny("train.model=SiT-XS/2", f"train.init_from={path}", "train.run=wrong")
    build(wrong.encode, place)
    with pytest.raises(WeightsError, match=r"another model.* Set train\.model to a JiT"):
        trained(wrong)


def adapted(jit: Any, features: int) -> tuple[Tensor, MaskedAdapter, PixelRepa]:
    """What the adapter makes of hidden tokens that have gradients."""
    term = PixelRepa(encoder="e", depth=2)
    adapter = MaskedAdapter(small(), term.blocks, features)
    below = "pixelrepa.masked_transformer_adapter."
    published = {**jit.below(below), "mask_token": jit["pixelrepa.model.mask_token"]}
    adapter.load_state_dict({name: published[name] for name in adapter.state_dict()})
    hidden = jit["pixelrepa.hidden"].clone().requires_grad_()
    masked = jit["pixelrepa.in.mask_uniform"].flatten(1) <= term.masked
    expected = jit["pixelrepa.adapter_input"]
    assert_close(torch.where(masked[..., None], adapter.mask_token, hidden), expected, **TOLERANCE)
    return adapter(hidden, masked, jit["in.t"], jit["in.labels_after_drop"]), adapter, term


def test_the_adapter_of_pixel_repa_is_that_of_its_code(jit: Any, model: Transformer) -> None:
    found, adapter, term = adapted(jit, 24)
    assert_close(found, jit["pixelrepa.adapted"], **TOLERANCE)
    noisy, target, time = posed(jit)
    given = jit["in.labels_after_drop"]
    output = model(noisy, time, given, (2,))
    masked = jit["pixelrepa.in.mask_uniform"].flatten(1) <= term.masked
    projected = adapter(output.patches[2], masked, time, given)
    loss = term.loss(projected, jit["pixelrepa.in.target_tokens"]).mean()
    assert_close(loss, jit["pixelrepa.alignment_loss"], **TOLERANCE)
    denoising = squared_error(CleanImage().compared(output.prediction, noisy, time), target).mean()
    assert_close(denoising, jit["pixelrepa.denoising_loss"], **TOLERANCE)
    assert_close(denoising + term.weight * loss, jit["pixelrepa.loss"], **TOLERANCE)
    loss.backward()
    expected = jit.below("pixelrepa.alignment_grad.")
    below = "masked_transformer_adapter."
    assert_gradients(
        adapter, {n.removeprefix(below): t for n, t in expected.items() if below in n or n == MASK}
    )
    assert_gradients(model, {n: t for n, t in expected.items() if below not in n and n != MASK})


@pytest.mark.parametrize("features", [32, 24])
def test_the_operations_of_the_adapter_are_counted(features: int) -> None:
    term = PixelRepa(encoder="e", depth=2)
    shapes = Shapes(32, (3, 32, 32), {term.tokens: (16, features)}, small())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        masked = torch.zeros(1, 16, dtype=torch.bool)
        time, given = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
        term.make_module(shapes)(torch.zeros(1, 16, 32), masked, time, given)
    # Embeddings of time are not counted, as in the model.
    embedding = 2 * (256 + 32) * 32
    assert term.module_flops(shapes, 16) == pytest.approx(counter.get_total_flops() - embedding)


def test_an_encoder_as_wide_as_the_model_needs_no_head(jit: Any) -> None:
    found, adapter, term = adapted(jit, 32)
    assert adapter.projection_layer is None
    assert_close(found, jit["pixelrepa.same_width.adapted"], **TOLERANCE)
    loss = term.loss(found, jit["pixelrepa.same_width.target_tokens"]).mean()
    assert_close(loss, jit["pixelrepa.same_width.alignment_loss"], **TOLERANCE)
    loss.backward()
    gradient = adapter.mask_token.grad
    assert_close(gradient, jit["pixelrepa.same_width.grad_mask_token"], rtol=1e-3, atol=1e-6)


def test_pixel_repa_masks_anew_at_every_step_and_sees_no_encoder_outside_of_it(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    entry = "train.align=[{kind='pixel-repa', encoder='efficientnet-lite0', depth=2}]"
    own = ("latents.vae=pixels", "train.model=JiT-XS/8", entry)
    build(tiny(*own).encode, CPU.device)
    whole = trained_in_parts(lambda *more: tiny(*own, *more), tmp_path)
    assert not any("projectors" in name for name in make_sampled_names(whole))
    with pytest.raises(ConfigError, match="'pixel-repa' is for a JiT, not for SiT-XS/2"):
        tiny(entry)


def make_sampled_names(config: Config) -> set[str]:
    found = newest(config)
    return set(make_sampled(found.model, found.weights("ema"), CPU.device).state_dict())


def test_a_second_moving_average_is_kept_beside_the_first(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    own = ("latents.vae=pixels", "train.model=JiT-XS/8", "train.ema_decay=0.5")
    build(tiny(*own).encode, CPU.device)
    second = (*own, "train.second_ema_decay=0.25")
    whole = trained_in_parts(lambda *more: tiny(*second, *more), tmp_path)
    first = tiny(*own, f"train.run={tmp_path / 'first'}", "train.ema_decay=0.25")
    trained(first)
    # The first of a run whose decay is that of the second.
    expected, found = newest(first).weights("ema"), newest(whole).weights("ema2")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any((found[n] != t).any() for n, t in newest(whole).weights("ema").items())
    drawn = sample(
        whole.sample, SampleOptions(weights=Weights.EMA2), whole.train, whole.decoder, CPU
    )
    assert drawn.samples.folder.name == "step-00000004-ema2"
    with pytest.raises(CheckpointError, match=r"it has no second moving average\. Set train"):
        newest(first).weights("ema2")
    (newest(whole).folder / "ema2.safetensors").unlink()
    assert newest(whole).fault == "ema2.safetensors is missing"
