"""Captions of data sets: what every source gives, and builds that make tokens of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from faults import flip
from packing import opened, write_tar, write_zip
from texts import captions_of, coco, save_text_model
from tiny_cache import content

from cache.captions import CAPTIONS, LINKS, Captions
from cache.errors import RowsChangedError, StaleCacheError
from cache.reader import Cache
from cache.verify import find_all_faults
from pipeline.config import Config
from stages.encode.build import BuildSummary, build
from stages.encode.build_options import BuildOptions, Cluster
from stages.encode.images.sources import Source, SourceError
from stages.encode.measuring.fidelity import measure_fidelity
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.text_encoder import TextEncoder

CPU = torch.device("cpu")
FLAT = {"classes": False}


def files_of(images: Path) -> dict[str, bytes]:
    """The images by flat names, in order."""
    paths = sorted(images.rglob("*.jpg"))
    return {f"{path.parent.name}-{path.name}": path.read_bytes() for path in paths}


def told(source: Source) -> dict[str, list[str]]:
    assert source.captions is not None
    return {
        Path(key).stem.rpartition("-")[2]: list(source.captions(place))
        for place, key in enumerate(source.keys)
    }


def flat_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, image in files.items():
        (folder / name).write_bytes(image)
    return folder


def texts(name: str) -> list[str]:
    return captions_of(name.rpartition("-")[2])


def as_text(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    path = flat_folder(folder / "flat", files)
    for name in files:
        (path / name).with_suffix(".txt").write_text("\n".join(texts(name)))
    return "imagefolder", path, FLAT


def as_metadata(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    path = flat_folder(folder / "flat", files)
    lines = [
        json.dumps({"file_name": name, "text": text}) for name in files for text in texts(name)
    ]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return "imagefolder", path, FLAT


def as_coco(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    path = flat_folder(folder / "flat", files)
    listing = coco(list(files), {name: texts(name) for name in files})
    (folder / "captions_train2014.json").write_text(listing)
    return "imagefolder", path, {**FLAT, "captions": folder / "captions_train2014.json"}


def as_karpathy(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    path = flat_folder(folder / "flat", files)
    images = [
        {"filename": name, "sentences": [{"raw": text, "tokens": []} for text in texts(name)]}
        for name in files
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return "imagefolder", path, {**FLAT, "captions": folder / "dataset_coco.json"}


def as_zip(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    beside = {name.replace(".jpg", ".txt"): "\n".join(texts(name)).encode() for name in files}
    return "zip", write_zip(folder / "x.zip", {**files, **beside}), FLAT


def as_img2dataset(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    """Two shards; the JSON of a sample repeats its caption."""
    (folder / "shards").mkdir()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for name in list(files)[shard::2]:
            text = "\n".join(texts(name))
            members[name] = files[name]
            members[name.replace(".jpg", ".txt")] = text.encode()
            entry = {"caption": text, "key": name, "status": "success", "width": 40}
            members[name.replace(".jpg", ".json")] = json.dumps(entry).encode()
        write_tar(folder / "shards" / f"{shard:05d}.tar", members)
    return "tar", folder / "shards", FLAT


def as_json_samples(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    members: dict[str, bytes] = {}
    for name, image in files.items():
        members[name] = image
        entry = {"label": 1, "captions": texts(name)}
        members[name.replace(".jpg", ".json")] = json.dumps(entry).encode()
    return "tar", write_tar(folder / "x.tar", members), {}


def as_parquet(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    table = pa.table(
        {
            "image": [{"bytes": image, "path": name} for name, image in files.items()],
            "captions": [texts(name) for name in files],
        }
    )
    pq.write_table(table, folder / "x.parquet", row_group_size=4)
    return "parquet", folder / "x.parquet", FLAT


def as_structs(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    """As Hugging Face's copy of COCO has them, with a name of their own."""
    table = pa.table(
        {
            "image": [{"bytes": image, "path": name} for name, image in files.items()],
            "label": [1] * len(files),
            "said": [[{"raw": text, "sentid": 1} for text in texts(name)] for name in files],
        }
    )
    pq.write_table(table, folder / "x.parquet", row_group_size=4)
    return "parquet", folder / "x.parquet", {"caption_column": "said"}


def as_arrow(files: dict[str, bytes], folder: Path) -> tuple[str, Path, dict[str, Any]]:
    table = pa.table(
        {
            "image": [{"bytes": image, "path": name} for name, image in files.items()],
            "sentences": [texts(name) for name in files],
        }
    )
    path = folder / "x.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, 4)
    return "arrow", path, FLAT


@pytest.mark.parametrize(
    "pack",
    [
        *(as_text, as_metadata, as_coco, as_karpathy, as_zip, as_img2dataset, as_json_samples),
        *(as_parquet, as_structs, as_arrow),
    ],
)
def test_every_source_gives_the_captions_of_each_image(
    images: Path, tmp_path: Path, pack: Callable[..., tuple[str, Path, dict[str, Any]]]
) -> None:
    files = files_of(images)
    kind, path, settings = pack(files, tmp_path)
    source = opened(kind, path, **settings)
    assert len(source.keys) == len(files)
    assert not str(source.left_out)
    assert sorted(map(source.read, range(len(files)))) == sorted(files.values())
    assert source.captions is not None
    # COCO's library gives the annotations of an image in the order of the file.
    for place in range(len(files)):
        name = next(name for name, image in files.items() if image == source.read(place))
        assert list(source.captions(place)) == texts(name), name


def test_a_file_of_captions_of_other_images_is_refused(images: Path, tmp_path: Path) -> None:
    path = flat_folder(tmp_path / "flat", files_of(images))
    listing = tmp_path / "c.json"
    listing.write_text(coco(["a.jpg"], {"a.jpg": ["x"]}))
    with pytest.raises(SourceError, match=r"c\.json: it names none of the images, .* but a\.jpg"):
        opened("imagefolder", path, captions=listing, **FLAT)
    listing.write_text("nothing of the kind")
    with pytest.raises(SourceError, match=r"c\.json: neither COCO's JSON"):
        opened("imagefolder", path, captions=listing, **FLAT)
    with pytest.raises(SourceError, match="cannot be read"):
        opened("imagefolder", path, captions=tmp_path / "none.json", **FLAT)


def made(config: Config, **options: Any) -> BuildSummary:
    return build(config.encode, CPU, BuildOptions(**options))


def texts_of(config: Config) -> Captions:
    return Captions(config.cache.path, Cache(config.cache.path).rows)


class Watched:
    """Counts what encoders are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.texts = 0, 0
        features, tokens = FrozenEncoder.features, TextEncoder.features

        def of_images(encoder: Any, images: torch.Tensor) -> Any:
            self.images += len(images)
            return features(encoder, images)

        def of_texts(encoder: Any, ids: torch.Tensor) -> Any:
            self.texts += len(ids)
            return tokens(encoder, ids)

        monkeypatch.setattr(FrozenEncoder, "features", of_images)
        monkeypatch.setattr(TextEncoder, "features", of_texts)


def test_a_build_caches_the_tokens_of_every_text_once(captioned: Callable[..., Config]) -> None:
    config = captioned()
    summary = made(config)
    assert summary.missing == 0
    captions, rows = texts_of(config), Cache(config.cache.path).rows
    for row, key in enumerate(rows.key.tolist()):
        assert captions.of(row) == captions_of(key)
    every = {text for key in rows.key.tolist() for text in captions_of(key)}
    assert set(captions.texts.tolist()) == every
    assert len(captions.texts) == len(every)
    column = captions.cache.column("features/tiny", verify=True)
    encoder = TextEncoder("tiny", config.texts["tiny"], CPU)
    fresh = encoder.features(encoder.tokenised(captions.texts.tolist()))
    stored = column.read("tokens", np.arange(len(every)))
    np.testing.assert_allclose(stored, fresh["tokens"].half().numpy(), atol=2e-3)
    assert column.read("length", np.arange(len(every))).tolist() == fresh["length"].tolist()
    empty = encoder.features(encoder.tokenised([""]))
    np.testing.assert_array_equal(
        column.column.constants["empty_tokens"], empty["tokens"][0].numpy()
    )
    assert find_all_faults(config.cache.path, 2) == []
    plain = zarr.open_group(config.cache.path, mode="r")["captions/features/tiny/tokens"]
    np.testing.assert_array_equal(np.asarray(plain[...]), stored)


def test_padding_is_not_stored_where_it_says_nothing(
    captioned: Callable[..., Config], tmp_path: Path
) -> None:
    folder = save_text_model(tmp_path / "bert", "bert")
    config = captioned(f"texts.tiny.model={folder}")
    made(config)
    captions = texts_of(config)
    column = captions.cache.column("features/tiny", verify=True)
    tokens, length = (
        column.read(name, np.arange(len(captions.texts))) for name in ("tokens", "length")
    )
    assert tokens.shape[1:] == (120, 32)
    for own, count in zip(tokens, length.tolist(), strict=True):
        assert not own[count:].any()
        assert own[:count].any(axis=1).all()
    shards = column.column.folder / "tokens"
    stored = sum(file.stat().st_size for file in shards.glob("c.*"))
    real = sum(length.tolist()) * 32 * 2
    assert stored < 1.3 * real + 200 * len(captions.texts)
    plain = zarr.open_array(shards, mode="r")
    np.testing.assert_array_equal(np.asarray(plain[...]), tokens)


def test_a_second_text_encoder_encodes_no_image_and_needs_none(
    captioned: Callable[..., Config],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = "dataset.pixels=true"
    made(captioned(kept))
    folder = save_text_model(tmp_path / "t5", "t5")
    shutil.rmtree(images)
    watched = Watched(monkeypatch)
    config = captioned(kept, f"texts.second.model={folder}")
    summary = made(config)
    count = len(texts_of(config).texts)
    # The empty text, one by which shapes are known, and all texts once.
    assert (watched.images, watched.texts) == (0, count + 2)
    assert summary.missing == 0
    assert Cache(config.cache.path / CAPTIONS).states().keys() == {
        "features/second",
        "features/tiny",
    }


def test_captions_that_are_added_encode_themselves_alone(
    captioned: Callable[..., Config], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = captioned()
    made(config)
    before = content(config.cache.path / CAPTIONS)
    count = len(texts_of(config).texts)
    path = images / "class0" / "0.txt"
    path.write_text(path.read_text() + "a new caption\n")
    watched = Watched(monkeypatch)
    made(captioned())
    assert (watched.images, watched.texts) == (0, 1)
    captions = texts_of(config)
    assert len(captions.texts) == count + 1
    assert captions.texts.tolist()[-1] == "a new caption"
    same = {k: v for k, v in content(config.cache.path / CAPTIONS).items() if before.get(k) == v}
    assert any(name.startswith("features/tiny/tokens/c.0") for name in same)
    made(captioned())
    assert watched.texts == 1


def test_captions_that_changed_or_vanished_are_taken_over_when_asked(
    captioned: Callable[..., Config],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = captioned()
    made(config)
    count = len(texts_of(config).texts)
    (images / "class0" / "1.txt").write_text("quite another\n")
    (images / "class1" / "2.txt").unlink()
    before = content(config.cache.path)
    with pytest.raises(
        RowsChangedError, match=r"2 images have other captions than before: class\d/\d\.jpg, class"
    ):
        made(captioned())
    assert content(config.cache.path) == before
    watched = Watched(monkeypatch)
    made(captioned(), update=True)
    assert (watched.images, watched.texts) == (0, 1)
    assert "captions taken over of 2 images" in capsys.readouterr().err
    captions, keys = texts_of(config), Cache(config.cache.path).rows.key.tolist()
    assert captions.of(keys.index("class0/1.jpg")) == ["quite another"]
    assert captions.of(keys.index("class1/2.jpg")) == []
    assert len(captions.texts) == count + 1
    assert find_all_faults(config.cache.path, 2) == []


def test_another_model_or_setting_of_a_text_encoder_is_stale(
    captioned: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(captioned())
    with pytest.raises(StaleCacheError, match="layer: cache -1, configuration -2"):
        made(captioned("texts.tiny.layer=-2"))
    other = save_text_model(tmp_path / "other", "clip", num_hidden_layers=1)
    with pytest.raises(StaleCacheError, match="weights_sha256"):
        made(captioned(f"texts.tiny.model={other}"))
    watched = Watched(monkeypatch)
    config = captioned(f"texts.tiny.model={other}")
    made(config, rebuild=frozenset({"captions/features/tiny"}))
    assert watched.images == 0
    assert watched.texts > len(texts_of(config).texts)
    assert find_all_faults(config.cache.path, 2) == []


def damage_tokens(texts: Path) -> None:
    flip(texts / "features" / "tiny" / "tokens" / "c.0.0.0", 1000)


def damage_links(texts: Path) -> None:
    zarr.open_array(texts / LINKS / "text", mode="r+")[0] = 3


def damage_texts(texts: Path) -> None:
    array = zarr.open_array(texts / "rows" / "key", mode="r+")
    array[1] = "another text than was encoded"


@pytest.mark.parametrize("damage", [damage_tokens, damage_links, damage_texts])
def test_damage_to_captions_is_found_and_repaired(
    captioned: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    config = captioned()
    made(config)
    told = [texts_of(config).of(row) for row in range(len(Cache(config.cache.path).rows))]
    damage(config.cache.path / CAPTIONS)
    faults = find_all_faults(config.cache.path, 2)
    assert faults
    assert all(fault.where.startswith("captions/") for fault in faults)
    watched = Watched(monkeypatch)
    summary = made(captioned(), repair=True)
    assert watched.images == 0
    assert summary.damaged == ()
    assert find_all_faults(config.cache.path, 2) == []
    assert [texts_of(config).of(row) for row in range(len(told))] == told


def test_int8_tokens_are_true_and_compared_like_others(captioned: Callable[..., Config]) -> None:
    config = captioned("texts.tiny.storage=int8")
    made(config)
    measured = {one.array: one for one in measure_fidelity(config.encode, 8, CPU)}
    found = measured["captions/features/tiny/tokens"]
    assert found.storage == "int8"
    assert 0.9995 < found.minimum <= found.mean <= 1.0001


def test_a_data_set_without_captions_is_refused(
    captioned: Callable[..., Config], images: Path
) -> None:
    for path in images.rglob("*.txt"):
        path.unlink()
    with pytest.raises(SourceError, match="no image of the data set has a caption"):
        made(captioned())


def test_parts_of_a_build_make_parts_of_the_texts(captioned: Callable[..., Config]) -> None:
    whole, parts = captioned("cache.path=whole.zarr"), captioned()
    made(whole)
    for start in range(3):
        summary = made(parts, shards=slice(start, start + 1))
    assert summary.missing == 0
    assert content(parts.cache.path) == content(whole.cache.path)


@pytest.mark.slow
def test_workers_of_a_cluster_encode_texts_too(captioned: Callable[..., Config]) -> None:
    alone, shared = captioned("cache.path=alone.zarr"), captioned()
    made(alone)
    summary = made(shared, cluster=Cluster(workers=2))
    assert summary.missing == 0
    assert content(shared.cache.path) == content(alone.cache.path)
