from pathlib import Path

import numpy as np
import pytest

from stages.encode.images import decode
from stages.encode.sources import SOURCES, SourceError, image_folder, sample_photos


@pytest.fixture(params=sorted(SOURCES))
def source(request: pytest.FixtureRequest, images: Path) -> object:
    return SOURCES[request.param](images, 32)


def test_every_source_lists_unique_keys_with_labels_and_images(source: object) -> None:
    assert len(set(source.keys)) == len(source.keys) == len(source.labels)
    assert source.labels.dtype == np.int32
    assert set(source.labels.tolist()) == set(range(len(source.classes)))
    for index in (0, len(source.keys) // 2, len(source.keys) - 1):
        assert decode(source.read(index)).mode == "RGB"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_source_is_stable(name: str, images: Path) -> None:
    one, other = (SOURCES[name](images, 32) for _ in range(2))
    assert one.keys == other.keys
    assert one.read(5) == other.read(5)


def test_an_image_folder_is_listed_as_torchvision_lists_it(images: Path) -> None:
    import stages.vision  # noqa: F401, I001 - torchvision imports only after it
    from torchvision.datasets import ImageFolder

    (images / "class1" / "deep").mkdir()
    (images / "class1" / "deep" / "A.JPEG").write_bytes((images / "class1" / "0.jpg").read_bytes())
    (images / "class1" / "notes.txt").write_text("no image")
    theirs = ImageFolder(str(images))
    ours = image_folder(images, 32)
    assert [str(images / key) for key in ours.keys] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert list(ours.classes) == theirs.classes


def test_the_sample_photos_are_at_least_a_thousand_crops_of_64_px() -> None:
    source = sample_photos(None, 64)
    assert len(source.keys) >= 1000
    assert decode(source.read(700)).size == (64, 64)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no folder"):
        image_folder(tmp_path / "nothing", 32)
    with pytest.raises(SourceError, match="has no images in class folders"):
        image_folder(tmp_path, 32)
