"""Which weights suit a model, which are refused, and which parts start anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Described
from runs import CPU
from weights import a_model, doubled, fresh, saved, started

from stages.placement import Placement
from stages.weights.export_options import Layout
from stages.weights.fitting import start_from
from stages.weights.published import WeightsError, read_weights

LABELS = "y_embedder.embedding_table.weight"


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (
            {"side": 32},
            {"side": 64},
            r"there latents of side 32 \(256 px with SD-VAE\), here latents of side 64 \(512 px .*"
            "Positions are not resampled",
        ),
        ({"depth": 3}, {}, "model: there 3 blocks, here 2 blocks"),
        ({"width": 64}, {}, "model: there width 64, here width 48"),
        (
            {"patch": 4, "side": 16},
            {"side": 16},
            r"model: there patches of side 4, here patches of side 2$",
        ),
        ({"channels": 16}, {}, "there 16 latent channels, here 4 latent channels"),
        ({"qk_norm": True}, {}, r"normalised queries and keys \(train.qk_norm\), here plain"),
        ({}, {"qk_norm": True}, "there plain queries and keys .*, here normalised"),
        (
            {},
            {"learns_sigma": True},
            r"there no predicted variance \(SiT\), here a predicted variance \(DiT\)",
        ),
        (
            {"depth": 4, "width": 128},
            {},
            "4 blocks, .*; there width 128, .* Set train.model to 'SiT-XS/2'",
        ),
        (
            {"depth": 4, "width": 128, "learns_sigma": True},
            {"learns_sigma": True},
            "Set train.model to 'DiT-XS/2'",
        ),
    ],
)
def test_weights_of_another_model_are_refused_with_what_differs(
    there: dict[str, Any], here: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "w.safetensors", a_model(**there))
    with pytest.raises(WeightsError, match=message):
        started(path, a_model(**here))


def test_all_of_the_trunk_has_to_be_there_and_nothing_else(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", a_model(), drop=["blocks.1.mlp.fc2.bias"])
    with pytest.raises(WeightsError, match=r"1 tensors differ: blocks.1.mlp.fc2.bias is missing"):
        started(path, a_model())
    torch.save({**fresh(a_model()).state_dict(), "n_averaged": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="n_averaged is unknown here"):
        started(tmp_path / "w.pt", a_model())
    changed = {"blocks.0.mlp.fc1.bias": torch.ones(8), LABELS: torch.ones(11, 8)}
    torch.save({**fresh(a_model()).state_dict(), **changed}, tmp_path / "w.pt")
    with pytest.raises(
        WeightsError,
        match=r"2 .*: blocks.0.mlp.fc1.bias is \[8\], expected \[192\]; .* \[11, 8\], .*\[11, 48\]",
    ):
        started(tmp_path / "w.pt", a_model())


def test_refused_weights_leave_the_model_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", a_model(), drop=["blocks.1.mlp.fc2.bias"])
    model = a_model().make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError):
        start_from(path, "ema", model, CPU)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def begun(
    path: Path,
    described: Described,
    capsys: pytest.CaptureFixture[str],
    place: Placement = CPU,
) -> tuple[set[str], list[str]]:
    """Which tensors of a model stay new when it starts from a file, and what is said of that."""
    model = described.make()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capsys.readouterr()
    # Without projectors, a file does not tell its direction of time.
    names = read_weights(path, "ema").state
    layout = None if any(name.startswith("projectors.") for name in names) else Layout.REPA
    start_from(path, "ema", model, place, layout)
    new = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, state[name])}
    first, *lines = capsys.readouterr().err.splitlines() or [""]
    assert first in ("", f"weights to start from: {path}")
    return new, lines


@pytest.mark.parametrize("labels", [{"classes": 7}, {"has_null_class": False}, {"classes": 1000}])
def test_other_classes_have_a_new_label_table_and_nothing_else(
    labels: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "w.safetensors", a_model())
    new, lines = begun(path, a_model(**labels), capsys)
    assert new == {LABELS}
    (line,) = lines
    assert line.startswith("the label table starts anew: there 11 rows, here ")


def test_the_same_model_starts_with_every_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "w.safetensors", a_model())
    assert begun(path, a_model(), capsys) == (set(), [])


def projector(*numbers: int) -> set[str]:
    return {
        f"projectors.{number}.{layer}.{part}"
        for number in numbers
        for layer in (0, 2, 4)
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("there", "here", "new", "said"),
    [
        (
            (),
            (24,),
            (0,),
            ["projectors that start anew, as none there has their shape: projectors.0"],
        ),
        ((24,), (), (), ["projectors there that are not used: 1"]),
        ((24, 40), (24,), (), ["projectors there that are not used: 1"]),
        (
            (24,),
            (24, 40),
            (1,),
            ["projectors that start anew, as none there has their shape: projectors.1"],
        ),
        (
            (24, 40),
            (32, 40),
            (0,),
            [
                "projectors that start anew, as none there has their shape: projectors.0; "
                "projectors there that are not used: 1"
            ],
        ),
        ((), (), (), []),
    ],
)
def test_projectors_start_anew_where_they_have_to(
    there: tuple[int, ...],
    here: tuple[int, ...],
    new: tuple[int, ...],
    said: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = saved(tmp_path / "w.safetensors", a_model(features=there))
    assert begun(path, a_model(features=here), capsys) == (projector(*new), said)


def test_a_projector_is_loaded_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "w.safetensors", a_model(), drop=["projectors.0.4.bias"])
    assert begun(path, a_model(), capsys)[0] == projector(0)
    path = saved(tmp_path / "w.safetensors", a_model(projector_width=8))
    assert begun(path, a_model(), capsys)[0] == projector(0)


def test_only_the_main_process_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "w.safetensors", a_model(features=()))
    other = Placement(torch.device("cpu"), rank=1, world=2)
    assert begun(path, a_model(), capsys, other) == (projector(0), [])


def test_half_an_output_is_not_dropped_in_silence_unless_it_is_blank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(doubled(fresh(a_model()).state_dict()), tmp_path / "w.pt")
    assert begun(tmp_path / "w.pt", a_model(), capsys) == (
        set(),
        ["half of its output is dropped, as SiT does; a DiT needs a DiT as train.model"],
    )
    torch.save(doubled(fresh(a_model()).state_dict(), filler=0.0), tmp_path / "w.pt")
    assert begun(tmp_path / "w.pt", a_model(), capsys) == (set(), [])


def test_an_output_of_which_half_is_blank_is_no_dit_s(tmp_path: Path) -> None:
    config = a_model(learns_sigma=True)
    state = doubled(fresh(a_model()).state_dict(), filler=0.0)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"there no predicted variance \(SiT\), here a pred"):
        started(tmp_path / "w.pt", config)
    torch.save(config.make().state_dict(), tmp_path / "w.pt")
    assert not started(tmp_path / "w.pt", config).final_layer.linear.weight.any()
