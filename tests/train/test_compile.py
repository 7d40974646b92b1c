"""What is compiled of a model, counted by a compiler that hands back what it was given."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from class_tokens import entries
from compiling import COMPILING
from graphs import noted_graphs
from marking import few_fast
from methods import OF_LAYERS
from reference import with_projectors
from runs import log_values, trained

from pipeline.config import Config
from stages.model.blocks import MLPProjector
from stages.model.transformer import Transformer
from stages.model.transformer_config import config_named
from stages.placement import Placement
from stages.sample.generate import GridDrawer
from stages.train.compute import compile_blocks
from stages.train.loop import train

pytestmark = COMPILING

COMPILED = "train.compute.compile=true"
SMALL = config_named(
    "SiT-XS/2",
    side=8,
    channels=4,
    classes=3,
    has_null_class=True,
)


@pytest.fixture
def graphs() -> Iterator[list[set[str]]]:
    with noted_graphs() as found:
        yield found


@pytest.mark.parametrize(
    "settings",
    few_fast(
        [
            (),
            ("train.compute.micro_batches=2",),
            ("train.align.0.until=2",),
            ("train.compute.recompute_activations=true",),
            ("train.model=DiT-XS/2",),
            ("train.align.0.kind=irepa",),
            ("train.align.0.until=4", "train.align.0.fade=3"),
            tuple(setting for name, setting in OF_LAYERS.items() if name != "value_residual"),
            (entries(),),
            (entries(), "train.align.1.class_token=false", "train.compute.micro_batches=2"),
        ],
        3,
    ),
    ids=[
        *("plain", "micro-batches", "alignment-ends", "recomputed", "dit", "irepa"),
        *("alignment-fades", "layers"),
        *("class-token", "class-token-beside-alignment"),
    ],
)
def test_block_projector_and_final_layer_are_compiled_once_for_all_steps_of_a_run(
    trainable: Callable[..., Config], graphs: list[set[str]], settings: tuple[str, ...]
) -> None:
    trained(trainable(COMPILED, *settings))
    assert len(graphs) == 3
    trained(trainable(COMPILED, *settings, "train.steps=6"))
    assert len(graphs) == 3


def test_a_first_block_that_gives_its_values_to_the_others_has_a_graph_of_its_own(
    trainable: Callable[..., Config], graphs: list[set[str]]
) -> None:
    trained(trainable(COMPILED, *OF_LAYERS.values()))
    assert len(graphs) == 3 + 1


def test_a_teacher_adds_a_graph_for_block_and_final_layer_each_and_a_head_its_own(
    trainable: Callable[..., Config], graphs: list[set[str]]
) -> None:
    term = 'train.align.1={kind = "sra", depth = 1, teacher_depth = 3}'
    trained(trainable(COMPILED, term))
    assert len(graphs) == 3 + 3
    trained(trainable(COMPILED, term, "train.steps=6"))
    assert len(graphs) == 3 + 3


def test_sample_grids_add_a_graph_for_block_and_final_layer_each(
    trainable: Callable[..., Config], graphs: list[set[str]]
) -> None:
    config = trainable(COMPILED, "train.grid_every=1", "sample.compile=true", "sample.guidance=1.5")
    device = torch.device("cpu")
    draw = GridDrawer(config.sample, config.train, config.decoder, device)
    train(config.train, config.tensors, Placement(device), draw)
    assert len(graphs) == 5


def test_encoders_of_one_width_share_a_graph_and_others_have_their_own(
    graphs: list[set[str]],
) -> None:
    model = with_projectors(SMALL, 32, (16, 24, 16, 40)).make().train()
    compile_blocks(model, True, torch.device("cpu"))
    for _ in range(3):
        inputs = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 3])
        velocity, hidden, _ = model(*inputs, {2})
        projected = (projector(hidden[2]) for projector in model.projectors)
        (velocity.sum() + sum(tokens.sum() for tokens in projected)).backward()
    assert len(graphs) == 2 + 3


def test_the_compiled_run_is_the_one_that_is_not(
    trainable: Callable[..., Config], tmp_path: Path, graphs: list[set[str]]
) -> None:
    plain = trainable(f"train.run={tmp_path / 'plain'}")
    trained(plain)
    trained(trainable(COMPILED))
    assert graphs
    assert log_values(trainable()) == log_values(plain)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), (entries(),)], ids=["plain", "class-token"])
def test_the_losses_of_a_compiled_run_are_those_of_one_that_is_not(
    trainable: Callable[..., Config], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    plain = trainable(*settings, f"train.run={tmp_path / 'plain'}")
    trained(plain)
    trained(trainable(COMPILED, *settings))
    for line, expected in zip(log_values(trainable()), log_values(plain), strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_trying_kernels_out_makes_no_graphs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    real, given = torch.compile, list[dict[str, Any] | None]()

    def noted(
        function: Callable[..., Any], options: dict[str, Any] | None = None
    ) -> Callable[..., Any]:
        given.append(options)
        return real(function, options=options)

    monkeypatch.setattr(torch, "compile", noted)
    for wanted in ("max-autotune", True):
        compile_blocks(Transformer(SMALL), wanted, torch.device("cpu"))
    mode = torch._inductor.list_mode_options("max-autotune-no-cudagraphs")
    parts = SMALL.depth + 1
    assert given == [mode] * parts + [None] * parts


def test_the_compiler_does_not_argue_about_the_precision_that_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor import compile_fx  # in the test, for what it warns of

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    warn = compile_fx._warn_tf32_disabled.__wrapped__
    with pytest.warns(UserWarning, match="TensorFloat32 tensor cores"):
        warn()
    compile_blocks(Transformer(SMALL), True, torch.device("cpu"))
    warn()


def test_a_projector_computes_its_layers_in_order_under_their_published_names() -> None:
    projector = MLPProjector(8, 16, 4)
    assert list(projector.state_dict()) == [
        f"{n}.{k}" for n in (0, 2, 4) for k in ("weight", "bias")
    ]
    tokens = torch.randn(2, 3, 8)
    expected = torch.nn.Sequential(*projector)(tokens)
    assert torch.equal(projector(tokens), expected)
