"""How many operations a step dispatches, against what was recorded.

A change that is meant is recorded anew, for reviewers to see, in the version of torch that
constraints.txt names:

    REPA_CACHE_RECORD=1 pytest -n 0 -m "slow or not slow" tests/train/test_dispatch.py
"""

import json
import os
from collections.abc import Callable

import pytest
import torch
from class_tokens import entries
from marking import few_fast
from methods import OF_LAYERS
from operations import Operations
from places import GOLDEN
from runs import watched_step

from pipeline.config import Config
from stages.model.sizes import MODELS, Model, Size

RECORD = GOLDEN / "operations.json"
TERM = 'kind = "{}", encoder = "efficientnet-lite0", depth = 2, projector_width = 16'
REPA = TERM.format("repa")


def align(*terms: str) -> str:
    return f"train.align=[{', '.join(f'{{{term}}}' for term in terms)}]"


STEPS = {
    "SiT-B/2": [align(REPA)],
    "DiT-B/2": ["train.model=DiT-B/2", align(REPA)],
    "SiT-XL/2": ["train.model=SiT-XL/2", align(REPA)],
    "layers": [align(REPA), *OF_LAYERS.values()],
    "two parts": [align(REPA), "train.compute.micro_batches=2"],
    "without alignment": [align()],
    "iREPA": [align(TERM.format("irepa"))],
    "nt-xent": [align(TERM.format("nt-xent"))],
    "sREPA": [align(REPA, TERM.format("token-similarity"))],
    "VA-REPA": [align(f'{REPA}, time_weight = {{kind = "sigmoid"}}')],
    "LAP": [align(f"{REPA}, purify = true")],
    "REG": [entries()],
    "contrastive": [align(REPA, 'kind = "contrastive"')],
    "direction": [align(REPA, 'kind = "direction"')],
    "dispersive": [align('kind = "dispersive"')],
    "SRA": [align('kind = "sra", depth = 2, teacher_depth = 4')],
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many blocks as the models have, which are narrow: a width changes no operation."""
    for name, depth in (("SiT-B/2", 12), ("DiT-B/2", 12), ("SiT-XL/2", 28)):
        monkeypatch.setitem(MODELS, name, Model(name[:3], Size(depth, 32, 4), 2))


@pytest.mark.parametrize("name", few_fast(STEPS, 2))
def test_a_step_dispatches_as_many_operations_as_recorded(
    trainable: Callable[..., Config], name: str
) -> None:
    operations = Operations()
    watched_step(trainable("train.model=SiT-B/2", *STEPS[name]), operations)
    record, version = json.loads(RECORD.read_text()), torch.__version__.partition("+")[0]
    if "REPA_CACHE_RECORD" in os.environ:
        record["steps"][name] = operations.kinds
        RECORD.write_text(json.dumps({**record, "torch": version}, indent=1) + "\n")
    elif version != record["torch"]:
        pytest.skip(f"it was recorded in torch {record['torch']}")
    else:
        assert operations.kinds == record["steps"][name], operations.found


def test_every_step_that_is_recorded_is_counted() -> None:
    assert json.loads(RECORD.read_text())["steps"].keys() == STEPS.keys()
