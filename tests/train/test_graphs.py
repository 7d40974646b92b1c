"""How many graphs are compiled when two processes train, in real ones."""

import json
from pathlib import Path

import pytest
from launching import launch
from ranks import GRAPHS

RUNS = {
    "plain": [],
    "half": ["train.precision=bfloat16"],
    "recomputed": ["train.compute.recompute_activations=true"],
    "parts": ["train.compute.micro_batches=2"],
    "alignment-ends": ["train.align.0.until=2"],
}


@pytest.mark.slow
def test_processes_compile_a_block_a_projector_and_the_final_layer_once_each(
    built: Path, tmp_path: Path
) -> None:
    runs = {
        tmp_path / f"{parallel}-{name}": [f"train.compute.parallel={parallel}", *settings]
        for parallel in ("ddp", "fsdp")
        for name, settings in RUNS.items()
    }
    compiled = "train.compute.compile=true"
    launch(built, [[f"train.run={run}", compiled, *own] for run, own in runs.items()])
    assert {run.name: json.loads((run / GRAPHS).read_text()) for run in runs} == {
        run.name: 3 for run in runs
    }
