import pytest

from stages.processes import LaunchError, local_rank, world_size

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SECOND_OF_FOUR = {
    "WORLD_SIZE": "4",
    "RANK": "1",
    "LOCAL_RANK": "1",
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
    assert (world_size(), local_rank()) == (4, 1)


@pytest.mark.parametrize(
    "left",
    [{}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "RANK": "7"}, {"LOCAL_RANK": "3", "RANK": "x"}],
)
def test_what_other_launchers_left_behind_does_not_count(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, str]
) -> None:
    launch(monkeypatch, left)
    assert (world_size(), local_rank()) == (1, None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "all", "WORLD_SIZE is 'all', expected a whole number from 1"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0', expected a whole number from 1"),
        ("RANK", None, "WORLD_SIZE is '4', but RANK is not set"),
        ("RANK", "", "RANK is '', expected a whole number from 0 to 3"),
        ("RANK", "4", "RANK is '4', expected a whole number from 0 to 3"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK is '-1', expected a whole number from 0"),
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
        local_rank()
    assert str(caught.value).endswith("unset " + " ".join(NAMES))
