"""Makes a Dask worker see GPUs, as `--preload`: those that the environment lists.

CUDA_VISIBLE_DEVICES gives their numbers, all that there are by default; work that is meant for
one of them is done on the CPU.
"""

import os
from types import SimpleNamespace

import torch

from stages.encode.building import cluster

GPUS = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")

torch.cuda.device_count = lambda: len(GPUS)  # type: ignore[assignment]
torch.cuda.get_device_properties = lambda n: SimpleNamespace(uuid=GPUS[n])  # type: ignore[assignment]
cluster.find_device = lambda _name: torch.device("cpu")
