"""The preset of REG, and what is planned of a run that diffuses a class token."""

from collections.abc import Callable
from pathlib import Path

import pytest
from class_tokens import OTHER, TINY, entries
from runs import newest, trained

from pipeline.commands.init import PRESETS
from pipeline.config import Config, load_config
from pipeline.plan.advice import advice
from pipeline.plan.outline import make_plan
from stages.model.transformer_config import config_named, forward_flops

Configure = Callable[..., Config]
MEAN = f"{TINY} has no class token: the mean of its tokens stands for it."


def test_the_preset_is_reg_as_published() -> None:
    config = load_config(Path(str(PRESETS["imagenet256-reg-xl2"])), (), needs=())
    train, sample = config.train, config.sample
    token, aligned = (entry.model_dump(exclude_defaults=True) for entry in train.align)
    assert token == {"encoder": "dinov2-vit-b"}
    assert train.align[0].weight == 0.03
    assert aligned == {"encoder": "dinov2-vit-b", "class_token": True}
    assert [(train.align[1].depths, train.align[1].weight)] == [((8,), 0.5)]
    assert (train.model, train.interpolant, train.times) == ("SiT-XL/2", "linear", "uniform")
    assert (sample.guidance, sample.class_guidance) == (2.3, 2.3)
    assert sample.guidance_interval == (0.0, 0.85)
    assert (sample.solver, sample.steps) == ("euler-maruyama", 250)


def test_a_plan_says_that_the_mean_stands_for_the_class_token(trainable: Configure) -> None:
    plan = make_plan(trainable(entries()), None, 1)
    assert advice(plan)[-1] == MEAN
    plain = make_plan(trainable(), None, 1)
    assert MEAN not in advice(plain)
    # The mean is made of tokens that are read anyway.
    assert plan.rate.image_bytes == plain.rate.image_bytes


def test_a_plan_counts_what_is_trained_and_computed(trainable: Configure) -> None:
    plan, plain = (make_plan(trainable(*more), None, 1) for more in ((entries(),), ()))
    width, features, projector = 128, 112, 32
    trained_more = (width + 1) * features + (features + 1) * width + 2 * width
    assert plan.footprint.parameters - plain.footprint.parameters == trained_more
    with_token, without = (
        config_named(
            "SiT-XS/2", side=8, channels=4, classes=3, has_null_class=True, class_features=D
        )
        for D in (features, 0)
    )
    token = 2 * projector * (width + projector + features)
    expected = 3 * (forward_flops(with_token) - forward_flops(without) + token)
    assert plan.gains.step_flops - plain.gains.step_flops == pytest.approx(expected)
    trained(trainable(entries(), "train.steps=1"))
    held = newest(trainable()).weights("model")
    assert plan.footprint.parameters == sum(t.numel() for n, t in held.items() if n != "pos_embed")


@pytest.mark.parametrize("is_aligned", [True, False])
def test_a_class_token_is_counted_among_the_bytes_that_are_read(
    trainable: Configure, tmp_path: Path, is_aligned: bool
) -> None:
    planned = (
        f"cache.path={tmp_path / 'none.zarr'}",
        f"encoders.{OTHER}={{input_size = 56, storage = 'int8'}}",
        entries(OTHER),
        f"train.align.1.class_token={str(is_aligned).lower()}",
    )
    # Read once for both terms, and in half precision; a cosine needs no scales of codes.
    expected = 8 * 8 * 8 * 2 + 16 * 768 + 2 * 768
    assert make_plan(trainable(*planned), None, 1).rate.image_bytes == expected


@pytest.mark.slow
def test_the_preset_is_planned_with_its_parameters_operations_and_bytes() -> None:
    config = load_config(Path(str(PRESETS["imagenet256-reg-xl2"])), (), needs=())
    plan = make_plan(config, 1_281_167, 8)
    # All of the published model but its fixed table of positions, of 257 x 1152 numbers.
    assert plan.footprint.parameters == 685_017_360 - 257 * 1152
    # Of one token more than without.
    assert plan.gains.step_flops / 1e9 == pytest.approx(727.02, abs=0.01)
    assert plan.rate.image_bytes == 8 * 32 * 32 * 2 + 256 * 768 + 2 * 768
