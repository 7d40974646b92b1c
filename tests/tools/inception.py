"""Inception with random weights, in a file like the published one."""

import hashlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from stages.vision import torch_fidelity


def save_random_inception(path: Path) -> str:
    """Write weights whose features neither vanish nor explode; returns the file's sha256."""
    extractor = torch_fidelity.FeatureExtractorInceptionV3
    module = "torch_fidelity.feature_extractor_inceptionv3"
    with (
        torch.random.fork_rng(devices=[]),
        patch(f"{module}.load_state_dict_from_url", lambda *_, **__: {}),
        patch.object(extractor, "load_state_dict", lambda *_: None),
    ):
        torch.manual_seed(0)
        network: Any = extractor("random", ["2048"])
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
