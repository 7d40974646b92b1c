import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peak import peak_bytes
from torch import Tensor, nn

from stages.analyze.analysis_options import AnalysisError, ProbeOptions
from stages.analyze.probe import Accuracy, Probes, Split, probe, split_images

CLASSES = 7


def labelled(images: int, seed: int = 0) -> Tensor:
    return torch.randint(CLASSES, (images,), generator=torch.Generator().manual_seed(seed))


def clusters(labels: Tensor, features: int, apart: float, seed: int = 1) -> Tensor:
    """Gaussians around a mean per class."""
    generator = torch.Generator().manual_seed(seed)
    means = apart * torch.randn(CLASSES, features, generator=generator)
    return means[labels] + torch.randn(len(labels), features, generator=generator)


def judged(features: Tensor, labels: Tensor, options: ProbeOptions) -> list[Accuracy]:
    split = split_images(labels.numpy().astype(np.int32), options)
    return probe(features, labels, split, options, CLASSES)


def plain_probe(
    features: Tensor, labels: Tensor, split: Split, options: ProbeOptions
) -> tuple[Tensor, Tensor]:
    """Weights and held-out logits of one probe, by torch's own layers and loss."""
    norm = nn.BatchNorm1d(features.shape[1], eps=1e-6, affine=False)
    linear = nn.Linear(features.shape[1], CLASSES)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    trained, source = torch.from_numpy(split.trained), torch.Generator().manual_seed(options.seed)
    steps = max(1, len(trained) // options.batch_size)
    optimiser = torch.optim.Adam(linear.parameters(), options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * options.epochs)
    for _ in range(options.epochs):
        for rows in trained[torch.randperm(len(trained), generator=source)].tensor_split(steps):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(linear(norm(features[rows])), labels[rows])
            loss.backward()
            optimiser.step()
            schedule.step()
    return linear.weight.detach(), linear(norm.eval()(features[split.held_out])).detach()


def test_probes_side_by_side_are_plain_ones_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labelled(150)
    features = torch.stack([clusters(labels, 9, apart, seed=4) for apart in (0.3, 0.6, 2.0)])
    features[1] = 40 * features[1] + 100
    options = ProbeOptions(epochs=6, batch_size=32, seed=3)
    split = split_images(labels.numpy().astype(np.int32), options)
    made: list[Probes] = []
    real = Probes.__init__

    def kept(self: Probes, *sizes: int) -> None:
        real(self, *sizes)
        made.append(self)

    monkeypatch.setattr(Probes, "__init__", kept)
    found = probe(features, labels, split, options, CLASSES)
    for index, accuracy in enumerate(found):
        weight, logits = plain_probe(features[index], labels, split, options)
        torch.testing.assert_close(made[0].weight[index].detach(), weight.T, rtol=1e-3, atol=1e-4)
        right = logits.topk(5).indices == labels[split.held_out][:, None]
        assert accuracy.top1 == pytest.approx(float(right[:, 0].float().mean()))
        assert accuracy.top5 == pytest.approx(float(right.any(dim=1).float().mean()))


def test_classes_that_lie_apart_are_all_named() -> None:
    labels = labelled(400)
    (found,) = judged(clusters(labels, 20, 5.0)[None], labels, ProbeOptions())
    assert (found.top1, found.top5, found.images) == (1, 1, 80)
    assert found.error(found.top1) == 0


def test_random_labels_are_named_by_chance() -> None:
    features = clusters(labelled(2000), 10, 1.0)[None]
    (found,) = judged(features, labelled(2000, seed=9), ProbeOptions(epochs=20))
    assert found.top1 == pytest.approx(1 / CLASSES, abs=4 * found.error(1 / CLASSES))
    assert found.top5 == pytest.approx(5 / CLASSES, abs=4 * found.error(5 / CLASSES))


def test_overlapping_classes_are_named_as_often_as_can_be() -> None:
    # Two Gaussians at -1 and 1: the best is the normal distribution's share below 1.
    labels = torch.arange(4000) % 2
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    split = split_images(labels.numpy().astype(np.int32), ProbeOptions())
    features = (2.0 * labels[:, None] - 1 + noise)[None]
    (found,) = probe(features, labels, split, ProbeOptions(epochs=30), 2)
    assert found.top1 == pytest.approx(0.8413, abs=3 * found.error(0.8413))
    assert found.top5 is None


def test_scale_and_shift_of_features_do_not_matter() -> None:
    labels = labelled(300)
    features = clusters(labels, 6, 0.5)
    one, other = judged(torch.stack([features, 1e3 * features - 7e3]), labels, ProbeOptions())
    assert one.top1 == pytest.approx(other.top1, abs=0.02)


def test_features_that_are_all_equal_are_worth_no_more_than_chance() -> None:
    labels = labelled(300)
    (found,) = judged(torch.ones(1, 300, 4), labels, ProbeOptions(epochs=5))
    assert found.top1 < 0.35


@settings(max_examples=50)
@given(
    labels=st.lists(st.integers(0, 6), min_size=20, max_size=200),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 100),
)
def test_every_class_is_held_out_by_its_share(labels: list[int], share: float, seed: int) -> None:
    options = ProbeOptions(held_out=share, seed=seed)
    split = split_images(np.array(labels, np.int32), options)
    together = np.sort(np.concatenate([split.trained, split.held_out]))
    np.testing.assert_array_equal(together, np.arange(len(labels)))
    for label in set(labels):
        held_out = sum(labels[place] == label for place in split.held_out.tolist())
        assert abs(held_out - share * labels.count(label)) <= 1


def test_the_seed_chooses_the_split() -> None:
    labels = np.zeros(100, np.int32)
    one, again, other = (split_images(labels, ProbeOptions(seed=s)).held_out for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_too_few_images_to_split_are_refused() -> None:
    with pytest.raises(AnalysisError, match="2 images cannot be split"):
        split_images(np.array([0, 1], np.int32), ProbeOptions())


@pytest.mark.slow
def test_ten_thousand_images_are_probed_in_bounded_memory() -> None:
    prepare = (
        "import torch; from stages.analyze.probe import *\n"
        "g = torch.Generator().manual_seed(0)\n"
        "features = torch.randn(12, 10_000, 768, generator=g)\n"
        "labels = torch.arange(10_000) % 1000\n"
        "options = ProbeOptions(epochs=1); split = split_images(labels.numpy(), options)\n"
        "probe(features[:, :600], labels[:600] % 50, split_images(labels[:600].numpy() % 50,\n"
        "    options), options, 50)"
    )
    work = "assert probe(features, labels, split, options, 1000)[0].top1 < 0.01"
    # Weights, gradients and two moments of Adam are 147 MB; the features themselves are 369 MB.
    assert peak_bytes(prepare, work) < 400e6
