"""Contrastive flow matching, against tensors of the published code and from its formula."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BASE
from runs import assert_falls, log_values, trained_in_parts
from stepping import settings_of, stepped
from torch import Tensor
from torch.testing import assert_close

from pipeline.config import Config, ConfigError
from stages.model.interpolants import interpolate
from stages.model.sizes import LATENTS
from stages.train.terms.contrastive import NEGATIVES, Contrastive
from stages.train.terms.denoising import squared_error
from stages.train.terms.seen import Seen, Streamed

TERM = 'train.align.1={kind = "contrastive"}'


def term_of(**options: Any) -> Contrastive:
    return Contrastive(kind="contrastive", **options)


def seen_of(labels: Tensor, dropped: Tensor, stream: Streamed, normals: Tensor) -> Seen:
    drawn, time = {"dropped": dropped, NEGATIVES: normals}, torch.zeros(len(labels))
    return Seen({"labels": labels}, drawn, time, time, {LATENTS: stream}, {})


def normals_for(negatives: Tensor) -> Tensor:
    """What has to be drawn for these to be chosen among all others."""
    own = torch.arange(len(negatives))
    number = negatives - (negatives > own).long()
    return torch.special.ndtri((number + 0.5) / (len(own) - 1))


def places_of(term: Contrastive, labels: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    return term._negatives(labels, {NEGATIVES: normals})


@pytest.mark.parametrize("name", ["plain", "without_null"])
def test_losses_and_gradients_are_the_published_ones(methods: Any, name: str) -> None:
    golden = methods.below("contrastive.")
    inputs = [golden[f"in.{part}"] for part in ("x", "noise", "t")]
    noisy, target = interpolate("linear", *inputs)
    prediction = golden["in.prediction"].clone().requires_grad_()
    stream = Streamed(*inputs[:2], noisy, target, prediction)
    dropped = golden["in.y"] == 10
    seen = seen_of(golden["in.y"], dropped, stream, normals_for(golden["in.negatives"]))
    term = term_of(skip_unlabelled=name == "without_null")
    (losses,) = term.losses(seen)
    assert_close(losses, golden[f"{name}.contrastive_loss"], rtol=1e-5, atol=1e-6)
    total = squared_error(prediction, target) - term.weight * losses
    assert_close(total, golden[f"{name}.loss"], rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(total.mean(), prediction)
    expected = golden[f"{name}.grad_prediction"]
    assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_the_rolled_form_is_that_of_sr_dit(methods: Any) -> None:
    golden = methods.below("speedrun.")
    clean, noise, time = golden["in.x"], golden["in.noise"], golden["t"]
    stream = Streamed(
        clean, noise, *interpolate("linear", clean, noise, time), golden["in.prediction"]
    )
    labels = torch.zeros(4, dtype=torch.long)
    (losses,) = term_of(negatives="rolled").losses(seen_of(labels, labels.bool(), stream, labels))
    assert_close(-losses.mean(), golden["contrastive_loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("negatives", ["other", "other-class"])
def test_every_other_image_is_chosen_equally_often_and_no_forbidden_one(negatives: Any) -> None:
    labels = torch.tensor([0, 1, 0, 2, 2])
    term, source = term_of(negatives=negatives), torch.Generator().manual_seed(0)
    counts = torch.zeros(5, 5)
    draws = 3000
    for _ in range(draws):
        places, has_one = places_of(term, labels, torch.randn(5, generator=source))
        assert has_one.all()
        counts[torch.arange(5), places] += 1
    others = torch.ones(5, 5).fill_diagonal_(0)
    if negatives == "other-class":
        others = (labels[:, None] != labels).float()
    expected = draws * others / others.sum(dim=1, keepdim=True)
    assert (counts[others == 0] == 0).all()
    assert_close(counts, expected, rtol=0.12, atol=0)


def test_the_ends_of_what_is_drawn_choose_the_first_and_the_last() -> None:
    labels = torch.zeros(4, dtype=torch.long)
    ends = torch.tensor([-40.0, -40.0, 40.0, 40.0])
    assert places_of(term_of(), labels, ends)[0].tolist() == [1, 0, 3, 2]


def test_an_image_without_an_image_of_another_class_is_left_out_and_the_others_make_up_for_it() -> (
    None
):
    stream = Streamed(*torch.randn(5, 4, 4, 2, 2))
    none = torch.zeros(4, dtype=torch.bool)
    term = term_of(negatives="other-class")
    (losses,) = term.losses(seen_of(torch.zeros(4).long(), none, stream, torch.randn(4)))
    assert losses.tolist() == [0, 0, 0, 0]
    skipping = term_of(negatives="other-class", skip_unlabelled=True)
    labels, dropped = torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, False, False])
    normals = torch.randn(4)
    (some,) = skipping.losses(seen_of(labels, dropped, stream, normals))
    (every,) = term.losses(seen_of(labels, none, stream, normals))
    assert_close(some, every * torch.tensor([0, 4 / 3, 4 / 3, 4 / 3]))


def test_a_step_minimises_denoising_minus_the_weighted_term(methods: Any) -> None:
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 4, 4, 8, 8)
    time, labels = torch.rand(4), torch.tensor([3, 1, 3, 10])
    negatives = torch.tensor([2, 3, 3, 2])
    options = replace(BASE, depth=1)
    settings = settings_of([{"kind": "contrastive", "weight": 0.2}])
    state = {
        name: tensor + 0.02 * torch.randn_like(tensor)
        for name, tensor in methods.below("irepa.model.").items()
        if not name.startswith(("projectors", "blocks.1"))
    }
    found = stepped(
        settings,
        options,
        state,
        {"clean": clean, "labels": labels},
        {"time": time, "noise": noise, NEGATIVES: normals_for(negatives)},
    )
    noisy = (1 - time)[:, None, None, None] * clean + time[:, None, None, None] * noise
    velocity, wrong = noise - clean, (noise - clean)[negatives]
    prediction = found.model(noisy, time, labels).prediction
    right, away = ((prediction - one).square().mean() for one in (velocity, wrong))
    assert_close(found.losses["contrastive"].mean(), away, rtol=1e-5, atol=1e-6)
    assert_close(found.total, right - 0.2 * away, rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(right - 0.2 * away, list(found.model.blocks.parameters()))
    for parameter, gradient in zip(found.model.blocks.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_training_is_resumed_bit_for_bit_and_lowers_the_total(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    whole = trained_in_parts(trainable, tmp_path, TERM, "train.learning_rate=3e-3", parts=(12, 30))
    assert_falls(whole, "loss")
    for line in log_values(whole):
        parts = (
            line[name] for name in ("denoising", "contrastive", "alignment/efficientnet-lite0")
        )
        denoising, contrastive, alignment = parts
        assert contrastive > 0
        expected = denoising - 0.05 * contrastive + 0.5 * alignment
        assert line["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.model=DiT-XS/2",), r"train\.align\.1\.kind: 'contrastive' is for SiT"),
        (("train.interpolant=cosine",), r"train\.align\.1\.kind: .* train\.interpolant = 'linear'"),
        (('train.align.2={kind = "contrastive"}',), r"train\.align\.2\.kind: a run has one entry"),
        (
            ("train.batch_size=1",),
            r"train\.batch_size: 'contrastive' compares .* 1 here and needs 2",
        ),
        (("train.compute.micro_batches=2",), r"micro_batches: 'contrastive' needs the whole batch"),
        (
            ("train.align=[]", "sample.contrastive_correction=true"),
            r"sample\.contrastive_correction: train\.align has no entry",
        ),
        (("train.align.1.weight=1.0",), r"train\.align\.1\.weight: .*less than 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    trainable: Callable[..., Config], settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainable(TERM, *settings)
