"""How many processes a command runs in, and whether they know of one another."""

import os

from pipeline.exits import ConfigError
from stages.processes import world_size

# Commands that torchrun can start in several processes.
DISTRIBUTED = frozenset({"train", "sample", "evaluate"})

# By what they are called: the variable that has the number of processes.
SIZES = {"mpirun": "OMPI_COMM_WORLD_SIZE", "mpiexec": "PMI_SIZE"}
RENDEZVOUS = (
    "--rdzv-backend=c10d "
    '--rdzv-endpoint=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29500 '
)


def checked_world(command: str) -> int:
    """The number of processes. Raises ConfigError if the command cannot run in so many."""
    if command in DISTRIBUTED | {"run", "sweep"}:
        _check_launch(command)
    world = world_size()
    if world > 1 and command not in DISTRIBUTED:
        raise ConfigError(
            f"`repa-cache {command}` runs in one process, not under torchrun, and WORLD_SIZE is "
            f"{world}. If another launcher left that behind: unset WORLD_SIZE"
        )
    return world


def _check_launch(command: str) -> None:
    """Raise ConfigError if this is one of several processes that would each do all the work.

    Those of torchrun have WORLD_SIZE, whoever started torchrun.
    """
    if "WORLD_SIZE" in os.environ:
        return
    if (tasks := _slurm_tasks()) > 1:
        raise _lone("srun", tasks, _by_srun(command, tasks))
    for launcher, variable in SIZES.items():
        if (processes := _number(variable, 1)) > 1:
            raise _lone(launcher, processes, _by_torchrun(command, processes))


def _by_srun(command: str, tasks: int) -> str:
    if command not in DISTRIBUTED:
        return f"It is for one process: srun --ntasks=1 repa-cache {command}"
    nodes = max(1, _number("SLURM_STEP_NUM_NODES", _number("SLURM_NNODES", 1)))
    return (
        f"Have srun start torchrun, once on each machine: srun --nodes={nodes} --ntasks={nodes} "
        f"torchrun --nnodes={nodes} --nproc-per-node={-(-tasks // nodes)} "
        f"{RENDEZVOUS if nodes > 1 else ''}--no-python repa-cache {command}"
    )


def _by_torchrun(command: str, processes: int) -> str:
    if command not in DISTRIBUTED:
        return f"It is for one process: repa-cache {command}"
    return f"Start torchrun: torchrun --nproc-per-node={processes} --no-python repa-cache {command}"


def _slurm_tasks() -> int:
    """How many processes srun started beside this one, itself included.

    SLURM_NTASKS alone is also there in a batch script, which is one process and has number 0.
    """
    beside = _number("SLURM_NTASKS", 1) if _number("SLURM_PROCID", 0) > 0 else 1
    return _number("SLURM_STEP_NUM_TASKS", beside)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


def _lone(launcher: str, processes: int, remedy: str) -> ConfigError:
    return ConfigError(
        f"{launcher} started {processes} processes that do not know of one another: each would do "
        "all the work",
        remedy=remedy,
    )
