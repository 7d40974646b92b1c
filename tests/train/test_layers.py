"""Layers that are not SiT's: what they compute, each alone and all together, and in runs."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from marking import few_fast
from methods import BASE, LAYERS, OF_LAYERS
from operations import Operations
from runs import assert_equal_runs, drawn_into, log_values, newest, trained, trained_in_parts
from torch import Tensor
from torch.testing import assert_close
from weights import fresh

from pipeline.config import Config, ConfigError
from stages.model.attention import RMSNorm, Rotary, rotate
from stages.model.blocks import Block, SwiGLU
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig, forward_flops
from stages.sample.solvers.solver import SampleError

OPTIONS: dict[str, dict[str, Any]] = {
    "rms": {"norm": "rms"},
    **{name: {name: value} for name, value in LAYERS.items()},
    "all": LAYERS,
    "sr-dit": {**LAYERS, "norm": "rms", "mlp": "gelu"},
    "all-class-token": {**LAYERS, "class_features": 6},
    "all-joint": {**LAYERS, "joint_channels": 3},
    "all-dit": {**LAYERS, "learns_sigma": True},
}
RUNS = {**{name: (setting,) for name, setting in OF_LAYERS.items()}, "all": (*OF_LAYERS.values(),)}


def test_rms_norm_is_its_formula_in_float32_whatever_the_precision() -> None:
    tokens, norm = torch.randn(2, 3, 8).bfloat16(), RMSNorm(8)
    torch.nn.init.normal_(norm.weight)
    exact = tokens.float()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_close(norm(tokens), expected * norm.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(norm(tokens), expected * norm.weight)
    plain = RMSNorm(8, affine=False)
    assert not plain.state_dict()
    assert_close(plain(tokens), expected)


def test_swiglu_is_its_formula() -> None:
    mlp, tokens = SwiGLU(32), torch.randn(2, 3, 32)
    assert (mlp.w12.out_features, mlp.w3.in_features) == (170, 85)
    gate, value = mlp.w12(tokens)[..., :85], mlp.w12(tokens)[..., 85:]
    assert_close(mlp(tokens), mlp.w3(gate * torch.sigmoid(gate) * value))


def test_rotary_positions_turn_pairs_by_row_and_by_column() -> None:
    features, grid = 8, 3
    tokens = torch.randn(1, 1, grid**2, features)
    turned = rotate(tokens, Rotary(features, grid)(0))
    for token in range(grid**2):
        for pair in range(features // 2):
            place = token // grid if pair < features // 4 else token % grid
            angle = place / 10_000 ** ((pair % 2) / 2)
            x, y = tokens[0, 0, token, 2 * pair : 2 * pair + 2].tolist()
            expected = (
                x * math.cos(angle) - y * math.sin(angle),
                x * math.sin(angle) + y * math.cos(angle),
            )
            found = turned[0, 0, token, 2 * pair : 2 * pair + 2].tolist()
            assert found == pytest.approx(expected, abs=1e-6)


def test_a_class_token_is_not_turned() -> None:
    tokens, rotary = torch.randn(2, 4, 10, 8), Rotary(8, 3)
    turned = rotate(tokens, rotary(1))
    assert torch.equal(turned[:, :, 0], tokens[:, :, 0])
    assert torch.equal(turned[:, :, 1:], rotate(tokens[:, :, 1:], rotary(0)))


def test_values_are_mixed_with_those_of_the_first_block() -> None:
    model = fresh(replace(BASE, value_residual=True, depth=3))
    with torch.no_grad():
        model.blocks[1].attn.v1_lambda.fill_(0.3)
    inputs = torch.randn(2, 16, 32), torch.randn(2, 32)
    first, values = model.blocks[0](*inputs)
    assert_close(values, heads_of(model.blocks[0], *inputs, part=2))
    # SR-DiT's code: lambda * v1 + (1 - lambda) * v, and nothing is passed on.
    second, nothing = model.blocks[1](first, inputs[1], None, values)
    assert nothing is None
    query, key, own = (heads_of(model.blocks[1], first, inputs[1], part=n) for n in range(3))
    weights = (query @ key.mT / math.sqrt(8)).softmax(-1)
    mixed = (weights @ (0.3 * values + 0.7 * own)).transpose(1, 2).flatten(2)
    assert_close(second, behind(model.blocks[1], first, inputs[1], mixed), rtol=1e-4, atol=1e-4)
    names = [name for name, _ in model.named_parameters() if "v1_lambda" in name]
    assert names == [f"blocks.{n}.attn.v1_lambda" for n in (1, 2)]
    fresh_weights = Transformer(model.config).blocks[2].attn.v1_lambda
    assert fresh_weights.tolist() == [0.5]


def heads_of(block: Block, tokens: Tensor, condition: Tensor, part: int) -> Tensor:
    """Queries, keys or values, [B, heads, T, W / heads], from the names of the weights."""
    shift, scale = block.adaLN_modulation(condition).chunk(6, dim=1)[:2]
    seen = F.layer_norm(tokens, (32,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    return block.attn.qkv(seen).chunk(3, -1)[part].unflatten(-1, (4, 8)).transpose(1, 2)


def behind(block: Block, tokens: Tensor, condition: Tensor, attended: Tensor) -> Tensor:
    """The tokens behind a block, from what its attention has summed up."""
    _, _, gate, shift, scale, last_gate = block.adaLN_modulation(condition).chunk(6, dim=1)
    tokens = tokens + gate[:, None] * block.attn.proj(attended)
    seen = F.layer_norm(tokens, (32,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    inside = F.gelu(block.mlp.fc1(seen), approximate="tanh")
    return tokens + last_gate[:, None] * block.mlp.fc2(inside)


def test_without_them_a_block_computes_what_sit_s_does_and_no_more() -> None:
    model = fresh(BASE)
    block, tokens, condition = model.blocks[1], torch.randn(2, 16, 32), torch.randn(2, 32)

    def of_sit() -> Tensor:
        query, key, value = (heads_of(block, tokens, condition, part=n) for n in range(3))
        attended = F.scaled_dot_product_attention(query, key, value)
        return behind(block, tokens, condition, attended.transpose(1, 2).flatten(2))

    with Operations() as counted:
        found, _ = block(tokens, condition)
    with Operations() as of_theirs:
        expected = of_sit()
    assert torch.equal(found, expected)
    # Written out above, modulation and its norm are computed anew for each part.
    assert counted.found.total() <= of_theirs.found.total()
    assert model.state_dict().keys() == Transformer(former(BASE)).state_dict().keys()


def former(config: TransformerConfig) -> TransformerConfig:
    """A configuration as checkpoints kept it that did not know of these layers."""
    kept = json.loads(json.dumps(asdict(config)))
    return TransformerConfig(**{name: value for name, value in kept.items() if name not in LAYERS})


def inputs_of(config: TransformerConfig) -> tuple[Any, ...]:
    source = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, config.inputs, config.side, config.side, generator=source)
    class_token = torch.randn(2, config.class_features, generator=source)
    time, labels = torch.tensor([0.2, 0.7]), torch.tensor([3, 10])
    return noisy, time, labels, {1}, class_token if config.class_features else None


@pytest.mark.parametrize("computed", [{"fused_attention": False}, {"recompute": True}])
@pytest.mark.parametrize("name", OPTIONS)
def test_how_they_are_computed_changes_neither_output_nor_gradients(
    name: str, computed: dict[str, bool]
) -> None:
    config = replace(BASE, **OPTIONS[name])
    model, other = fresh(config), Transformer(config, **computed)
    # Of a usual size, so that attention does not saturate.
    other.load_state_dict({n: 0.2 * t for n, t in model.state_dict().items()})
    model.load_state_dict(other.state_dict())
    inputs, results = inputs_of(config), []
    for one in (model, other):
        output = one(*inputs)
        outputs = [output.prediction, output.hidden[1]]
        sum(tensor.square().mean() for tensor in outputs).backward()
        results.append([*outputs, *(p.grad for p in one.parameters() if p.grad is not None)])
    assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_weight_of_theirs_learns(name: str) -> None:
    config = replace(BASE, **OPTIONS[name])
    model = fresh(config)
    output = model(*inputs_of(config))
    rest = output.class_prediction
    loss = output.prediction.square().mean() + (0 if rest is None else rest.square().mean())
    loss.backward()
    still = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not still
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        "pos_embed",
        *(f"feat_rope.freqs_{part}" for part in ("cos", "sin") if config.rotary),
    }


def test_a_gated_block_costs_what_its_matrix_products_do() -> None:
    plain, gated = (forward_flops(replace(BASE, mlp=mlp)) for mlp in ("gelu", "swiglu"))
    per_token = BASE.depth * BASE.grid**2
    assert plain - gated == per_token * (16 * 32**2 - 2 * 32 * 170 - 2 * 85 * 32)


@pytest.mark.parametrize("name", few_fast(RUNS, 2))
def test_a_run_learns_resumes_bit_for_bit_and_is_drawn_from(
    trainable: Callable[..., Config], tmp_path: Path, name: str
) -> None:
    settings = (*RUNS[name], "train.compute.recompute_activations=true")
    trained_in_parts(trainable, tmp_path, *settings)
    drawn = drawn_into(tmp_path / "drawn", trainable(*settings, "sample.guidance=1.5"))
    assert drawn.images == 6


def test_shifted_steps_draw_other_images_and_are_told_by_the_manifest(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    trained(trainable("train.learning_rate=0.03", "train.ema_decay=0.0"))
    euler = ("sample.solver=euler", "sample.images=2", "sample.steps=3")
    folders = [tmp_path / name for name in ("plain", "one", "shifted")]
    for folder, more in zip(folders, ((), ("sample.time_shift=1",), SHIFTED), strict=True):
        drawn_into(folder, trainable(*euler, *more))
    plain, one, other = ((folder / "000000.png").read_bytes() for folder in folders)
    assert plain == one
    assert plain != other
    assert json.loads((folders[2] / "manifest.json").read_text())["time_shift"] == 3
    with pytest.raises(SampleError, match="time_shift: folder 3"):
        drawn_into(folders[2], trainable(*euler))


SHIFTED = ("sample.time_shift=3",)
SR_DIT = (
    *(OF_LAYERS[name] for name in ("rotary", "qk_norm", "value_residual")),
    *("train.norm=rms", "train.time_shift=2.0", "train.times=lognormal"),
    'train.align.1={kind = "class-token", encoder = "efficientnet-lite0"}',
    'train.align.2={kind = "direction"}',
    "train.align.0.class_token=true",
)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [RUNS["all"], SR_DIT], ids=["layers", "sr-dit"])
def test_all_together_lower_the_loss(
    trainable: Callable[..., Config], settings: tuple[str, ...]
) -> None:
    config = trainable(*settings, "train.steps=60", "train.log_every=20", "train.batch_size=16")
    trained(config)
    first, *_, last = [line["loss"] for line in log_values(config)]
    assert last < 0.9 * first


@pytest.mark.slow
def test_together_with_a_class_token_and_half_precision_they_resume_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    settings = (*SR_DIT, "train.precision=bfloat16")
    whole = trainable(f"train.run={tmp_path / 'whole'}", *settings)
    trained(whole)
    for steps in (1, 4):
        trained(trainable(*settings, f"train.steps={steps}"))
    assert_equal_runs(whole, trainable())
    assert {"class-token", "direction"} <= log_values(whole)[-1].keys()
    assert "blocks.3.attn.v1_lambda" in newest(whole).weights("ema")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.norm=batch",), "train.norm: input should be 'layer', 'rms' or 'rms-affine'"),
        (("train.time_shift=0",), "train.time_shift"),
        (("train.model=DiT-XS/2", "train.time_shift=2"), "train.time_shift: 2.0 is for SiT"),
        (
            ("train.model=DiT-XS/2", 'train.align.1={kind = "direction"}'),
            "train.align.1.kind: 'direction' is for SiT",
        ),
        (
            ("sample.solver=dopri5", "sample.time_shift=2"),
            "sample.time_shift: 'dopri5' has no grid of times to shift",
        ),
        (
            ("train.model=DiT-XS/2", "sample.time_shift=auto"),
            "sample.time_shift: 'ddpm' has no grid",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    trainable: Callable[..., Config], settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        trainable(*settings)
    assert message in str(caught.value)
