"""Training with products in float8, which a CPU imitates."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from runs import log_values, newest, trained, trained_in_parts
from torch import Tensor
from torch.nn import Linear

from pipeline.config import Config
from stages.model.transformer import Transformer
from stages.model.transformer_config import config_named
from stages.train.float8 import use_float8
from stages.train.train_settings import RunError

CPU = torch.device("cpu")


def model() -> Transformer:
    config = config_named("SiT-XS/2", side=8, channels=4, classes=3, has_null_class=True)
    made = Transformer(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made


def gradients(made: Transformer) -> Tensor:
    torch.manual_seed(1)
    latents, time = torch.randn(4, 4, 8, 8), torch.rand(4)
    made(latents, time, torch.arange(4)).prediction.square().mean().backward()
    trained = (one for one in made.parameters() if one.requires_grad)
    return torch.cat([one.grad.flatten() for one in trained if one.grad is not None])


def test_a_run_in_float8_goes_on_to_the_bit_and_learns_what_bfloat16_does(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    eight = trained_in_parts(trainable, tmp_path, "train.precision=float8")
    sixteen = trainable("train.precision=bfloat16", f"train.run={tmp_path / 'sixteen'}")
    trained(sixteen)
    for line, expected in zip(log_values(eight), log_values(sixteen), strict=True):
        assert line != expected
        assert line["loss"] == pytest.approx(expected["loss"], rel=0.03)
    for name, tensor in newest(eight).weights("model").items():
        assert tensor.dtype is torch.float32
        assert tensor.shape == newest(sixteen).weights("model")[name].shape


def test_the_products_of_blocks_are_in_float8_and_gradients_a_few_thousandths_off() -> None:
    torch.manual_seed(0)
    exact = model()
    rounded = deepcopy(exact)
    use_float8(rounded, CPU)
    assert rounded.state_dict().keys() == exact.state_dict().keys()
    plain = {name for name, module in rounded.named_modules() if type(module) is Linear}
    assert {name.partition(".")[0] for name in plain} == {"t_embedder", "final_layer", "blocks"}
    inside = {name.split(".", 2)[2] for name in plain if name.startswith("blocks")}
    assert inside == {"adaLN_modulation.1"}
    wanted = gradients(exact)
    error = (gradients(rounded) - wanted).norm() / wanted.norm()
    assert 0.001 < error < 0.02


def test_a_gpu_without_such_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(
        RunError, match=r"train\.precision: 'float8' needs a GPU of compute .* 8\.9"
    ):
        use_float8(model(), torch.device("cuda"))
