"""Linear probes: how much of an image's class a linear layer finds in its features.

Batch norm without parameters and one linear layer, by Adam and a cosine schedule (REPA, arXiv
2410.06940, appendix C.1). P sets of features that are probed side by side, N images, B images of a
batch, D features, C classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.analyze.analysis_options import AnalysisError, ProbeOptions
from stages.progress import Advance, progress
from stages.train.compute import arithmetic

# As in the linear probes of MAE (arXiv 2111.06377), whose form this is.
EPSILON = 1e-6
TOP = 5


@dataclass(frozen=True)
class Accuracy:
    """The shares of held-out images whose class is the first guess, or among the first five.

    top5: None if there are no more than five classes; images: how many were held out.
    """

    top1: float
    top5: float | None
    images: int

    def error(self, share: float) -> float:
        """The standard error of one of the shares."""
        return float((share * (1 - share) / self.images) ** 0.5)


@dataclass(frozen=True)
class Split:
    """Which images a probe is trained on and which it is judged by: places, int64 [N] together."""

    trained: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]


def split_images(labels: npt.NDArray[np.int32], options: ProbeOptions) -> Split:
    """Hold out the same share of every class, as nearly as whole images allow.

    labels: [N]. Raises AnalysisError if nothing is left on either side.
    """
    random = np.random.Generator(np.random.Philox(options.seed)).random(len(labels))
    # Counted along the classes, every 1 / share-th image is held out.
    order = np.lexsort((random, labels))
    counted = np.floor((np.arange(len(labels) + 1) + 0.5) * options.held_out)
    is_held_out = np.diff(counted) > 0
    split = Split(np.sort(order[~is_held_out]), np.sort(order[is_held_out]))
    if not (len(split.trained) > 1 and len(split.held_out)):
        raise AnalysisError(
            f"{len(labels)} images cannot be split into {options.held_out:g} that are held out and "
            "others to train a probe on",
            remedy="Take more images (--rows) or another --held-out.",
        )
    return split


class Probes(nn.Module):
    """P independent probes, computed together: [P, B, D] to logits [P, B, C]."""

    def __init__(self, probes: int, features: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(probes * features, eps=EPSILON, affine=False)
        # The problem is convex: where it starts decides little, and zero needs no random numbers.
        self.weight = nn.Parameter(torch.zeros(probes, features, classes))
        self.bias = nn.Parameter(torch.zeros(probes, 1, classes))

    def forward(self, features: Tensor) -> Tensor:
        probes, _, width = features.shape
        normed = self.norm(features.transpose(0, 1).flatten(1))
        return torch.baddbmm(
            self.bias, normed.unflatten(1, (probes, width)).transpose(0, 1), self.weight
        )


def probe(
    features: Tensor,
    labels: Tensor,
    split: Split,
    options: ProbeOptions,
    classes: int,
    title: str = "probe",
) -> list[Accuracy]:
    """The accuracy of a probe for each of P sets of features, in exact float32.

    features: float32 [P, N, D], on the device that computes; labels: int64 [N], there too; title:
    of the progress. The same on the same device and number of threads.
    """
    with (
        arithmetic("float32", deterministic=True),
        progress(title, options.epochs, "epochs") as advance,
    ):
        probes = _trained(features, labels, split, options, classes, advance)
        return _judge(probes.eval(), features, labels, split, options.batch_size)


class Prober:
    """Probes sets of features of the same images.

    labels: [N]; classes: how many there are. Raises AnalysisError if the images cannot be split.
    """

    def __init__(
        self,
        labels: npt.NDArray[np.int32],
        classes: int,
        options: ProbeOptions,
        device: torch.device,
    ) -> None:
        self.split = split_images(labels, options)
        self._labels = torch.from_numpy(labels).long().to(device)
        self._classes, self._options = classes, options

    def accuracies(self, title: str, features: Tensor) -> list[Accuracy]:
        """Those of P sets of features, [P, N, D]."""
        there = features.to(self._labels.device)
        return probe(there, self._labels, self.split, self._options, self._classes, title)

    def accuracy(self, title: str, features: Tensor) -> Accuracy:
        """That of features [N, D]."""
        (found,) = self.accuracies(title, features[None])
        return found


def _trained(
    features: Tensor,
    labels: Tensor,
    split: Split,
    options: ProbeOptions,
    classes: int,
    advance: Advance,
) -> Probes:
    probes = Probes(features.shape[0], features.shape[2], classes).to(features.device)
    trained = torch.from_numpy(split.trained)
    steps = max(1, len(trained) // options.batch_size)
    optimiser = torch.optim.Adam(probes.parameters(), options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * options.epochs)
    source = torch.Generator().manual_seed(options.seed)
    for _ in range(options.epochs):
        for batch in trained[torch.randperm(len(trained), generator=source)].tensor_split(steps):
            rows = batch.to(features.device)
            optimiser.zero_grad()
            _loss(probes(features[:, rows]), labels[rows]).backward()
            optimiser.step()
            schedule.step()
        advance(1, "")
    return probes


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over probes of the mean cross-entropy, which leaves each of them to itself."""
    flat = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="sum")
    return flat / len(labels)


@torch.inference_mode()
def _judge(
    probes: Probes, features: Tensor, labels: Tensor, split: Split, batch: int
) -> list[Accuracy]:
    classes = probes.bias.shape[-1]
    hits = torch.zeros(len(features), TOP, dtype=torch.int64)
    for part in torch.from_numpy(split.held_out).split(batch):
        rows = part.to(features.device)
        guesses = probes(features[:, rows]).topk(min(TOP, classes)).indices
        is_right = (guesses == labels[rows][:, None]).cpu()
        hits[:, : is_right.shape[-1]] += is_right.sum(dim=1)
    count = len(split.held_out)
    first, five = hits[:, 0] / count, hits.sum(dim=1) / count
    return [
        Accuracy(float(one), float(many) if classes > TOP else None, count)
        for one, many in zip(first, five, strict=True)
    ]
