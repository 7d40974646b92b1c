"""Token similarity of sREPA and U-REPA, against a second implementation and from its formula."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import aligned, make
from methods import BASE
from peak import peak_bytes
from runs import assert_falls, newest, trained, trained_in_parts
from stepping import model_of, settings_of, stepped
from torch import Tensor
from torch.testing import assert_close

from pipeline.config import Config, ConfigError
from stages.train.terms import token_similarity
from stages.weights.checkpoint import checkpoints

ENCODER = "efficientnet-lite0"
SECOND = f'train.align.1={{kind="token-similarity", encoder="{ENCODER}", depth=2}}'
SHARED = (
    {"kind": "token-similarity", "encoder": "e", "depth": 1},
    {"kind": "repa", "encoder": "e", "depth": 1, "projector_width": 16},
)
GIGABYTE = 1e9


def by_formula(projected: Tensor, tokens: Tensor, *, same: bool) -> list[float]:
    """For each image the mean over pairs of tokens, one by one."""
    found = []
    for ours, theirs in zip(projected, tokens, strict=True):
        pairs = [(i, j) for i in range(len(ours)) for j in range(len(ours)) if same or i != j]
        squares = [
            (
                torch.cosine_similarity(ours[i], ours[j], dim=0)
                - torch.cosine_similarity(theirs[i], theirs[j], dim=0)
            )
            ** 2
            for i, j in pairs
        ]
        found.append(float(sum(squares) / len(pairs)))
    return found


@pytest.mark.parametrize(
    ("pairs", "key"), [("all", "similarity.loss"), ("different", "similarity.loss_off_diagonal")]
)
def test_the_loss_is_that_of_the_second_implementation(methods: Any, pairs: str, key: str) -> None:
    projected, tokens = (methods[f"similarity.in.{n}"] for n in ("projected", "target_tokens"))
    losses = aligned(make("token-similarity", pairs=pairs), projected, tokens)
    assert_close(losses.mean(), methods[key], rtol=1e-5, atol=0)
    assert losses.tolist() == pytest.approx(
        by_formula(projected, tokens, same=pairs == "all"), rel=1e-4
    )


def test_the_gradient_is_that_of_the_second_implementation(methods: Any) -> None:
    projected = methods["similarity.in.projected"].clone().requires_grad_()
    tokens, expected = methods["similarity.in.target_tokens"], methods["similarity.grad_projected"]
    aligned(make("token-similarity", pairs="all"), projected, tokens).mean().backward()
    assert projected.grad is not None
    assert_close(projected.grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("pairs", ["all", "different"])
def test_in_parts_it_is_that_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, pairs: str
) -> None:
    projected, tokens = torch.randn(2, 5, 4, 8)
    projected.requires_grad_()
    term = make("token-similarity", pairs=pairs)
    found = []
    for most in (1 << 24, 2 * 4 * 4):
        monkeypatch.setattr(token_similarity, "MOST_COSINES", most)
        losses = aligned(term, projected, tokens)
        found.append((losses.detach(), *torch.autograd.grad(losses.mean(), projected)))
    assert_close(*found)


@pytest.mark.slow
def test_its_memory_does_not_grow_with_the_matrices_of_a_large_batch() -> None:
    prepare = """
import torch
from stages.train.terms.token_similarity import TokenSimilarity
torch.set_num_threads(1)
projected, tokens = torch.randn(2, {images}, 1024, 16)
projected.requires_grad_()
term = TokenSimilarity(encoder="e")
term.loss(projected[:1], tokens[:1]).mean().backward()
"""
    # For 80 images, every matrix of cosines of the whole batch would take 0.3 GB.
    work = "term.loss(projected, tokens).mean().backward()"
    used = [peak_bytes(prepare.format(images=images), work) for images in (16, 80)]
    assert used[1] < 0.4 * GIGABYTE
    assert used[1] - used[0] < 0.1 * GIGABYTE


def test_a_projector_is_shared_and_its_tokens_are_computed_once() -> None:
    settings = settings_of(SHARED)
    torch.manual_seed(0)
    batch = {
        "clean": torch.randn(3, 4, 8, 8),
        "labels": torch.tensor([0, 3, 10]),
        "e/directions": torch.randn(3, 16, 24),
    }
    drawn = {"time": torch.rand(3), "noise": torch.randn(3, 4, 8, 8)}
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in batch.items()}
    first, modules = model_of(settings, BASE, shapes)
    assert modules[1] is modules[2]
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert len(first.projectors) == 1
    calls = 0
    found = stepped(settings, BASE, first.state_dict(), batch, drawn)
    # From the formulas, with the same weights.
    time = drawn["time"][:, None, None, None]
    noisy = (1 - time) * batch["clean"] + time * drawn["noise"]

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    first.projectors[0].register_forward_hook(count)
    output = first(noisy, drawn["time"], batch["labels"], [1])
    projected, tokens = first.projectors[0](output.hidden[1]), batch["e/directions"]
    squares = (output.prediction - (drawn["noise"] - batch["clean"])).square()
    cosines = [
        torch.cosine_similarity(one[:, :, None], one[:, None], dim=-1)
        for one in (projected, tokens)
    ]
    similar = (cosines[0] - cosines[1]).square().sum() / (3 * 16 * 15)
    alignment = -torch.cosine_similarity(projected, tokens, dim=-1).mean()
    total = squares.mean() + 0.5 * alignment + 2.0 * similar
    assert_close(found.losses["similarity/e"].mean(), similar)
    assert_close(found.total, total)
    total.backward()
    for (name, one), other in zip(found.model.named_parameters(), first.parameters(), strict=True):
        if other.grad is not None:
            assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert calls == 1


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_a_run_lowers_its_loss_and_resumes_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path, *, own: bool
) -> None:
    more = [SECOND, "train.batch_size=21"]
    more += (
        ["train.align.1.shares_projector=false", "train.align.1.projector_width=16"] if own else []
    )
    whole = trained_in_parts(trainable, tmp_path, *more, parts=(4, 8))
    assert_falls(whole, f"similarity/{ENCODER}")
    names = newest(whole).weights("model")
    assert any(name.startswith("projectors.1.") for name in names) == own


def test_a_shared_projector_is_trained_until_the_last_of_its_terms_ends(
    trainable: Callable[..., Config],
) -> None:
    config = trainable(
        SECOND, "train.align.0.until=1", "train.align.1.until=2", "train.steps=3", "train.keep=9"
    )
    trained(config)
    name = "projectors.0.0.weight"
    one, two, three = (
        found.weights("model")[name] for found in checkpoints(config.train.run) if found.step
    )
    assert not torch.equal(one, two)
    assert torch.equal(two, three)


@pytest.mark.parametrize(
    "settings",
    [
        ("train.align.1.depth=3",),
        ("train.align.0.kind=irepa",),
        ("train.align.0.kind=nt-xent",),
    ],
)
def test_without_an_entry_to_share_with_it_is_refused(
    trainable: Callable[..., Config], settings: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="shares_projector: no entry of kind 'repa' has"):
        trainable(SECOND, *settings)
    trainable(SECOND, *settings, "train.align.1.shares_projector=false")
