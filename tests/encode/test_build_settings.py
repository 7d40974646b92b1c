"""How many images and threads a build takes where nothing is set."""

import os

import pytest
import torch

from stages.encode.build_settings import BuildSettings
from stages.processes import LOCAL_WORLD, own_cores


def allow(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    """This process may use so many cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))


@pytest.mark.parametrize(("device", "images"), [("cpu", 32), ("cuda", 128), ("mps", 128)])
def test_gpus_have_larger_batches_than_a_cpu(device: str, images: int) -> None:
    assert BuildSettings().images_at_once(torch.device(device)) == images
    assert BuildSettings(batch_size=7).images_at_once(torch.device(device)) == 7


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(2, 1, 4), (16, 1, 16), (128, 1, 32), (128, 8, 16), (8, 8, 4)]
)
def test_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int
) -> None:
    allow(monkeypatch, cores)
    assert BuildSettings().decoding_threads(workers) == threads


def test_threads_that_are_set_are_those_of_all_workers() -> None:
    assert BuildSettings(threads=16).decoding_threads() == 16
    assert BuildSettings(threads=16).decoding_threads(8) == 2
    assert BuildSettings(threads=3).decoding_threads(8) == 1


def test_the_processes_of_a_run_share_the_cores_that_they_may_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allow(monkeypatch, 64)
    assert own_cores() == 64
    for name, value in {"WORLD_SIZE": "8", "RANK": "0", LOCAL_WORLD: "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert own_cores() == 16
