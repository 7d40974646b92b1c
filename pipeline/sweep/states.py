"""How far the runs of a sweep are, by what their folders hold; neither torch nor a model.

RUN/judged.json    the steps that were sampled and measured, and by which settings
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cache.files import write_atomically
from pipeline.sweep.sweep_file import SweepRun
from stages.train.log import log_path
from stages.weights import run_folder

# A line of a log is shorter.
TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Judgement:
    """What was judged of a run.

    by: a digest of the settings; steps: that were sampled and measured; lost: whose checkpoint
    was removed before.
    """

    by: str
    steps: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()

    def with_step(self, step: int, *, is_lost: bool) -> "Judgement":
        """The same with one more step."""
        steps, lost = set(self.steps), set(self.lost)
        (lost if is_lost else steps).add(step)
        return Judgement(self.by, tuple(sorted(steps)), tuple(sorted(lost)))

    def write(self, run: Path) -> None:
        content = {"by": self.by, "steps": self.steps, "lost": self.lost}
        write_atomically(judgement_path(run), json.dumps(content, indent=2).encode())


def judgement_path(run: Path) -> Path:
    """Where a run keeps what was judged of it."""
    return run / "judged.json"


def read_judgement(run: Path, by: str) -> Judgement:
    """What was judged of a run by some settings; what cannot be read was not."""
    try:
        found = json.loads(judgement_path(run).read_bytes())
        kept = Judgement(found["by"], tuple(found["steps"]), tuple(found["lost"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Judgement(by)
    return kept if kept.by == by else Judgement(by)


def judging(run: SweepRun) -> str:
    """A digest of the settings by which a run is sampled, measured and analysed."""
    config = run.config
    content = config.sample.model_dump_json(exclude={"batch_size", "grid", "compile"})
    content += config.evaluate.model_dump_json()
    if run.judge.analyses:
        content += run.judge.model_dump_json(include={"analyses", "levels", "rows", "validation"})
    return sha256(content.encode()).hexdigest()[:16]


def lacking_steps(run: SweepRun, steps: Sequence[int]) -> list[int]:
    """Those of some steps that were not judged yet."""
    judgement = read_judgement(run.folder, judging(run))
    return [step for step in steps if step not in {*judgement.steps, *judgement.lost}]


def trained_step(run: Path) -> int:
    """The step of the newest whole checkpoint, 0 without one."""
    whole = (
        path
        for path in reversed(run_folder.checkpoint_paths(run))
        if run_folder.fault_of(path) is None
    )
    newest = next(whole, None)
    return 0 if newest is None else run_folder.step_of(newest.name)


def logged_step(run: Path) -> int:
    """The step of the last whole line of the log, 0 without one: quick to ask, while it trains."""
    path = log_path(run)
    try:
        with path.open("rb") as stream:
            stream.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            lines = stream.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError, KeyError):
        return 0
