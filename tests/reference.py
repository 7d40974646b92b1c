"""The published implementations' models, as their golden tensors describe them."""

import json
from typing import Any

from stages.train.transformer import Transformer, TransformerConfig


def golden_model(sit_repa: Any) -> Transformer:
    config = json.loads(sit_repa.metadata["config"])
    return _loaded(
        sit_repa,
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
        ),
    )


def golden_dit(dit: Any) -> Transformer:
    config = json.loads(dit.metadata["config"])
    return _loaded(
        dit,
        TransformerConfig(
            side=config["input_size"],
            patch=config["patch_size"],
            channels=config["in_channels"],
            depth=config["depth"],
            width=config["hidden_size"],
            heads=config["num_heads"],
            classes=config["num_classes"],
            features=(),
            align_depth=config["depth"],
            projector_width=1,
            has_null_class=True,
            learns_sigma=config["learn_sigma"],
        ),
    )


def _loaded(golden: Any, config: TransformerConfig) -> Transformer:
    model = Transformer(config)
    model.load_state_dict(golden.below("model."))
    return model
