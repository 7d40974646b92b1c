import math
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT

from pipeline.commands.init import PRESETS
from pipeline.config import Config, ConfigError, load_config
from stages.encode.images.sources.tables import TableSettings
from stages.setting_paths import literal

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
        "  train.dept: unknown key; did you mean 'keep'?",
        "  sample.guidance_interval: expected 0 <= low <= high <= 1, got 0.7 and 0.2",
        "  datset: unknown key; did you mean 'dataset'?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.align.0.depth=7", "train.align.0.depth: SiT-XS/2 has 4 blocks, got 7"),
        ("train.batch_size=5", "train.batch_size: 5 images cannot be shared by 2 processes"),
        ("dataset.resolution=34", "dataset.resolution: 34 is no multiple of the VAE's 4 px"),
        ("dataset.resolution=20", "train.model: SiT-XS/2 cannot cut latents of side 5"),
        ("dataset.path=nowhere", "dataset.path: there is no "),
        ("latents.vae=./nowhere", "latents.vae: there is no folder /"),
        ("encoders.efficientnet-lite0.weights=w.pth", "weights: there is no file "),
        ("encoders.efficientnet-lite0.input_size=60", "60 is no multiple of its patches of 16 px"),
        ("encoders.efficientnet-lite0.input_size=96", "6 x 6, those of SiT-XS/2 on 4 x 4; set"),
        ("train.align.0.dept=7", "train.align.0.dept: unknown key; did you mean 'depth'?"),
        ("train.align.0.temperature=1", "train.align.0.temperature: unknown key; choose from"),
        ("train.align.0.kind=nt_xent", "train.align.0: kind: unknown name 'nt_xent'; did you me"),
        ("train.align.1.depth=7", "train.align.1: kind: required, one of repa, "),
        ("train.align.2.depth=7", "--set train.align.2.depth=7: the list has 1 entries, counted"),
        ("train.encoders=[]", "(nothing: without entries there is no alignment)"),
        ("train.align.0.encoder=efficientnet", "no section [encoders.efficientnet]; did you mean"),
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


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["dataset.split=train", "sample.tolerances=[1e-6, 1e-3]"],
            [
                "dataset.split: only the sources arrow, parquet take this, not 'imagefolder'",
                "sample.tolerances: only the solver dopri5 takes this, not 'auto'",
            ],
        ),
        (
            ["dataset.source=sample-photos"],
            [
                "dataset.path: only the sources arrow, imagefolder, lightningdit, parquet, repa, "
                "tar, u-vit, zip take this, not 'sample-photos'"
            ],
        ),
        (
            ["dataset.source=parquett", "dataset.split=train", "dataset.flip=1"],
            [
                "dataset.source: unknown name 'parquett'; did you mean 'parquet'?",
                "dataset.flip: input should be a valid boolean",
            ],
        ),
        (
            ["dataset.splitt=train"],
            [
                "dataset.splitt: unknown key; choose from captions, classes, crop, flip, local, "
                "local_gb, on_error, path, pixels, resolution, source"
            ],
        ),
        (
            ["sample.solver=dopri5", "sample.tolerance=1"],
            ["sample.tolerance: unknown key; did you mean 'tolerances'?"],
        ),
        (
            ["sample.solver=dopri5", "sample.tolerances=[1.0, 0.0]"],
            ["sample.tolerances.1: input should be greater than 0"],
        ),
    ],
)
def test_an_option_of_another_kind_is_refused_where_it_stands(
    tiny: Callable[..., Config], overrides: list[str], lines: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*overrides)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == lines


def test_a_data_set_has_a_source(tiny: Callable[..., Config], images: Path) -> None:
    tiny()
    path = images.parent / "pipeline.toml"
    path.write_text(path.read_text().replace('source = "imagefolder"', ""))
    with pytest.raises(ConfigError, match=r"dataset\.source: required, but not given"):
        load_config(path)


def test_the_options_of_a_kind_are_taken(tiny: Callable[..., Config]) -> None:
    assert tiny("sample.solver=dopri5").sample.model_dump()["tolerances"] == (1e-6, 1e-3)
    tables = tiny("dataset.source=parquet", "dataset.split=train").dataset
    assert isinstance(tables, TableSettings)
    assert tables.split == "train"


@pytest.mark.parametrize(
    "override",
    [
        *("train", "train.steps", "steps=4", "=4", "train.=4", ".steps=4", "", "="),
        *("train.steps.x=1", "[a]\n[b]\nc=1"),
    ],
)
def test_an_override_needs_section_key_and_value(
    tiny: Callable[..., Config], override: str
) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value|steps is no section"):
        tiny(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.run=r\udcff", "is not UTF-8 text"),
        ("train.steps=1\nseed=3", "train.steps: input should be a valid integer"),
        (f"train.steps={'[' * 1500}", "train.steps: input should be a valid integer"),
        ("train.steps=2026-01-31", "train.steps: input should be a valid integer"),
        ("train.steps=nan", "train.steps: input should be a valid integer"),
        ("train.learning_rate=nan", "train.learning_rate: input should be a finite number"),
        ("sample.guidance=inf", "sample.guidance: input should be a finite number"),
        ("train.batch_size=1000000000000", "train.batch_size: input should be less than 21474836"),
        ("build.threads=100000", "build.threads: input should be less than or equal to 1024"),
        ("sample.grid=[1, 100000]", "sample.grid.1: input should be less than or equal to 1024"),
        ("sample.guidance_interval=[nan, 1.0]", "interval.0: input should be a finite number"),
        ("cache.path=", "cache.path: a path cannot be empty; the folder itself is '.'"),
        ("train.run=", "train.run: a path cannot be empty; the folder itself is '.'"),
        ("latents.vae=", "latents.vae: a path cannot be empty"),
        ("train.wandb=", "train.wandb: string should have at least 1 character"),
        ("cache.path=[1]", "cache.path: input should be a valid string"),
        ('cache.path="a\\u0000b"', "cache.path: a path cannot have a character 0"),
    ],
)
def test_values_of_any_kind_are_refused_with_one_message(
    tiny: Callable[..., Config], override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(override)
    assert message in str(caught.value)


def test_limits_may_be_none(tiny: Callable[..., Config]) -> None:
    config = tiny("train.gradient_clip=inf", "train.reading.timeout_seconds=inf")
    assert config.train.gradient_clip == config.train.reading.timeout_seconds == math.inf


def test_a_name_that_looks_like_a_date_stays_as_it_was_typed(tiny: Callable[..., Config]) -> None:
    assert tiny("train.run=2026-01-31T10:00").train.run == Path("2026-01-31T10:00")


def test_a_date_in_the_file_is_to_stand_in_quotes(
    tiny: Callable[..., Config], images: Path
) -> None:
    tiny()
    path = images.parent / "pipeline.toml"
    path.write_text(path.read_text().replace('run = "run"', "run = 2026-01-31"))
    with pytest.raises(ConfigError, match=r"train\.run: a date or time, 2026-01-31; a name stands"):
        load_config(path)


def test_a_missing_and_a_torn_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Write one with `repa-cache init`"):
        load_config(tmp_path / "pipeline.toml")
    (tmp_path / "pipeline.toml").write_text("[dataset\n")
    with pytest.raises(ConfigError, match=r"is not valid TOML: .* line 1"):
        load_config(tmp_path / "pipeline.toml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_file_of_any_editor_is_read(
    tiny: Callable[..., Config], images: Path, encoding: str, line_end: str
) -> None:
    tiny()
    path = images.parent / "pipeline.toml"
    text = path.read_text().replace('run = "run"', 'run = "läufe/größer"')
    path.write_bytes(text.replace("\n", line_end).encode(encoding))
    assert load_config(path).train.run == images.parent / "läufe/größer"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "is UTF-16 text: save it as UTF-8"),
        ("utf-32", "is UTF-32 text: save it as UTF-8"),
        ("latin-1", r"is not UTF-8 text: line 3 has the byte 0xf6\. Save it as UTF-8"),
    ],
)
def test_a_file_in_another_encoding_is_named(tmp_path: Path, encoding: str, message: str) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_bytes("# one\n# two\n[schön]\n".encode(encoding))
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_what_is_no_file_or_nested_too_deeply_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    path = tmp_path / "pipeline.toml"
    path.write_text(f"a = {'[' * 5000}")
    with pytest.raises(ConfigError, match="brackets are nested too deeply"):
        load_config(path)


def test_paths_are_relative_to_the_file(tiny: Callable[..., Config], images: Path) -> None:
    config = tiny()
    assert config.dataset.path == images
    assert config.cache.path == images.parent / "tiny.zarr"
    assert tiny("cache.path=/elsewhere/x.zarr").cache.path == Path("/elsewhere/x.zarr")


def test_paths_of_the_command_line_are_relative_to_where_it_is_typed(
    tiny: Callable[..., Config], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny()
    (tmp_path / "else" / "vae").mkdir(parents=True)
    shutil.copytree(images, tmp_path / "else" / "mine")
    monkeypatch.chdir(tmp_path / "else")
    config = load_config(
        images.parent / "pipeline.toml",
        [
            "dataset.path=mine",
            "train.init_from=../w.pt",
            "encoders.efficientnet-lite0.input_size=64",
            "encoders.mae-vit-l={input_size = 64}",
            "sample.vae=./vae",
        ],
        needs=(),
    )
    assert config.dataset.path == Path("mine")
    assert config.train.init_from == Path("../w.pt")
    assert config.sample.vae == str(tmp_path / "else" / "vae")
    assert config.cache.path == images.parent / "tiny.zarr"
    assert config.train.run == images.parent / "run"


def test_a_home_and_variables_in_paths_are_expanded(
    tiny: Callable[..., Config], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "images"))
    monkeypatch.setenv("NAME", "tiny")
    tiny()
    path = images.parent / "pipeline.toml"
    text = path.read_text().replace('path = "images"', 'path = "$DATA"')
    text = text.replace('path = "tiny.zarr"', 'path = "${NAME}-$NAME.zarr"')
    path.write_text(text.replace('run = "run"', 'run = "~/runs/$$NAME 5$ ~"'))
    settings = (
        "encoders.efficientnet-lite0.weights=$DATA/w.pth",
        "train.init_from=~/w.pt",
        "sample.vae=~/vaes/mine",
    )
    config = load_config(path, settings, needs=())
    assert config.dataset.path == images
    assert config.cache.path == images.parent / "tiny-tiny.zarr"
    assert config.train.run == tmp_path / "home/runs/$NAME 5$ ~"
    assert config.encoders["efficientnet-lite0"].weights == images / "w.pth"
    assert config.train.init_from == tmp_path / "home/w.pt"
    assert config.sample.vae == str(tmp_path / "home/vaes/mine")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cache.path=$NOWHERE/x.zarr", "the environment variable 'NOWHERE' is not set"),
        ("latents.vae=${NOWHERE}/vae", "the environment variable 'NOWHERE' is not set"),
        ("train.run=$EMPTY/run", "train.run: the environment variable 'EMPTY' is empty"),
        ("train.run=~nobody-here/run", "train.run: '~nobody-here' has no home"),
    ],
)
def test_a_variable_or_a_home_that_there_is_none_of_is_named(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny(override)


def test_a_path_is_expanded_once(
    tiny: Callable[..., Config], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "$WHERE")
    (images / "$WHERE").mkdir()
    config = tiny("cache.path=$WHERE", f"evaluate.reference={literal(images / '$WHERE')}")
    assert config.cache.path == Path("$WHERE")
    assert config.evaluate.reference == images / "$WHERE"
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_every_preset_is_a_valid_configuration(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_text(PRESETS[preset].read_text())
    document = tomllib.loads(path.read_text())
    if "path" in document["dataset"]:
        (tmp_path / document["dataset"]["path"]).mkdir(parents=True)
    for encoder in document.get("encoders", {}).values():
        if "weights" in encoder:
            (tmp_path / encoder["weights"]).touch()
    load_config(path)


def test_the_configuration_in_the_repository_is_the_demo() -> None:
    assert (ROOT / "pipeline.toml").read_text() == PRESETS["demo"].read_text()


def test_the_paper_s_settings_are_the_defaults_of_its_preset(tmp_path: Path) -> None:
    shutil.copy(str(PRESETS["imagenet256-sit-xl2"]), tmp_path / "pipeline.toml")
    (tmp_path / "ILSVRC/Data/CLS-LOC/train").mkdir(parents=True)
    config = load_config(tmp_path / "pipeline.toml")
    train = config.train
    (term,) = train.align
    assert (train.model, term.kind, term.depths, term.weight) == ("SiT-XL/2", "repa", (8,), 0.5)
    assert (train.batch_size, train.learning_rate, train.ema_decay) == (256, 1e-4, 0.9999)
    assert (config.sample.solver, config.sample.steps) == ("euler-maruyama", 250)
    assert config.encode.token_grid("dinov2-vit-b") == 16


def test_a_relative_autoencoder_lies_beside_the_configuration(
    tiny: Callable[..., Config], tiny_vae: Path, images: Path
) -> None:
    shutil.copytree(tiny_vae, images.parent / "vaes" / "mine")
    config = tiny()
    path = images.parent / "pipeline.toml"
    path.write_text(path.read_text().replace(str(tiny_vae), "./vaes/mine"))
    config = load_config(path)
    assert config.latents.location == str(images.parent / "vaes" / "mine")
    assert config.latents.downsampling == 4
    assert config.latents.column == "latents/mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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
            ["train.compute.micro_batches=2", "train.align.0.kind=nt-xent"],
            "train.compute.micro_batches: 'nt-xent' needs the whole batch at once",
        ),
        (["train.compute.attention=cudnn"], "attention: 'cudnn' needs deterministic = false"),
        (["train.compute.compile=max-autotune"], "'max-autotune' needs deterministic = false"),
        (
            ["train.compute.attention=math", "train.compute.fused_attention=false"],
            "train.compute.attention: 'math' needs fused_attention = true",
        ),
        (
            ["train.compute.reshard=true", "train.compute.parallel=ddp"],
            "train.compute.reshard: with parallel = 'ddp' each process holds all weights",
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
