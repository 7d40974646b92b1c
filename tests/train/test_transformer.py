import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import golden_model, published

from stages.model.sizes import MODELS, SIZES
from stages.model.transformer import Transformer
from stages.train.compute import compile_blocks
from stages.train.run_model import training_flops
from stages.train.train_settings import TrainSettings
from stages.weights.published import without_projectors

PARAMETERS = ("weight", "bias")


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_velocity_and_projections_are_those_of_the_published_code(sit_repa: Any, path: str) -> None:
    labels = torch.where(sit_repa["in.drop"].bool(), 10, sit_repa["in.y"])
    model = golden_model(sit_repa)
    depth = json.loads(sit_repa.metadata["config"])["encoder_depth"]
    noisy = sit_repa[f"{path}.model_input"]
    velocity, hidden, _ = model(noisy, sit_repa["in.t"], labels, [depth])
    torch.testing.assert_close(velocity, sit_repa[f"{path}.velocity"], rtol=1e-5, atol=1e-6)
    for number, projector in enumerate(model.projectors):
        tokens = projector(hidden[depth])
        expected = sit_repa[f"{path}.projected.{number}"]
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-6)


def test_hidden_states_are_those_that_are_asked_for(sit_repa: Any) -> None:
    model = golden_model(sit_repa)
    inputs = (sit_repa["linear.model_input"], sit_repa["in.t"], sit_repa["in.y"])
    velocity, nothing, _ = model(*inputs)
    same, hidden, _ = model(*inputs, {1, 3})
    assert (nothing, hidden.keys()) == ({}, {1, 3})
    assert torch.equal(velocity, same)
    tokens = hidden[1]
    condition = model.t_embedder(inputs[1]) + model.y_embedder(inputs[2])
    for block in model.blocks[1:3]:
        tokens, _ = block(tokens, condition)
    assert torch.equal(hidden[3], tokens)


def test_when_hidden_states_are_used_changes_no_bit_of_a_gradient(sit_repa: Any) -> None:
    model = golden_model(sit_repa)
    inputs = (sit_repa["linear.model_input"], sit_repa["in.t"], sit_repa["in.y"])
    head = torch.nn.Linear(model.config.width, 7)

    def gradients(at_once: bool) -> list[torch.Tensor]:
        seen = []
        hook = model.blocks[0].register_forward_hook(lambda *made: seen.append(head(made[-1][0])))
        prediction, hidden, _ = model(*inputs, [1])
        hook.remove()
        projected = seen[0] if at_once else head(hidden[1])
        return torch.autograd.grad(
            prediction.square().mean() + projected.square().mean(), model.blocks[0].parameters()
        )

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other)


def test_fixed_positions_are_the_published_ones(sit_repa: Any) -> None:
    fresh = Transformer(golden_model(sit_repa).config)
    torch.testing.assert_close(fresh.pos_embed, sit_repa["model.pos_embed"])
    assert not fresh.pos_embed.requires_grad


def test_a_fresh_model_predicts_nothing() -> None:
    model = published("SiT-S/8").make()
    inputs = (torch.randn(2, 4, 32, 32), torch.rand(2), torch.tensor([0, 1000]))
    velocity = model(*inputs).prediction
    assert velocity.count_nonzero() == 0


def test_state_dict_of_b_2_has_the_published_names_and_shapes(
    official: Callable[[str], dict[str, Any]],
) -> None:
    with torch.device("meta"):
        model = published("SiT-B/2").make()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == official("sit_b2_state_dict")


@pytest.mark.parametrize(
    "name", [n for n in MODELS if n[:3] == "SiT" and n[-1] != "1" and n[4:-2] not in ("XS", "Ti")]
)
def test_every_published_size_has_its_number_of_parameters(
    official: Callable[[str], dict[str, Any]], name: str
) -> None:
    with torch.device("meta"):
        model = published(name).make()
    counts = official("sit_parameters")[name]
    assert sum(p.numel() for p in model.parameters()) == counts["total"]
    assert sum(p.numel() for p in model.projectors.parameters()) == counts["projector"]


def test_heads_divide_every_width() -> None:
    assert all(size.width % (2 * size.heads) == 0 for size in SIZES.values())


@pytest.mark.parametrize(
    ("name", "gigaflops"), [("SiT-S/2", 46), ("SiT-B/2", 149), ("SiT-L/2", 496), ("SiT-XL/2", 724)]
)
def test_operations_are_those_counted_for_the_published_sizes(name: str, gigaflops: int) -> None:
    settings = TrainSettings(
        run=Path("run"), model=name, align=({"kind": "repa", "encoder": "dinov2-vit-b"},)
    )
    flops = training_flops(settings, published(name).config, lambda _: (256, 768))
    assert flops / 1e9 == pytest.approx(gigaflops, rel=0.02)


@pytest.mark.parametrize("options", [{"fused_attention": False}, {"recompute": True}])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_how_it_is_computed_changes_neither_output_nor_gradients(
    sit_repa: Any, options: dict[str, bool], qk_norm: bool
) -> None:
    config = replace(golden_model(sit_repa).config, qk_norm=qk_norm)
    model, other = Transformer(config), Transformer(config, **options)
    weights = {**model.state_dict(), **without_projectors(golden_model(sit_repa).state_dict())}
    inputs = (sit_repa["linear.model_input"], sit_repa["in.t"], sit_repa["in.y"])
    results = []
    for one in (model, other):
        one.load_state_dict(weights)
        velocity, hidden, _ = one(*inputs, {2})
        sum(t.square().mean() for t in (velocity, hidden[2])).backward()
        gradients = [p.grad for p in one.parameters() if p.requires_grad]
        results.append([velocity, hidden[2], *gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_normalised_queries_and_keys_have_the_published_names(sit_repa: Any) -> None:
    plain = golden_model(sit_repa).config
    names = Transformer(replace(plain, qk_norm=True)).state_dict().keys()
    more = {f"blocks.{i}.attn.{n}_norm.{k}" for i in range(3) for n in "qk" for k in PARAMETERS}
    assert names - Transformer(plain).state_dict().keys() == more


@pytest.mark.slow
# The compiler comes across warnings of torch itself.
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_compute_the_same(sit_repa: Any) -> None:
    eager, compiled = golden_model(sit_repa), golden_model(sit_repa)
    compile_blocks(compiled, True, torch.device("cpu"))
    inputs = (sit_repa["linear.model_input"], sit_repa["in.t"], sit_repa["in.y"])
    outputs = []
    for model in (eager, compiled):
        velocity, hidden, _ = model(*inputs, {2})
        projected = [projector(hidden[2]) for projector in model.projectors]
        sum(t.square().mean() for t in (velocity, *projected)).backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        outputs.append([velocity, *projected, *gradients])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-6)
    assert eager.state_dict().keys() == compiled.state_dict().keys()


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("DiT")])
def test_dit_has_the_parameters_of_sit_and_a_variance_for_each_channel(name: str) -> None:
    config = published(name.replace("DiT", "SiT")).config
    with torch.device("meta"):
        sit, dit = Transformer(config), Transformer(replace(config, learns_sigma=True))
    shapes, others = ({k: v.shape for k, v in m.state_dict().items()} for m in (sit, dit))
    for kind in ("weight", "bias"):
        last = f"final_layer.linear.{kind}"
        assert others.pop(last)[0] == 2 * shapes.pop(last)[0]
    assert shapes == others
