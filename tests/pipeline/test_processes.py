import signal
import socket

import pytest

from pipeline.process_group import placement
from stages.processes import LaunchError, local_rank, local_world_size, world_size

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SECOND_OF_FOUR = {
    "WORLD_SIZE": "4",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has launched anything yet."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_process_of_torchrun_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, SECOND_OF_FOUR)
    assert (world_size(), local_rank(), local_world_size()) == (4, 1, 2)


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "1", "RANK": "7"},
        {"LOCAL_RANK": "3", "RANK": "x"},
        {"LOCAL_WORLD_SIZE": "x"},
    ],
)
def test_what_other_launchers_left_behind_does_not_count(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, str]
) -> None:
    launch(monkeypatch, left)
    assert (world_size(), local_rank(), local_world_size()) == (1, None, 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "all", "WORLD_SIZE is 'all', expected a whole number from 1"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0', expected a whole number from 1"),
        ("RANK", None, "WORLD_SIZE is '4', but RANK is not set"),
        ("RANK", "", "RANK is '', expected a whole number from 0 to 3"),
        ("RANK", "4", "RANK is '4', expected a whole number from 0 to 3"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK is '-1', expected a whole number from 0"),
        ("LOCAL_WORLD_SIZE", "x", "LOCAL_WORLD_SIZE is 'x', expected a whole number from 1"),
        ("MASTER_ADDR", None, "MASTER_ADDR is not set"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http'"),
    ],
)
def test_half_of_a_launch_is_refused_with_how_to_clear_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str
) -> None:
    launch(monkeypatch, SECOND_OF_FOUR)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=message) as caught:
        (local_rank(), local_world_size())
    assert str(caught.value).endswith("unset " + " ".join(NAMES))


def test_processes_that_cannot_meet_say_where_they_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        own = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        launch(monkeypatch, own)
        before = signal.getsignal(signal.SIGINT)
        with (
            pytest.raises(LaunchError, match=f"2 processes cannot join at 127.0.0.1:{port}: .*use"),
            placement("cpu"),
        ):
            pass
    assert signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr().err
    assert f"process 0 of 2: waiting for the others at 127.0.0.1:{port}. If nobody starts" in said
