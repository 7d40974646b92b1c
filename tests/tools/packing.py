"""The same images as every kind of data set keeps them."""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from stages.encode.images.sources import SOURCES, Source, open_dataset


def opened(source: str, path: Path | None, resolution: int = 32, **options: Any) -> Source:
    """The data set at a path, as a source with these settings finds it."""
    given: dict[str, Any] = {"source": source, "resolution": resolution, **options}
    if path is not None:
        given["path"] = path
    return open_dataset(SOURCES[source].settings(**given))


@dataclass(frozen=True)
class Packed:
    """images, classes: the bytes and the class of each key, in the order of the data set."""

    source: str
    path: Path | None
    images: Mapping[str, bytes]
    classes: Mapping[str, str]

    def open(self) -> Source:
        return opened(self.source, self.path)

    def digests(self) -> list[str]:
        return [digest(content) for content in self.images.values()]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_digests(source: str, path: Path | None) -> list[str]:
    """What a process finds that has nothing but the configuration."""
    found = opened(source, path)
    return [digest(found.read(index)) for index in range(len(found.keys))]


def tree(images: Path) -> dict[str, bytes]:
    """Class folders with one level of files, as torchvision orders them."""
    return {
        file.relative_to(images).as_posix(): file.read_bytes()
        for folder in sorted(images.iterdir())
        for file in sorted(folder.iterdir())
    }


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.write_bytes(tar_bytes(files, kind))
    return path


def tar_bytes(files: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(mode="w", fileobj=stream, format=kind) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def shuffled(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files in another order."""
    names = list(files)
    np.random.default_rng(0).shuffle(names)
    return {name: files[name] for name in names}


def folder_of(key: str) -> str:
    return key.partition("/")[0]


def by_folder(files: Mapping[str, bytes]) -> dict[str, str]:
    return {key: folder_of(key) for key in files}


def numbers(files: Mapping[str, bytes]) -> list[int]:
    """The label of each file of a tree."""
    classes = sorted(set(by_folder(files).values()))
    return [classes.index(folder_of(key)) for key in files]


def edm2(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, str], bytes]:
    """Numbered names as EDM2's and REPA's tools give them; their classes, and dataset.json."""
    names = [f"{number // 8:05d}/img{number:08d}.jpg" for number in range(len(files))]
    labels = numbers(files)
    pairs = list(zip(names, labels, strict=True))
    listing = json.dumps({"labels": pairs[::-1]}).encode()
    classes = {name: str(label) for name, label in pairs}
    return dict(zip(names, files.values(), strict=True)), classes, listing


def imagefolder(images: Path, _folder: Path) -> Packed:
    return Packed("imagefolder", images, tree(images), by_folder(tree(images)))


def zip_stored(images: Path, folder: Path) -> Packed:
    files = tree(images)
    path = write_zip(folder / "x.zip", shuffled(files))
    return Packed("zip", path, files, by_folder(files))


def zip_deflated(images: Path, folder: Path) -> Packed:
    files = tree(images)
    inside = {f"data/train/{name}": content for name, content in shuffled(files).items()}
    path = write_zip(folder / "x.zip", inside, zipfile.ZIP_DEFLATED)
    return Packed("zip", path / "data" / "train", files, by_folder(files))


def zip_edm2(images: Path, folder: Path) -> Packed:
    files, classes, listing = edm2(tree(images))
    path = write_zip(folder / "x.zip", {**shuffled(files), "dataset.json": listing})
    return Packed("zip", path, files, classes)


def tar_of_folders(images: Path, folder: Path) -> Packed:
    files = tree(images)
    inside = {f"./train/{name}": content for name, content in shuffled(files).items()}
    return Packed("tar", write_tar(folder / "x.tar", inside) / "train", files, by_folder(files))


def tar_of_tars(images: Path, folder: Path) -> Packed:
    files = tree(images)
    classes = sorted(set(by_folder(files).values()), reverse=True)
    tars = {
        f"{name}.tar": tar_bytes(
            {
                key.partition("/")[2]: content
                for key, content in shuffled(files).items()
                if folder_of(key) == name
            },
            tarfile.GNU_FORMAT,
        )
        for name in classes
    }
    return Packed("tar", write_tar(folder / "x.tar", tars), files, by_folder(files))


def samples(
    files: Mapping[str, bytes], labels: Sequence[int], *, as_json: bool
) -> dict[str, bytes]:
    """Files of a webdataset shard."""
    members: dict[str, bytes] = {}
    for (key, content), label in zip(files.items(), labels, strict=True):
        name = key.replace("/", "_").removesuffix(".jpg")
        if as_json:
            members[f"{name}.json"] = json.dumps({"label": label, "width": 40}).encode()
        members[f"{name}.jpg"] = content
        if not as_json:
            members[f"{name}.cls"] = f"{label}\n".encode()
    return members


def tar_shard(images: Path, folder: Path) -> Packed:
    files = shuffled(tree(images))
    labels = numbers(files)
    path = write_tar(folder / "x.tar", samples(files, labels, as_json=False))
    keys = [key.replace("/", "_") for key in files]
    return Packed(
        "tar",
        path,
        dict(zip(keys, files.values(), strict=True)),
        dict(zip(keys, map(str, labels), strict=True)),
    )


def tar_shards(images: Path, folder: Path) -> Packed:
    files = tree(images)
    labels = numbers(files)
    contents: dict[str, bytes] = {}
    classes: dict[str, str] = {}
    for shard in range(3):
        part = dict(list(files.items())[shard::3])
        members = samples(part, labels[shard::3], as_json=True)
        name = f"train-{shard:06d}.tar"
        write_tar(folder / name, members)
        keys = [f"{name}/{member}" for member in members if member.endswith(".jpg")]
        contents.update(zip(keys, part.values(), strict=True))
        classes.update(zip(keys, map(str, labels[shard::3]), strict=True))
    return Packed("tar", folder, contents, classes)


def write_parquet(
    path: Path,
    images: Sequence[object],
    labels: Sequence[int | None],
    *,
    names: Sequence[str] | None = None,
    rows: int = 4,
) -> Path:
    table = image_table(images, pa.array(labels, pa.int64()), names)
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)
    return path


def image_table(
    images: Sequence[object],
    labels: Sequence[object] | pa.Array,
    names: Sequence[str] | None = None,
) -> pa.Table:
    """Columns and metadata as the library `datasets` has them."""
    table = pa.table({"image": pa.array(images), "label": pa.array(labels)})
    if names is None:
        return table
    label = {"names": list(names), "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(info)})


def write_arrow(path: Path, table: pa.Table, rows: int = 4) -> Path:
    """A stream, as `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, pa.RecordBatchStreamWriter(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def save_to_disk(
    folder: Path,
    images: Sequence[object],
    labels: Sequence[object],
    names: Sequence[str] | None = None,
    shards: int = 2,
) -> Path:
    """What `Dataset.save_to_disk` writes."""
    table = image_table(images, labels, names)
    bounds = [len(table) * shard // shards for shard in range(shards + 1)]
    files = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    for file, start, stop in zip(files, bounds, bounds[1:], strict=False):
        write_arrow(folder / file, table.slice(start, stop - start))
    state = {"_data_files": [{"filename": file} for file in files], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def parquet_of_datasets(images: Path, folder: Path) -> Packed:
    files = shuffled(tree(images))
    keys = {key: key.replace("/", "_") for key in files}
    rows = [{"bytes": content, "path": keys[key]} for key, content in files.items()]
    labels, names = numbers(files), sorted(set(by_folder(files).values()))
    for number, part in enumerate((slice(0, 11), slice(11, None))):
        path = folder / f"train-{number:05d}-of-00002.parquet"
        write_parquet(path, rows[part], labels[part], names=names)
    write_parquet(folder / "validation-00000-of-00001.parquet", [b"x"], [0])
    return Packed(
        "parquet",
        folder / "train-*.parquet",
        {keys[key]: content for key, content in files.items()},
        {keys[key]: folder_of(key) for key in files},
    )


def parquet_of_bytes(images: Path, folder: Path) -> Packed:
    files = tree(images)
    labels = numbers(files)
    path = write_parquet(folder / "x.parquet", list(files.values()), labels)
    keys = [f"x.parquet/{row}" for row in range(len(files))]
    return Packed(
        "parquet",
        path,
        dict(zip(keys, files.values(), strict=True)),
        dict(zip(keys, map(str, labels), strict=True)),
    )


def arrow_of_datasets(images: Path, folder: Path) -> Packed:
    files = shuffled(tree(images))
    rows = [{"bytes": content, "path": key.rpartition("/")[2]} for key, content in files.items()]
    names = sorted(set(by_folder(files).values()))
    save_to_disk(folder, rows, numbers(files), names)
    first = len(files) // 2
    keys = [f"data-00000-of-00002.arrow/{row}" for row in range(first)]
    keys += [f"data-00001-of-00002.arrow/{row}" for row in range(len(files) - first)]
    return Packed(
        "arrow",
        folder,
        dict(zip(keys, files.values(), strict=True)),
        dict(zip(keys, map(folder_of, files), strict=True)),
    )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def repa(images: Path, folder: Path) -> Packed:
    files, classes, listing = edm2(tree(images))
    write_files(folder / "images", {**files, "dataset.json": listing})
    for number in range(len(files)):
        path = folder / "vae-sd" / f"{number // 8:05d}" / f"img-mean-std-{number:08d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((8, 4, 4), number, np.float32))
    names = [f"{n // 8:05d}/img-mean-std-{n:08d}.npy" for n in range(len(files))]
    pairs = [[name, int(label)] for name, label in zip(names, classes.values(), strict=True)]
    (folder / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return Packed("repa", folder, files, classes)


def repa_e(images: Path, folder: Path) -> Packed:
    """The same in HDF5, where bytes are numpy's strings or numbers."""
    packed = repa(images, folder)
    for name in ("images", "vae-sd"):
        into_hdf5(folder / name)
        shutil.rmtree(folder / name)
    return packed


def into_hdf5(folder: Path) -> Path:
    """What lies in a folder as REPA-E keeps it beside that, `.npy` as arrays."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.*") if file.is_file()]
    path = folder.with_name(f"{folder.name}.h5")
    with h5py.File(path, "w") as file:
        for number, name in enumerate(names):
            content = (folder / name).read_bytes()
            stored: Any = np.array(content, "S") if number % 2 else np.frombuffer(content, np.uint8)
            file.create_dataset(
                name, data=np.load(folder / name) if name.endswith(".npy") else stored
            )
    path.with_name(f"{path.stem}_h5.json").write_text(json.dumps(names[::-1]))
    return path


def lightningdit(images: Path, folder: Path) -> Packed:
    """Latents of the images' number, and no images: the bytes tell them apart."""
    files = tree(images)
    labels = numbers(files)
    contents, classes = {}, {}
    for shard, part in enumerate(np.array_split(np.arange(len(files)), 3)):
        name = f"latents_rank00_shard{shard:03}"
        latents = np.broadcast_to(part[:, None, None, None], (len(part), 4, 8, 8))
        tensors = {
            "latents": latents.astype(np.float32),
            "latents_flip": -latents.astype(np.float32),
            "labels": np.array([labels[number] for number in part.tolist()]),
        }
        save_file(tensors, folder / f"{name}.safetensors")
        for place, number in enumerate(part.tolist()):
            contents[f"{name}/{place:06}"] = tensors["latents"][place].tobytes()
            classes[f"{name}/{place:06}"] = str(labels[number])
    return Packed("lightningdit", folder, contents, classes)


def u_vit(images: Path, folder: Path) -> Packed:
    """Crops and their features by number: moments, the tokens of two captions, and of none."""
    contents = {}
    for number, image in enumerate(tree(images).values()):
        contents[f"{number}.png"] = image
        np.save(folder / f"{number}.npy", np.full((8, 4, 4), -number, np.float32))
        for caption in range(2):
            np.save(folder / f"{number}_{caption}.npy", np.full((5, 6), number, np.float32))
    write_files(folder, contents)
    np.save(folder / "empty_context.npy", np.zeros((5, 6), np.float32))
    return Packed("u-vit", folder, contents, dict.fromkeys(contents, "all"))


def unpacked_edm2(images: Path, folder: Path) -> Packed:
    files, classes, listing = edm2(tree(images))
    write_files(folder, {**files, "dataset.json": listing})
    return Packed("repa", folder, files, classes)


def sample_photos(_images: Path, _folder: Path) -> Packed:
    source = opened("sample-photos", None)
    contents = {key: source.read(index) for index, key in enumerate(source.keys)}
    return Packed("sample-photos", None, contents, by_folder(contents))


# Every source in each of its forms.
PACKERS: Mapping[str, Callable[[Path, Path], Packed]] = {
    packer.__name__: packer
    for packer in (
        imagefolder,
        zip_stored,
        zip_deflated,
        zip_edm2,
        tar_of_folders,
        tar_of_tars,
        tar_shard,
        tar_shards,
        parquet_of_datasets,
        parquet_of_bytes,
        arrow_of_datasets,
        repa,
        repa_e,
        lightningdit,
        u_vit,
        unpacked_edm2,
        sample_photos,
    )
}


# What people and systems leave in data sets, and the name by which all of it is left out.
JUNK = {
    "class0/._1.jpg": "class0/._1.jpg",
    ".ipynb_checkpoints/1-checkpoint.jpg": ".ipynb_checkpoints/",
    "class1/.ipynb_checkpoints/1-checkpoint.jpg": "class1/.ipynb_checkpoints/",
    "__MACOSX/class0/1.jpg": "__MACOSX/",
    "class1/@eaDir/1.jpg/thumbnail.jpg": "class1/@eaDir/",
    "cache.zarr/zarr.json": "cache.zarr/",
    "cache.zarr/rows/zarr.json": "cache.zarr/",
    "cache.zarr/rows/1.jpg": "cache.zarr/",
    "runs/demo/log.jsonl": "runs/demo/",
    "runs/demo/grids/step-1.png": "runs/demo/",
    "class2/notes.txt": "class2/notes.txt",
    "class2/animated.gif": "class2/animated.gif",
}


def _into_folder(packed: Packed, files: Mapping[str, str]) -> None:
    folder = packed.path / "images"
    write_files(folder if folder.is_dir() else packed.path, dict.fromkeys(files, b"junk"))


def _into_zip(packed: Packed, files: Mapping[str, str]) -> None:
    archive, _, inside = str(packed.path).partition(".zip")
    with zipfile.ZipFile(f"{archive}.zip", "a") as file:
        for name in files:
            file.writestr(f"{inside}/{name}".lstrip("/"), b"junk")


def _into_tar(packed: Packed, files: Mapping[str, str]) -> None:
    path = packed.path / "train-000000.tar" if packed.path.is_dir() else packed.path
    archive, _, inside = str(path).partition(".tar")
    with tarfile.open(f"{archive}.tar", "a") as file:
        for name in files:
            member = tarfile.TarInfo(f"{inside}/{name}".lstrip("/"))
            member.size = 4
            file.addfile(member, io.BytesIO(b"junk"))


# How files come into those that are made of files.
TREES: Mapping[str, Callable[[Packed, Mapping[str, str]], None]] = {
    "imagefolder": _into_folder,
    "zip_stored": _into_zip,
    "zip_deflated": _into_zip,
    "zip_edm2": _into_zip,
    "tar_of_folders": _into_tar,
    "tar_of_tars": _into_tar,
    "tar_shard": _into_tar,
    "tar_shards": _into_tar,
    "repa": _into_folder,
    "u_vit": _into_folder,
    "unpacked_edm2": _into_folder,
}
