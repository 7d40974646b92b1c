"""The processes of a run, as torchrun says in the environment which of them this one is.

Other launchers use the same names and leave them behind, in notebooks and in jobs: what is there
has to be whole before it counts.
"""

import os

from cache.errors import RepaCacheError

WORLD, RANK, LOCAL = "WORLD_SIZE", "RANK", "LOCAL_RANK"
LOCAL_WORLD = "LOCAL_WORLD_SIZE"
ADDRESS, PORT = "MASTER_ADDR", "MASTER_PORT"


class LaunchError(RepaCacheError):
    """The environment tells of several processes, but not all that they need."""


def world_size() -> int:
    """How many processes there are: one, unless a launcher says otherwise.

    Raises LaunchError if there are several and something that they need is missing or no number.
    """
    world = _number(WORLD, least=1) if os.environ.get(WORLD) else 1
    if world > 1:
        _number(RANK, below=world)
        _number(PORT)
        if not os.environ.get(ADDRESS):
            raise _refused(f"{ADDRESS} is not set")
    return world


def rank() -> int:
    """The number of this process among all, 0 if it is alone.

    Raises LaunchError like `world_size`.
    """
    return _number(RANK) if world_size() > 1 else 0


def local_rank() -> int | None:
    """The number of this process on its machine, if there are several and it is known.

    Raises LaunchError like `world_size`.
    """
    return _number(LOCAL) if world_size() > 1 and os.environ.get(LOCAL) else None


def local_world_size() -> int:
    """How many of the processes run on this machine, as far as it is known.

    Raises LaunchError like `world_size`.
    """
    return _number(LOCAL_WORLD, least=1) if world_size() > 1 and os.environ.get(LOCAL_WORLD) else 1


def _number(name: str, least: int = 0, below: int | None = None) -> int:
    value = os.environ.get(name)
    if value is None:
        raise _refused(f"{name} is not set")
    number = int(value) if value.strip().isdecimal() else -1
    if number < least or (below is not None and number >= below):
        limits = f"from {least}" if below is None else f"from {least} to {below - 1}"
        raise _refused(f"{name} is {value!r}, expected a whole number {limits}")
    return number


def _refused(what: str) -> LaunchError:
    world = "" if what.startswith(WORLD) else f"{WORLD} is {os.environ[WORLD]!r}, but "
    return LaunchError(
        f"{world}{what}. Several processes are started with `torchrun --nproc-per-node N "
        "--no-python repa-cache train`, which sets all of these. If another launcher left them "
        f"behind: unset {WORLD} {RANK} {LOCAL} {LOCAL_WORLD} {ADDRESS} {PORT}"
    )
