import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT

from stages.evaluate.results import (
    Result,
    ResultsError,
    read_records,
    read_results,
    results_path,
    write_results,
)

DRAWN = {"checkpoint": "step-00000002", "checkpoint_sha256": "a" * 64, "steps": 10}
FID = Result(
    *("fid", 40.0, None, 6, "/data/ref.npz", 21), network="i" * 64, weights_sha256="i" * 64
)
WRITER = """
import sys
from pathlib import Path
from stages.evaluate.results import Result, write_results
for number in range(20):
    result = Result(f"fd_{sys.argv[2]}-{number}", 1.0, None, 6, None, None)
    write_results(Path(sys.argv[1]), [result], {}, {})
"""


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    return folder


def keep(samples: Path, *results: Result, **drawn: object) -> None:
    write_results(samples, results, {**DRAWN, **drawn}, {})


def test_another_metric_joins_those_that_are_there(samples: Path) -> None:
    keep(samples, FID)
    other = replace(FID, metric="fd_dinov2-vit-b", value=5.0, network="d" * 64)
    keep(samples, other)
    assert read_results(samples) == [FID, other]


def test_the_same_measurement_again_replaces_the_first(samples: Path) -> None:
    keep(samples, FID, replace(FID, metric="sfid", value=7.0))
    again = replace(FID, value=41.0, remarks=("said later",))
    keep(samples, again)
    assert read_results(samples) == [replace(FID, metric="sfid", value=7.0), again]


@pytest.mark.parametrize(
    "other",
    [
        {"reference": "/data/other.npz"},
        {"images": 9},
        {"reference_images": 10},
        {"network": "n" * 64, "weights_sha256": "n" * 64},
        # The same weights, with images of another size.
        {"network": "n" * 64},
    ],
)
def test_what_was_measured_otherwise_is_kept_beside(
    samples: Path, other: dict[str, object]
) -> None:
    keep(samples, FID)
    changed = replace(FID, value=30.0, **other)
    keep(samples, changed)
    assert read_results(samples) == [FID, changed]


def test_results_of_other_images_in_the_same_place_are_kept_apart(samples: Path) -> None:
    keep(samples, FID)
    keep(samples, replace(FID, value=30.0), checkpoint_sha256="b" * 64)
    keep(samples, replace(FID, metric="sfid"), checkpoint_sha256="b" * 64)
    newest, earlier = read_records(samples)
    assert [result.value for result in newest.results] == [30.0, 40.0]
    assert newest.drawn["checkpoint_sha256"] == "b" * 64
    assert (earlier.drawn["checkpoint_sha256"], earlier.results) == ("a" * 64, [FID])
    keep(samples, replace(FID, value=40.5))
    newest, earlier = read_records(samples)
    assert [result.value for result in newest.results] == [40.5]
    assert [result.value for result in earlier.results] == [30.0, 40.0]


# As the version before wrote it.
OLD = {
    "samples": "samples",
    "drawn": DRAWN,
    "results": [
        {
            "metric": metric,
            "value": 40.0,
            "deviation": None,
            "images": 6,
            "reference": "ref.npz",
            "reference_images": 21,
            "remarks": ["fewer samples than the 112 features, which makes it too large"],
        }
        for metric in ("fid", "fd_dinov2-vit-b")
    ],
    "weights_sha256": {"inception": "i" * 64, "fd_dinov2-vit-b": "d" * 64},
    "versions": {"repa-cache": "0.1.0"},
}


def test_files_of_earlier_versions_are_read_and_added_to(samples: Path) -> None:
    results_path(samples).write_text(json.dumps(OLD))
    (samples.parent / "ref.npz").touch()
    fid, distance = read_results(samples)
    assert (fid.weights_sha256, distance.weights_sha256) == ("i" * 64, "d" * 64)
    assert (fid.versions, fid.floor) == ({"repa-cache": "0.1.0"}, None)
    # A relative path is one from where the command was typed, which is above the samples.
    assert fid.reference == str(samples.parent / "ref.npz")
    again = replace(FID, value=40.1, reference=fid.reference)
    keep(samples, again)
    assert read_results(samples) == [distance, again]


def test_processes_that_measure_at_once_lose_nothing(samples: Path) -> None:
    root = str(ROOT)
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(samples), name], cwd=root)
        for name in ("a", "b", "c")
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    found = {result.metric for result in read_results(samples)}
    assert found == {f"fd_{name}-{number}" for name in "abc" for number in range(20)}


@pytest.mark.parametrize("content", ["{", "[]", '{"results": [{"metric": "fid"}]}'])
def test_a_file_that_is_damaged_is_named_and_left(samples: Path, content: str) -> None:
    results_path(samples).write_text(content)
    with pytest.raises(ResultsError, match=r"samples\.json holds no results that can be read"):
        keep(samples, FID)
    assert results_path(samples).read_text() == content


def test_a_reference_is_shown_short_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = replace(FID, reference=str(tmp_path / "ref.npz"), floor=1.5)
    assert result.note == "6 samples against 21 images of ref.npz; floor 1.5"
    assert FID.against == "against 21 images of /data/ref.npz"
