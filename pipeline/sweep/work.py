"""The process of one run: trains, samples and measures, up to a step; not meant to be typed.

    python -m pipeline.sweep.work ORDER      ORDER: a `Work` as JSON

Its standard input is a pipe from whoever started it. When that is closed, be it that the other
process was killed, this one stops as if it had been asked to: training with a checkpoint.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import RepaCacheError
from cache.locking.locks import Holder, claimed
from pipeline.config import load_config
from pipeline.exits import FAILED, INTERRUPTED, described
from stages.processes import InterruptedWorkError
from stages.progress import say

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.sweep.sweep_settings import JudgeSettings

# How an error begins that is meant for people, in what this process writes.
SAID = "repa-cache: "
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Work:
    """What a process is to do.

    config, overrides: the configuration of a run; steps: at which it is to be judged, in order,
    each after it was trained up to there; judge: how, as JSON; by: a digest of it; lock: held
    meanwhile.
    """

    config: str
    overrides: tuple[str, ...]
    steps: tuple[int, ...]
    judge: str
    by: str
    lock: str

    def written(self) -> str:
        """As the argument of the process."""
        return json.dumps(asdict(self))


def perform(work: Work) -> None:
    """Train up to each step, sample and measure there, and note that it was done."""
    from pipeline.sweep.states import read_judgement
    from pipeline.sweep.sweep_settings import JudgeSettings

    judge = JudgeSettings.model_validate_json(work.judge)
    for step in work.steps:
        config = load_config(Path(work.config), [*work.overrides, f"train.steps={step}"])
        run = config.train.run
        judgement = read_judgement(run, work.by)
        is_there = _is_trained(config, step)
        if is_there:
            _judge(config, step)
            _analyse(config.train.run, step, judge)
        else:
            say(f"step {step:,} was passed, and its checkpoint is gone")
        judgement.with_step(step, is_lost=not is_there).write(run)


def _is_trained(config: "Config", step: int) -> bool:
    """Train up to a step; whether its checkpoint is there."""
    from pipeline.commands.train import train
    from pipeline.sweep.states import trained_step
    from stages.weights.run_folder import checkpoint_path

    if trained_step(config.train.run) < step:
        train(config)
    return checkpoint_path(config.train.run, step).is_dir()


def _judge(config: "Config", step: int) -> None:
    """Draw samples from a checkpoint, and measure them."""
    from pipeline.commands.evaluate import evaluate
    from pipeline.commands.sample import sample
    from pipeline.evaluation_targets import Target
    from stages.sample.sampled_weights import SampleOptions

    drawn, judges = sample(config, SampleOptions(step=step)), config.evaluate
    if judges.metrics == () and not judges.frechet_encoders:
        return
    evaluate(config, [Target(drawn.samples.folder, config.train.run, config)])


def _analyse(run: Path, step: int, judge: "JudgeSettings") -> None:
    """Look into a checkpoint, as `repa-cache analyze` does."""
    from pipeline.analysis import analyses
    from stages.analyze import analysis_options

    states = analysis_options.StateOptions(step=step, levels=judge.levels, rows=judge.rows)
    if "losses" in judge.analyses:
        analyses.losses(run, replace(states, cache=judge.validation, is_conditional=True))
    if "cknna" in judge.analyses:
        analyses.cknna(run, states, analysis_options.AlignmentOptions())
    if "probe" in judge.analyses:
        analyses.probe(run, states, analysis_options.ProbeOptions())


def wait_and_perform(work: Work) -> None:
    """Wait until no other process is at this run, and do the work."""
    known: Holder | None = None
    while True:
        with claimed(Path(work.lock), say) as other:
            if other is None:
                perform(work)
                return
        if other != known:
            known = other
            say(f"waiting for {other}")
        time.sleep(POLL_SECONDS)


def stop_with_the_other_end() -> None:
    """Ask this process to stop when its standard input comes to an end."""

    def watch() -> None:
        # Not by sys.stdin, which Python locks when it ends.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(argument: str) -> int:
    """Do what an order says; returns the exit code."""
    stop_with_the_other_end()
    fields = json.loads(argument)
    work = Work(**{**fields, "overrides": tuple(fields["overrides"]), "steps": fields["steps"]})
    try:
        wait_and_perform(work)
    except (InterruptedWorkError, KeyboardInterrupt) as error:
        say(f"{SAID}{error}")
        return INTERRUPTED
    except Exception as error:
        if not isinstance(error, RepaCacheError):
            say(traceback.format_exc())
        say(f"{SAID}{described(error)}")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
