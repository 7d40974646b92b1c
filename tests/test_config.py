import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.presets import PRESETS
from pipeline.config import Config, ConfigError, load_config

ROOT = Path(__file__).parents[1]
PRESET_NAMES = sorted(PRESETS)


def test_all_errors_come_at_once_with_path_and_nearest_name(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(
            "train.dept=4",
            "train.model=SiT-XL2",
            "cache.rows_per_shard=many",
            "datset.path=x",
            "encoders.dinov2-vit-bb.storage=float16",
            "encoders.efficientnet-lite0.wieghts=x",
            "sample.guidance_interval=[0.7, 0.2]",
        )
    assert str(error.value).splitlines()[1:] == [
        "  cache.rows_per_shard: input should be a valid integer",
        "  encoders.efficientnet-lite0.wieghts: unknown key; did you mean 'weights'?",
        "  encoders.dinov2-vit-bb: unknown name 'dinov2-vit-bb'; did you mean 'dinov2-vit-b'?",
        "  train.model: unknown name 'SiT-XL2'; did you mean 'SiT-XL/2'?",
        "  train.dept: unknown key; did you mean 'depth'?",
        "  sample.guidance_interval: expected 0 <= low <= high <= 1, got 0.7 and 0.2",
        "  datset: unknown key; did you mean 'dataset'?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.depth=7", "train.depth: SiT-XS/2 has 4 blocks, got 7"),
        ("train.batch_size=5", "train.batch_size: 5 images cannot be shared by 2 processes"),
        ("dataset.resolution=34", "dataset.resolution: 34 is no multiple of the VAE's 4 px"),
        ("dataset.resolution=20", "train.model: SiT-XS/2 cannot cut latents of side 5"),
        ("dataset.path=nowhere", "dataset.path: there is no "),
        ("latents.vae=./nowhere", "latents.vae: there is no folder /"),
        ("encoders.efficientnet-lite0.weights=w.pth", "weights: there is no file "),
        ("encoders.efficientnet-lite0.input_size=60", "60 is no multiple of its patches of 16 px"),
        ("encoders.efficientnet-lite0.input_size=96", "6 x 6, those of SiT-XS/2 on 4 x 4; set"),
        ('train.encoders=["efficientnet"]', "no section [encoders.efficientnet]; did you mean"),
        ("train.steps=0", "train.steps: input should be greater than 0"),
        ("train.label_dropping=true", "train.label_dropping: input should be a valid number"),
    ],
)  # fmt: skip
def test_each_mistake_has_a_message_of_its_own(
    tiny: Callable[..., Config], images: Path, override: str, message: str
) -> None:
    tiny()
    with pytest.raises(ConfigError) as error:
        load_config(images.parent / "pipeline.toml", [override], world=2)
    assert message in str(error.value)


@pytest.mark.parametrize("override", ["train", "train.steps", "steps=4", "train.steps.x=1"])
def test_an_override_needs_section_key_and_value(
    tiny: Callable[..., Config], override: str
) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value|steps is no section"):
        tiny(override)


def test_a_missing_and_a_torn_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Write one with `repa-cache init`"):
        load_config(tmp_path / "pipeline.toml")
    (tmp_path / "pipeline.toml").write_text("[dataset\n")
    with pytest.raises(ConfigError, match=r"is not valid TOML: .* line 1"):
        load_config(tmp_path / "pipeline.toml")


def test_paths_are_relative_to_the_file(tiny: Callable[..., Config], images: Path) -> None:
    config = tiny()
    assert config.dataset.path == images
    assert config.cache.path == images.parent / "tiny.zarr"
    assert tiny("cache.path=/elsewhere/x.zarr").cache.path == Path("/elsewhere/x.zarr")


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_every_preset_is_a_valid_configuration(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_text(PRESETS[preset].read_text())
    document = tomllib.loads(path.read_text())
    if "path" in document["dataset"]:
        (tmp_path / document["dataset"]["path"]).mkdir(parents=True)
    load_config(path)


def test_the_configuration_in_the_repository_is_the_demo() -> None:
    assert (ROOT / "pipeline.toml").read_text() == PRESETS["demo"].read_text()


def test_the_paper_s_settings_are_the_defaults_of_its_preset(tmp_path: Path) -> None:
    shutil.copy(str(PRESETS["imagenet256-sit-xl2"]), tmp_path / "pipeline.toml")
    (tmp_path / "ILSVRC/Data/CLS-LOC/train").mkdir(parents=True)
    config = load_config(tmp_path / "pipeline.toml")
    train = config.train
    assert (train.model, train.depth, train.weight) == ("SiT-XL/2", 8, 0.5)
    assert (train.batch_size, train.learning_rate, train.ema_decay) == (256, 1e-4, 0.9999)
    assert (config.sample.solver, config.sample.steps) == ("euler-maruyama", 250)
    assert config.encode.token_grid("dinov2-vit-b") == 16


def test_a_relative_autoencoder_lies_beside_the_configuration(
    tiny: Callable[..., Config], tiny_vae: Path, images: Path
) -> None:
    shutil.copytree(tiny_vae, images.parent / "vaes" / "mine")
    config = tiny("latents.vae=./vaes/mine")
    assert config.latents.location == str(images.parent / "vaes" / "mine")
    assert config.latents.downsampling == 4
    assert config.latents.column == "latents/mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.encoder_weights={clip-vit-L = 1.0}"], "'clip-vit-L' is not among train.encoders"),
        (["train.compute.micro_batches=3"], "4 images cannot be shared by 1 processes with 3"),
        (["train.keep_every=3"], "train.keep_every: 3 is no multiple of train.checkpoint_every"),
        (
            ["train.init_layout=sit"],
            "train.init_layout: of which file? Name it with train.init_from",
        ),
        (
            ["train.legacy_label_dropping=true", "train.label_dropping=0.0"],
            "legacy_label_dropping: train.label_dropping is 0",
        ),
        (
            ["train.model=DiT-XS/2", "train.interpolant=cosine"],
            "train.interpolant: 'cosine' is for SiT; DiT-XS/2 has a schedule of its own",
        ),
        (["train.model=DiT-XS/2", "sample.solver=heun"], "'heun' is not for DiT"),
        (
            ["train.compute.micro_batches=2", "train.alignment=nt-xent"],
            "train.compute.micro_batches: 'nt-xent' needs the whole batch at once",
        ),
        (["train.precision=float64"], "train.precision"),
        (["train.compute.paralel=fsdp"], "did you mean 'parallel'"),
    ],
)
def test_training_settings_that_do_not_fit_together_are_refused(
    trainable: Callable[..., Config], settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        trainable(*settings)
    assert message in str(caught.value)
