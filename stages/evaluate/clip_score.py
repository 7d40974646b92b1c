"""CLIP score (arXiv 2104.08718): how well images go with the captions that they were drawn of.

B images, D features of CLIP's common space.
"""

import json
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stages.encode.networks.registry import EncoderError
from stages.encode.networks.text_encoder import BESIDE, TOKENISER
from stages.encode.networks.transformers_index import CONFIG, PREPROCESSING
from stages.encode.networks.transformers_library import (
    import_transformers,
    load_whole,
    weights_folder,
    weights_sha256,
)
from stages.evaluate.evaluate_settings import CLIP_SCORE
from stages.packages import importing_quietly
from stages.weight_files import READING_ERRORS

# Captions that are read at a time.
BATCH = 256


class ClipEmbeddings:
    """A CLIP of transformers: embeddings of images, by its own preprocessing, and of captions.

    location: a folder or a name on the hub. Raises EncoderError if it cannot be loaded.
    """

    name = CLIP_SCORE
    features: tuple[str, ...] = (CLIP_SCORE,)

    def __init__(self, location: str, device: torch.device) -> None:
        transformers = import_transformers(f"evaluate.clip_model: {location}")
        folder = weights_folder(location, CONFIG, PREPROCESSING, TOKENISER, beside=BESIDE)
        model = load_whole(transformers.AutoModel, folder, location, "CLIP", "CLIP")
        try:
            with importing_quietly():
                self._processor = transformers.AutoImageProcessor.from_pretrained(folder)
                self._tokeniser = transformers.AutoTokenizer.from_pretrained(folder)
        except READING_ERRORS as error:
            raise EncoderError(f"{location} cannot be loaded as a CLIP: {error!r}") from error
        if not hasattr(model, "get_image_features"):
            raise EncoderError(f"{location} is no CLIP: it gives no features of images and texts.")
        self._model = model.eval().requires_grad_(False).to(device)
        self._device = device
        self.weights_sha256 = weights_sha256(self._model)
        about = {"weights": self.weights_sha256, "images": self._processor.to_dict()}
        self.identity = sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Embeddings of images, uint8 [B, 3, S, S], as float32 [B, D] on the CPU."""
        inputs = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        return {CLIP_SCORE: _features(self._model.get_image_features(inputs.to(self._device)))}

    @torch.inference_mode()
    def of_captions(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions, float32 [B, D] on the CPU."""
        limit = self._model.config.text_config.max_position_embeddings
        parts = []
        for start in range(0, len(captions), BATCH):
            some = list(captions[start : start + BATCH])
            cut = {"padding": "max_length", "max_length": limit, "truncation": True}
            ids = self._tokeniser(some, return_tensors="pt", **cut)["input_ids"]
            parts.append(_features(self._model.get_text_features(ids.to(self._device))))
        return torch.cat(parts)


def _features(found: Tensor | object) -> Tensor:
    """Embeddings on the CPU; the library also gives them with what they are made of."""
    tensor = found if isinstance(found, Tensor) else getattr(found, "pooler_output", None)
    assert isinstance(tensor, Tensor), "an embedding for each"
    return tensor.float().cpu()


def clip_scores(images: Tensor, captions: Tensor) -> np.ndarray:
    """A hundred times the cosine of each image and its caption, [B, D] both, at least 0, as [B]."""
    cosines = cosine_similarity(images.double(), captions.double(), dim=1)
    scores: np.ndarray = (100 * cosines).clamp(min=0).numpy()
    return scores
