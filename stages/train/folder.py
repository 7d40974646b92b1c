"""What a run's folder holds, and where; it is read without any model.

RUN/
  config.json                    the configuration, as it was resolved
  log.jsonl                      a line per logged step
  checkpoints/step-00010000/     weights and state
  grids/step-00010000.png        samples drawn while it was trained
  samples/TITLE                  images drawn from a checkpoint, with a grid and metrics beside them
"""

import json
from pathlib import Path
from typing import Any

PREFIX = "step-"


def step_name(step: int) -> str:
    """The name of what belongs to a step; in order of names is in order of steps."""
    return f"{PREFIX}{step:08d}"


def step_of(name: str) -> int:
    """The step to which a name belongs. Raises ValueError if it is no such name."""
    if not name.startswith(PREFIX):
        raise ValueError(f"{name!r}: expected {step_name(0)!r} with another number")
    return int(name.removeprefix(PREFIX))


def config_path(run: Path) -> Path:
    """The configuration of a run."""
    return run / "config.json"


def checkpoint_path(run: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return run / "checkpoints" / step_name(step)


def checkpoint_paths(run: Path) -> list[Path]:
    """The checkpoints that there are, oldest first."""
    return sorted((run / "checkpoints").glob(f"{PREFIX}*"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: step, settings, model, fingerprints of the columns."""
    content: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return content


def weights_path(checkpoint: Path, name: str) -> Path:
    """The weights in a checkpoint, `model` or `ema`."""
    return checkpoint / f"{name}.safetensors"


def grid_path(run: Path, step: int) -> Path:
    """The samples that are drawn at a step of training."""
    return run / "grids" / f"{step_name(step)}.png"


def grid_paths(run: Path) -> list[Path]:
    """The grids that there are, oldest first."""
    return sorted((run / "grids").glob(f"{PREFIX}*.png"))


def samples_path(run: Path, title: str) -> Path:
    """The images that are drawn from weights of some title."""
    return run / "samples" / title


def found_beside(run: Path, path: Path) -> Path | None:
    """Where something is that a run's configuration names, or None if it is nowhere.

    A relative path is one from the folder in which the training was started, which usually holds
    the run as well.
    """
    places = [*(folder / path for folder in run.absolute().parents), path]
    return next((place for place in places if place.exists()), None)
