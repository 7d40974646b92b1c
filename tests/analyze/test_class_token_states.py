"""Hidden states of runs that diffuse a class token, of which patches alone are looked at."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from class_tokens import TINY, entries
from runs import CPU, newest, trained

from cache.errors import StaleCacheError
from pipeline.config import Config
from stages.analyze.analysis_options import AlignmentOptions, ProbeOptions, StateOptions
from stages.analyze.hidden_states import HiddenStates, measure_cknna, measure_probes
from stages.analyze.losses import measure_losses
from stages.analyze.subject import open_subject
from stages.sample.sampler import make_sampled
from stages.train.randomness import Stream, seed_for, stream_named
from stages.train.terms.joint import noise_of


@pytest.fixture
def reg(trainable: Callable[..., Config]) -> Config:
    config = trainable(entries(), "train.ema_decay=0.5", "train.learning_rate=1e-2")
    trained(config)
    return config


def test_hidden_states_are_those_of_patches_beside_a_noisy_class_token(
    reg: Config, built: Path
) -> None:
    opened = open_subject(reg.train.run, (), StateOptions(cache=built / "tiny.zarr"))
    found = HiddenStates(opened, CPU.device).at(0.3)
    model = make_sampled(opened.found.model, opened.found.weights("ema"), CPU.device)
    row = int(opened.rows[5])

    def normal(draw: int, *shape: int) -> torch.Tensor:
        seed = seed_for(0, Stream.ANALYSIS, row, draw)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    moments = torch.from_numpy(opened.latents.read("moments", [row])).float()
    clean = (moments[:, :4] + moments[:, 4:] * normal(0, 4, 8, 8)) * 0.5
    vector = torch.from_numpy(opened.encoders[TINY].vectors([row]))
    noise = normal(stream_named(noise_of("class_token")), 112)
    output = model(
        0.7 * clean + 0.3 * normal(1, 4, 8, 8),
        torch.tensor([0.3]),
        torch.tensor([3]),
        (1, 2, 3, 4),
        0.7 * vector + 0.3 * noise,
    )
    for block, tokens in output.hidden.items():
        assert tokens.shape == (1, 17, 128)
        expected = tokens[0, 1:].mean(dim=0)
        torch.testing.assert_close(found[block - 1, 5], expected, rtol=1e-4, atol=1e-5)


def test_cknna_probes_and_losses_of_a_run_with_a_class_token(reg: Config, built: Path) -> None:
    options = StateOptions(cache=built / "tiny.zarr", levels=(0.2, 0.6))
    opened = open_subject(reg.train.run, (), options)
    scores = measure_cknna(opened, AlignmentOptions(neighbours=3), CPU.device).scores
    assert scores[TINY].shape == (4, 2)
    probes = measure_probes(opened, ProbeOptions(epochs=2), CPU.device)
    assert (len(probes.hidden), probes.classes) == (4, 3)
    assert [len(one.losses) for one in measure_losses(opened, CPU.device).levels] == [21, 21]


def test_hidden_states_need_the_class_tokens_that_the_run_was_trained_on(
    reg: Config, built: Path
) -> None:
    path = newest(reg).folder / "state.json"
    state = json.loads(path.read_text())
    state["columns"][f"features/{TINY}"] = "0" * 64
    path.write_text(json.dumps(state))
    with pytest.raises(StaleCacheError, match=f"{TINY} was built by another recipe than what"):
        open_subject(reg.train.run, (), StateOptions(cache=built / "tiny.zarr"))
