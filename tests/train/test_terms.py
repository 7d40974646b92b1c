"""Terms that this file alone adds, a class each: they are trained, resumed, logged and reported."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from marking import few_fast
from runs import assert_equal_runs, log_values, newest, trained
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from pipeline.commands.report import report
from pipeline.config import Config, ConfigError
from stages.setting_types import Count
from stages.train.batches import CachedBatches
from stages.train.terms import TERMS
from stages.train.terms.repa import Repa
from stages.train.terms.run_terms import RunTerms
from stages.train.terms.seen import Seen, Shapes
from stages.train.terms.term import Alignment, Term

ENCODER = "efficientnet-lite0"


class Smooth(Alignment):
    """A knob: the distance from which a difference counts linearly."""

    needs_lengths: ClassVar[bool] = True

    kind: Literal["smooth"] = "smooth"
    """Which loss it is."""
    knee: float = 1.0
    """Differences beyond it count linearly."""

    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        return smooth_l1_loss(projected, tokens, beta=self.knee, reduction="none").mean((1, 2))


class Calm(Term):
    """No projector and no encoder, but numbers of its own: hidden tokens along a random line."""

    kind: Literal["calm"] = "calm"
    """Which loss it is."""
    depth: Count = 1
    """The block that is calmed."""

    @property
    def depths(self) -> tuple[int, ...]:
        return (self.depth,)

    def draws(self, shapes: Shapes) -> Mapping[str, tuple[int, ...]]:
        return {"calm/direction": shapes.latent[:1]}

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        hidden, direction = seen.hidden[self.depth].float(), seen.drawn["calm/direction"]
        return [(hidden[..., : direction.shape[1]] * direction[:, None]).square().mean((1, 2))]


class Late(Repa):
    """Weights by time: only what is nearly noise is aligned."""

    kind: Literal["late"] = "late"  # type: ignore[assignment]
    """Which loss it is."""

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        (loss,) = super().losses(seen)
        return [seen.level * loss]


class Bridge(Alignment):
    """Two depths, of which one module makes the tokens."""

    kind: Literal["bridge"] = "bridge"
    """Which loss it is."""
    other: Count = 3
    """The second block."""

    @property
    def depths(self) -> tuple[int, ...]:
        return (self.depth, self.other)

    def make_module(self, shapes: Shapes) -> nn.Module:
        return nn.Bilinear(shapes.width, shapes.width, shapes.arrays[self.tokens][-1])

    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        return -torch.cosine_similarity(projected, tokens, dim=-1).mean(dim=1)


ALIGNED = {"encoder": ENCODER, "depth": 2, "projector_width": 16}
CASES: dict[str, tuple[type[Term], dict[str, Any]]] = {
    "smooth": (Smooth, {**ALIGNED, "knee": 0.5}),
    "calm": (Calm, {"depth": 3, "weight": 0.1}),
    "late": (Late, ALIGNED),
    "bridge": (Bridge, {**ALIGNED, "depth": 1}),
}


@pytest.fixture(params=few_fast(CASES))
def setting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A term of a new kind beside the usual one."""
    kind, (term, options) = request.param, CASES[request.param]
    monkeypatch.setitem(TERMS, kind, term)
    entry = ", ".join(f"{k} = {json.dumps(v)}" for k, v in {"kind": kind, **options}.items())
    return f"train.align.1={{{entry}}}"


def name_of(setting: str) -> str:
    """Of the new term's loss in the log."""
    return "calm" if '"calm"' in setting else f"alignment/{ENCODER}/2"


def test_a_new_term_is_trained_resumed_logged_and_reported(
    trainable: Callable[..., Config], tmp_path: Path, setting: str
) -> None:
    whole = trainable(setting, f"train.run={tmp_path / 'whole'}")
    trained(whole)
    for steps in (3, 4):
        trained(trainable(setting, f"train.steps={steps}"))
    assert_equal_runs(whole, trainable(setting))
    assert name_of(setting) in log_values(whole)[-1]
    path, _ = report([whole.train.run], tmp_path / "report.html")
    page = path.read_text()
    assert whole.train.align[1].kind in page
    assert name_of(setting) in page


def test_a_new_term_moves_the_weights_it_sees_and_its_own(
    trainable: Callable[..., Config], tmp_path: Path, setting: str
) -> None:
    weights = []
    for weight in (0.0, 1.0):
        run = f"train.run={tmp_path / str(weight)}"
        config = trainable(setting, run, f"train.align.1.weight={weight}", "train.steps=2")
        trained(config)
        weights.append(newest(config).weights("model"))
    without, with_it = weights
    moved = {name for name in with_it if not torch.equal(without[name], with_it[name])}
    assert "x_embedder.proj.weight" in moved
    own = {name for name in with_it if name.startswith("projectors.1.")}
    assert bool(own) == ("calm" not in setting)
    assert own <= moved


def test_a_new_term_has_settings_that_are_checked(
    trainable: Callable[..., Config], setting: str
) -> None:
    with pytest.raises(ConfigError, match=r"train\.align\.1\.depth: input should be a valid int"):
        trainable(setting, "train.align.1.depth=deep")
    with pytest.raises(ConfigError, match=r"train\.align\.1\.knee: (unknown key|input should be)"):
        trainable(setting, "train.align.1.knee=soft")


def test_what_no_term_of_a_step_reads_is_not_read(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths are read with the term that needs them, directions with the other, then neither."""
    monkeypatch.setitem(TERMS, "smooth", Smooth)
    read: list[set[str]] = []
    real = CachedBatches.read

    def watched(batches: CachedBatches, step: int) -> Mapping[str, Tensor]:
        batch = real(batches, step)
        read.append(set(batch) - {"moments", "labels"})
        return batch

    monkeypatch.setattr(CachedBatches, "read", watched)
    entry = f'{{kind="smooth", encoder="{ENCODER}", depth=2, until=1}}'
    trained(trainable(f"train.align.1={entry}", "train.align.0.until=3"))
    directions, tokens = f"{ENCODER}/directions", f"{ENCODER}/tokens"
    assert read == [{directions, tokens}, {directions}, {directions}, set()]


def test_terms_of_one_encoder_have_names_of_their_own_for_as_long_as_they_last(
    trainable: Callable[..., Config],
) -> None:
    entry = f'{{kind="nt-xent", encoder="{ENCODER}", depth=3}}'
    config = trainable(f"train.align.1={entry}", "train.align.0.until=2")
    terms = RunTerms.of(config.train)
    one, two = f"alignment/{ENCODER}", f"alignment/{ENCODER}/2"
    assert [terms.at(step).names for step in (1, 2)] == [
        ("denoising", one, two),
        ("denoising", two),
    ]
    assert [terms.end(step, 4) for step in (0, 1, 2, 3)] == [2, 2, 4, 4]
    trained(config)
    assert [one in line for line in log_values(config)] == [True, True, False, False]
    assert all(two in line for line in log_values(config))
