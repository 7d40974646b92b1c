"""The methods that train.py compares with REPA: what each changes of its settings."""

from collections.abc import Mapping
from typing import Any

REPA, COMPONENTS = "REPA", "pca8"
Section = Mapping[str, Any]


def methods(encoder: str, depth: int) -> Mapping[str, Section]:
    """Keys of `[train]` for each. encoder: one with class tokens; depth: that is aligned."""
    aligned = {"encoder": encoder, "depth": depth}
    repa = {"kind": "repa", **aligned}
    class_token = {"kind": "class-token", "encoder": encoder}
    layers = {"rotary": True, "qk_norm": True}
    return {
        REPA: {"align": (repa,)},
        "without alignment": {"align": ()},
        "nt-xent": {"align": ({"kind": "nt-xent", **aligned},)},
        "iREPA": {"align": ({"kind": "irepa", **aligned},)},
        "REG": {"align": (class_token, {**repa, "class_token": True})},
        "VA-REPA": {"align": ({**repa, "time_weight": {"kind": "sigmoid"}},)},
        "sREPA": {"align": (repa, {"kind": "token-similarity", **aligned})},
        "LAP": {"align": ({**repa, "purify": True},)},
        "REPA, contrastive": {"align": (repa, {"kind": "contrastive"})},
        "REPA, direction": {"align": (repa, {"kind": "direction"})},
        "ReDi": {"align": ({"kind": "redi", "encoder": COMPONENTS, "drop": 0.2},)},
        "dispersive": {"align": ({"kind": "dispersive"},)},
        "SRA": {"align": ({"kind": "sra", "depth": depth, "teacher_depth": depth + 2},)},
        "LightningDiT's layers": {
            "align": (repa,),
            "norm": "rms-affine",
            "mlp": "swiglu",
            "times": "lognormal",
            **layers,
        },
        "SR-DiT": {
            "align": (
                class_token,
                {**repa, "class_token": True},
                {"kind": "contrastive", "negatives": "rolled"},
            ),
            "norm": "rms",
            "value_residual": True,
            "time_shift": "auto",
            **layers,
        },
    }
