"""Every layout and format in which weights are published, against golden tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import golden_described, golden_dit, golden_sit, predict, training
from safetensors.torch import save_file
from weights import State, started

from stages.weights.published import WeightsError, read_weights


def older(state: State, before: int) -> State:
    """The older layout of REPA: blocks behind the projectors in a list of their own."""
    renamed = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "blocks" and int(rest[0]) >= before:
            name = ".".join(["decoder_blocks", str(int(rest[0]) - before), *rest[1:]])
        renamed[name] = tensor
    return renamed


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def block_compiled(state: State) -> State:
    return {
        name.replace(".attn.", "._orig_mod.attn.").replace(".mlp.f", "._orig_mod.mlp.f"): tensor
        for name, tensor in state.items()
    }


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "training": training,
    "ddp": lambda state: {"ema": prefixed(state, "module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled-ddp": lambda state: prefixed(state, "_orig_mod.module."),
    "ddp-compiled": lambda state: prefixed(state, "module._orig_mod."),
    "blocks-compiled": block_compiled,
    "older-1": lambda state: older(state, 1),
    "older-2": lambda state: training(prefixed(older(state, 2), "module.")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_layout_predicts_the_published_velocity(
    name: str, sit_repa: Any, tmp_path: Path
) -> None:
    path, state = tmp_path / "w.pt", sit_repa.below("model.")
    torch.save(LAYOUTS[name](state), path)
    model = started(path, golden_described(sit_repa))
    labels = torch.where(sit_repa["in.drop"].bool(), 10, sit_repa["in.y"])
    velocity, projected, _ = model(sit_repa["linear.model_input"], sit_repa["in.t"], labels)
    torch.testing.assert_close(velocity, sit_repa["linear.velocity"], rtol=1e-5, atol=1e-6)
    for number, tokens in enumerate(projected):
        expected = sit_repa[f"linear.projected.{number}"]
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "training", "ddp"])
def test_every_layout_of_dit_predicts_the_published_noise_and_variance(
    name: str, dit: Any, tmp_path: Path
) -> None:
    torch.save(LAYOUTS[name](dit.below("model.")), tmp_path / "w.pt")
    model = started(tmp_path / "w.pt", golden_dit(dit).config)
    predicted = model(dit["x_t"], dit["in.t"], dit["in.y"]).prediction
    torch.testing.assert_close(predicted, dit["output"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "training", "ddp"])
def test_every_layout_of_sit_predicts_the_published_velocity(
    name: str, sit_official: Any, tmp_path: Path
) -> None:
    torch.save(LAYOUTS[name](sit_official.below("sigma.model.")), tmp_path / "w.pt")
    model = started(tmp_path / "w.pt", golden_sit(sit_official))
    inputs = sit_official["in.x"], 1 - sit_official["in.t"], sit_official["in.y"]
    expected = sit_official["sigma.velocity"]
    tolerance = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(-model(*inputs)[0], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".legacy"])
def test_any_format_of_file_is_read(suffix: str, sit_repa: Any, tmp_path: Path) -> None:
    path, state = tmp_path / f"w{suffix}", sit_repa.below("model.")
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix != ".legacy")
    for name, tensor in started(path, golden_described(sit_repa)).state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_half_precision_becomes_float32(sit_repa: Any, tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in sit_repa.below("model.").items()}
    torch.save(state, tmp_path / "w.pt")
    model = started(tmp_path / "w.pt", golden_described(sit_repa))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.pos_embed, state["pos_embed"].float())


def test_the_settings_say_which_weights_of_a_file(sit_repa: Any, tmp_path: Path) -> None:
    path, state = tmp_path / "w.pt", sit_repa.below("model.")
    config = golden_described(sit_repa)
    torch.save(training(state), path)
    assert torch.equal(started(path, config, "ema").pos_embed, state["pos_embed"])
    assert torch.equal(started(path, config, "model").pos_embed, -state["pos_embed"])
    torch.save({"model": state, "opt": {}}, path)
    with pytest.raises(WeightsError, match=r"no weights 'ema', but model, opt\. Choose `ema`"):
        started(path, config)
    torch.save({"state_dict": state, "epoch": 3}, path)
    with pytest.raises(WeightsError, match="has no weights 'model', but epoch, state_dict"):
        started(path, config, "model")


class Pickled:
    """Stands for a class whose unpickling runs code."""


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_could_run_code_is_refused(is_zip: bool, sit_repa: Any, tmp_path: Path) -> None:
    content = {**training(sit_repa.below("model.")), "args": Pickled()}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match=r"w\.pt is refused: .*\.Pickled\. .*save_file"):
        started(tmp_path / "w.pt", golden_described(sit_repa))


@pytest.mark.parametrize("kept", [0, 5, 400, 20_000])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_torn_files_are_named(suffix: str, kept: int, sit_repa: Any, tmp_path: Path) -> None:
    path, state = tmp_path / f"w{suffix}", sit_repa.below("model.")
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"w{suffix} cannot be read as weights: it is torn"):
        started(path, golden_described(sit_repa))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "it holds one Tensor"),
        ({"steps": 3, "lr": 1e-4}, "holds no tensors of a model, but lr, steps"),
        ({}, "holds no tensors of a model, but nothing"),
        (
            {"cls_token": torch.ones(3)},
            "of a SiT, DiT, MMDiT or JiT: x_embedder.proj.weight .*cls_",
        ),
    ],
)
def test_files_without_a_transformer_are_refused(
    content: Any, message: str, sit_repa: Any, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        started(tmp_path / "w.pt", golden_described(sit_repa))


def test_paths_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no .*none\.pt"):
        read_weights(tmp_path / "none.pt", "ema")
    with pytest.raises(WeightsError, match="is neither a checkpoint nor a run that has one"):
        read_weights(tmp_path, "ema")


def test_a_reference_written_from_the_names_alone_is_the_published_sit(sit_repa: Any) -> None:
    heads = json.loads(sit_repa.metadata["config"])["num_heads"]
    inputs = (sit_repa["linear.model_input"], sit_repa["in.t"])
    labels = torch.where(sit_repa["in.drop"].bool(), 10, sit_repa["in.y"])
    found = predict(sit_repa.below("model."), *inputs, labels, heads, drops_half=False)
    torch.testing.assert_close(found, sit_repa["linear.velocity"], rtol=1e-5, atol=1e-6)
