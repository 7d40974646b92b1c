"""What a run's folder holds, and where; it is read without any model.

RUN/
  config.json                    the configuration, as it was resolved
  log.jsonl                      a line per logged step
  checkpoints/step-00010000/     weights and state
  grids/step-00010000.png        samples drawn while it was trained
  latent-mean.safetensors        mean of the data set's latents, if sampling needs it
  samples/TITLE                  images drawn from a checkpoint, with a grid and metrics beside them
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

PREFIX = "step-"
# The name of what belongs to a step, and nothing more: no copy, and nothing that is unfinished.
NAME = re.compile(rf"{PREFIX}(\d{{8,}})")
# What the state of a checkpoint has to tell, and the files of tensors beside it.
STATE = frozenset({"step", "settings", "columns", "rows", "model", "scaler"})
TENSORS = ("model", "ema", "meter")


def step_name(step: int) -> str:
    """The name of what belongs to a step; in order of names is in order of steps."""
    return f"{PREFIX}{step:08d}"


def step_of(name: str) -> int:
    """The step to which a name belongs. Raises ValueError if it is no such name."""
    if not (match := NAME.fullmatch(name)):
        raise ValueError(f"{name!r}: expected {step_name(0)!r} with another number")
    return int(match[1])


def config_path(run: Path) -> Path:
    """The configuration of a run."""
    return run / "config.json"


def checkpoint_path(run: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return run / "checkpoints" / step_name(step)


def checkpoint_paths(run: Path) -> list[Path]:
    """The checkpoints that there are, whole or damaged, oldest first."""
    folders = (run / "checkpoints").glob(f"{PREFIX}*")
    return sorted(path for path in folders if NAME.fullmatch(path.name) and path.is_dir())


def fault_of(checkpoint: Path) -> str | None:
    """What can be seen to be wrong with a checkpoint without reading its tensors, if anything."""
    return next(_faults(checkpoint), None)


def _faults(checkpoint: Path) -> Iterator[str]:
    state: dict[str, Any] = {}
    try:
        state = read_state(checkpoint)
        if missing := sorted(STATE.difference(state)):
            yield f"state.json does not tell {', '.join(missing)}"
    except FileNotFoundError:
        yield "state.json is missing"
    except (OSError, ValueError, TypeError) as error:
        yield f"state.json cannot be read ({error})"
    for name in (*TENSORS, *_more(state)):
        path = weights_path(checkpoint, name)
        try:
            with safe_open(path, "np"):
                pass
        except FileNotFoundError:
            yield f"{path.name} is missing"
        except (OSError, SafetensorError) as error:
            yield f"{path.name} cannot be read ({error})"
    if not (checkpoint / "optimizer" / ".metadata").is_file():
        yield "optimizer/.metadata is missing"


def _more(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Further files of tensors that a checkpoint has by what it says of itself."""
    settings = state.get("settings")
    has_second = isinstance(settings, Mapping) and settings.get("second_ema_decay") is not None
    return ("ema2",) if has_second else ()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: step, settings, model, fingerprints of the columns."""
    content: dict[str, Any] = json.loads((checkpoint / "state.json").read_bytes())
    return content


def weights_path(checkpoint: Path, name: str) -> Path:
    """The weights in a checkpoint: `model`, `ema`, or `ema2` if it has a second average."""
    return checkpoint / f"{name}.safetensors"


def latent_mean_path(run: Path) -> Path:
    """The mean latent of the data set that a run was trained on."""
    return run / "latent-mean.safetensors"


def grid_path(run: Path, step: int) -> Path:
    """The samples that are drawn at a step of training."""
    return run / "grids" / f"{step_name(step)}.png"


def grid_paths(run: Path) -> list[Path]:
    """The grids that there are, oldest first."""
    pictures = (run / "grids").glob(f"{PREFIX}*.png")
    return sorted(path for path in pictures if NAME.fullmatch(path.stem))


def analyses_path(run: Path) -> Path:
    """Where what analyses found of a run goes, unless they are told otherwise."""
    return run / "analysis"


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
