"""MMDiT against the golden tensors of REPA's published network."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import CPU
from solving import guided, solved
from stepping import fresh_run
from torch import Tensor
from torch.testing import assert_close

from stages.latents import LatentScaling
from stages.model.blocks import MLPProjector
from stages.model.conditions import Context
from stages.model.families import make_transformer, without_storage
from stages.model.interpolants import interpolate
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig, config_named, forward_flops
from stages.train.step import Step
from stages.train.terms.denoising import squared_error
from stages.train.terms.repa import minus_mean_cosine
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import TrainSettings

PATHS = ("linear", "cosine")
# Scale, and the times between which it applies.
GUIDANCE = {"plain": (1.0, (0.0, 1.0)), "cfg": (2.0, (0.0, 1.0)), "interval": (2.5, (0.2, 0.7))}
SOLVED = [
    *(("linear", "euler", mode) for mode in GUIDANCE),
    *(("linear", "heun", mode) for mode in ("cfg", "interval")),
    *(("linear", "sde", mode) for mode in GUIDANCE),
    ("cosine", "sde", "cfg"),
]


def golden_mmdit(mmdit: Any, side: int | None = None) -> Transformer:
    """The published network. side: of the latents, by default those that it was made for."""
    own = json.loads(mmdit.metadata["config"])
    config = TransformerConfig(
        side=side or own["input_size"],
        patch=own["patch_size"],
        channels=own["in_channels"],
        depth=own["depth"],
        width=own["hidden_size"],
        heads=own["num_heads"],
        classes=0,
        has_null_class=False,
        context_features=own["context_width"],
    )
    hidden, features = own["projector_dim"], own["z_dims"]
    projectors = [MLPProjector(config.width, hidden, one) for one in features]
    model = make_transformer(config, make_lists=lambda: {"projectors": projectors})
    state = mmdit.below("model.")
    if side is not None:
        state["pos_embed"] = model.pos_embed.detach()
    model.load_state_dict(state)
    return model


def seen(mmdit: Any) -> Context:
    """Captions of which some were dropped."""
    dropped = mmdit["in.drop"].bool()[:, None, None]
    return Context(torch.where(dropped, mmdit["in.empty_context"], mmdit["in.context"]))


@pytest.mark.parametrize("path", PATHS)
def test_a_step_of_the_published_network_is_this_one_s(mmdit: Any, path: str) -> None:
    model = golden_mmdit(mmdit)
    noisy, target = interpolate(path, mmdit["in.x"], mmdit["in.noise"], mmdit["in.t"])
    assert_close(noisy, mmdit[f"{path}.model_input"], rtol=1e-6, atol=1e-6)
    output = model(noisy, mmdit["in.t"], seen(mmdit), [1])
    assert_close(output.prediction, mmdit[f"{path}.velocity"], rtol=1e-5, atol=4e-6)
    projected = model.projectors[0](output.patches[1])
    if path == "linear":
        assert_close(projected, mmdit["linear.projected.0"], rtol=1e-5, atol=1e-6)
    denoising = squared_error(output.prediction, target)
    assert_close(denoising, mmdit[f"{path}.denoising_loss"], rtol=1e-5, atol=0)
    aligned = minus_mean_cosine(projected, mmdit["in.target_tokens.0"]).mean()
    assert_close(aligned[None], mmdit[f"{path}.projection_loss"], rtol=0, atol=1e-6)
    (denoising.mean() + 0.5 * aligned).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    total = torch.nn.utils.get_total_norm(gradients.values())
    assert_close(total[None], mmdit[f"{path}.grad_norm"], rtol=1e-5, atol=0)
    expected = mmdit.below(f"{path}.grad.")
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_a_smaller_latent_has_the_middle_of_the_published_positions(mmdit: Any) -> None:
    model = golden_mmdit(mmdit, side=16)
    prediction = model(mmdit["smaller.x"], mmdit["in.t"], seen(mmdit)).prediction
    assert_close(prediction, mmdit["smaller.velocity"], rtol=1e-5, atol=4e-6)


def test_fixed_positions_are_the_published_ones(mmdit: Any) -> None:
    fresh = make_transformer(golden_mmdit(mmdit).config)
    assert_close(fresh.pos_embed, mmdit["model.pos_embed"])
    assert not fresh.pos_embed.requires_grad


@pytest.mark.parametrize(("path", "solver", "mode"), SOLVED)
def test_images_are_those_of_the_published_sampler(
    mmdit: Any, path: str, solver: str, mode: str
) -> None:
    scale, interval = GUIDANCE[mode]
    null = Context(mmdit["in.empty_context"].expand(2, -1, -1))
    field = guided(
        golden_mmdit(mmdit),
        Context(mmdit["in.context"]),
        null,
        guidance=scale,
        guidance_interval=interval,
    )
    noise: Callable[[int], Tensor] = lambda k: mmdit[f"sampler.noise.{k}"]  # noqa: E731
    name = {"sde": "euler-maruyama"}.get(solver, solver)
    found = solved(name, field, mmdit["sampler.latents"], 5, path, noise)
    assert_close(found.float(), mmdit[f"sampler.{path}.{solver}.{mode}"], rtol=0, atol=1e-5)


def test_three_steps_of_training_are_those_of_the_published_code(mmdit: Any) -> None:
    align = ({"kind": "repa", "encoder": "one", "depth": 1, "projector_width": 24},)
    settings = TrainSettings(run=Path("run"), model="MMDiT-XS/2", text="clip", align=align)
    model = golden_mmdit(mmdit)
    run = fresh_run(model, settings)
    captions = SimpleNamespace(empty=lambda _: Context(mmdit["in.empty_context"][None]))
    data: Any = SimpleNamespace(scaling=LatentScaling(0.18215, 0.0), classes=0, captions=captions)
    step = Step(settings, run, RunTerms.of(settings), data, CPU)
    batch = {
        "moments": mmdit["in.moments"],
        "context": mmdit["in.context"],
        "labels": torch.zeros(2, dtype=torch.int64),
        "one/directions": mmdit["in.target_tokens.0"],
    }
    for number in range(3):
        drawn = {
            "posterior": mmdit["in.posterior_noise"],
            "noise": mmdit[f"train.noise.{number}"],
            "time": mmdit[f"train.t.{number}"],
            "dropped": mmdit["in.drop"].bool(),
        }
        measured = step(batch, drawn)
        assert_close(measured.loss, mmdit["train.loss"][number], rtol=1e-5, atol=1e-6)
        assert_close(measured.gradient_norm, mmdit["train.grad_norm"][number], rtol=1e-4, atol=0)
    for name, expected in mmdit.below("train.final.").items():
        assert_close(model.state_dict()[name], expected, rtol=1e-5, atol=2e-6, msg=name)
    for name, expected in mmdit.below("train.ema.").items():
        assert_close(run.averages["ema"].tensors[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_latents_are_drawn_from_moments_of_either_form(mmdit: Any) -> None:
    scaling, noise = LatentScaling(0.18215, 0.0), mmdit["in.posterior_noise"]
    assert_close(scaling.sample(mmdit["in.moments"], noise), mmdit["in.x"], rtol=1e-6, atol=1e-6)


def test_the_published_size_has_the_published_names_shapes_and_parameters(
    official: Callable[[str], dict[str, Any]],
) -> None:
    published = official("mmdit_state_dict")
    config = config_named(
        "MMDiT-B/2", side=32, channels=4, classes=0, has_null_class=False, context_features=768
    )
    with torch.device("meta"):
        projectors = [MLPProjector(768, 2048, 768)]
        model = make_transformer(config, make_lists=lambda: {"projectors": projectors})
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    told = published["state_dict"]
    assert {name: shapes[name] for name in told} == told
    middle = {name for name in shapes if name not in told}
    assert {int(name.split(".")[1]) for name in middle} == set(range(1, 23))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == published["parameters"]["total"]
    projector = 2 * 256 * (768 * 2048 + 2048 * 2048 + 2048 * 768)
    attention = 24 * 4 * (256 + 77) ** 2 * 768
    # As it is quoted, with a projector and without the products inside of attention.
    found = forward_flops(config, 77) + projector - attention
    assert found == pytest.approx(116.5e9, rel=1e-3)


def test_tokens_that_are_not_seen_are_as_if_they_were_not_there(mmdit: Any) -> None:
    model = golden_mmdit(mmdit)
    for fused in (True, False):
        for block in model.blocks:
            block.fused = fused
        tokens = mmdit["in.context"]
        short = model(mmdit["in.x"], mmdit["in.t"], Context(tokens[:, :4])).prediction
        mask = (torch.arange(11) < 4).expand(2, -1)
        masked = model(mmdit["in.x"], mmdit["in.t"], Context(tokens, mask)).prediction
        assert_close(masked, short, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(short, model(mmdit["in.x"], mmdit["in.t"], Context(tokens))[0])


def test_a_fresh_network_is_as_pytorch_makes_it() -> None:
    shape = {"side": 32, "channels": 4, "classes": 0, "has_null_class": False}
    model = make_transformer(config_named("MMDiT-S/2", context_features=768, **shape))
    given = Context(torch.randn(4, 11, 768))
    with torch.no_grad():
        prediction = model(torch.randn(4, 4, 32, 32), torch.rand(4), given).prediction
    # The published network at initialisation: 0.56, and not zeros as a SiT's.
    assert 0.3 < prediction.std() < 0.9
    weight = model.blocks[0].x_block.attn.qkv.weight
    assert weight.abs().max() <= 384**-0.5
    assert weight.std().item() == pytest.approx((384 * 3) ** -0.5, rel=0.01)
    assert without_storage(model.config).state_dict().keys() == model.state_dict().keys()
