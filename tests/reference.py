"""The published implementation's model, as its golden tensors describe it."""

import json
from typing import Any

from stages.train.transformer import Transformer, TransformerConfig


def golden_model(sit_repa: Any) -> Transformer:
    config = json.loads(sit_repa.metadata["config"])
    model = Transformer(
        TransformerConfig(
            side=config["input_size"],
            patch=config["patch_size"],
            channels=config["in_channels"],
            depth=config["depth"],
            width=config["hidden_size"],
            heads=config["num_heads"],
            classes=config["num_classes"],
            features=tuple(config["z_dims"]),
            align_depth=config["encoder_depth"],
            projector_width=config["projector_dim"],
            has_null_class=True,
        )
    )
    model.load_state_dict(sit_repa.below("model."))
    return model
