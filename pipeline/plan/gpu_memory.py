"""How much memory of a GPU training takes, from the shapes of a model alone.

A step needs the most between its forward and its backward pass, where all activations are kept,
or behind the latter, where all gradients are there. P parameters, T tokens, W the transformer's
width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from stages.model.transformer_config import TransformerConfig
from stages.train.compute import HALF_PRECISIONS
from stages.train.run_model import count_parameters, make_modules
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import ComputeSettings, TrainSettings

# What is usual for training, if nobody says which card it will be.
CARD_BYTES = 80e9
# Of a card: the rest is CUDA's own, and gaps between tensors.
USABLE = 0.92
# Of a parameter: itself, its moving average and AdamW's two, float32; and its gradient.
STATE_BYTES, GRADIENT_BYTES = 16, 4
# Of a second moving average.
AVERAGE_BYTES = 4
# Workspaces of libraries, latents, and whatever is too small to be counted.
FIXED_BYTES = 0.25e9
# How often an array that a loss reads is there in float32: of this step and of the next one, what
# is compared with it, and what the loss makes of both.
COPIES_OF_READ = 6
# Gathered or cast again, blocks are whole while they compute, and while the next one comes.
WHOLE_BLOCKS = 2


@dataclass(frozen=True)
class Footprint:
    """What of a model decides the memory that it is trained in; bytes are those of an image.

    parameters: P; copy_bytes: of a parameter in half precision, 0 without; blocks: their number;
    input: of a block's input; block: of all that a block keeps for the backward pass; beside: of
    what modules of terms keep, and of what losses read.
    """

    parameters: int
    copy_bytes: int
    blocks: int
    input: float
    block: float
    beside: float


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on a GPU while it trains.

    states: weights, their moving average and what the optimiser knows; gradients: once all are
    there; activations, copies: what is kept for the backward pass, and weights in half precision;
    holds_gradients: whether those are there beside the activations.
    """

    states: float
    gradients: float
    activations: float
    copies: float
    holds_gradients: bool

    @property
    def peak(self) -> float:
        """The most at any time."""
        held = self.gradients if self.holds_gradients else 0
        between = self.activations + self.copies + held
        return FIXED_BYTES + self.states + max(between, self.gradients)

    def fits(self, card: float) -> bool:
        """Whether a card with so many bytes has room for it."""
        return self.peak <= USABLE * card


def find_footprint(
    settings: TrainSettings,
    model: TransformerConfig,
    shape: Callable[[str], tuple[int, ...]],
    context_tokens: int = 0,
) -> Footprint:
    """Of a run. shape: of an array that a term reads; context_tokens: of a caption."""
    is_half = settings.precision in (*HALF_PRECISIONS, "auto")
    number = 2 if is_half else 4
    patches = model.grid**2
    tokens = patches + model.class_tokens
    kept = 0
    with torch.device("meta"):
        modules, _ = make_modules(settings, model, shape)
        for place, term, _ in RunTerms.of(settings).every:
            if place in modules and term.lender(settings) is None:
                hidden = torch.empty(1, tokens if term.sees_class_token else patches, model.width)
                kept += _kept_numbers(modules[place], [hidden] * len(term.depths))
    read = sum(torch.Size(shape(name)).numel() for name in RunTerms.of(settings).arrays)
    read += context_tokens * model.context_features
    return Footprint(
        parameters=count_parameters(settings, model, shape),
        copy_bytes=number if is_half else 0,
        blocks=model.depth,
        input=4 * (tokens + context_tokens) * model.width,
        block=(tokens + context_tokens) * _token_bytes(settings.compute, model, number),
        beside=number * kept + COPIES_OF_READ * 4 * read,
    )


def _token_bytes(compute: ComputeSettings, model: TransformerConfig, number: int) -> float:
    """Of what a block keeps of a token. number: bytes of what matrix products take and give.

    Compiled, it keeps its input in float32, and of products the two modulated inputs, queries,
    keys and values, attention before and after its last layer, the hidden layer before and behind
    its activation (gated, it is as large), and the output.
    """
    products = 2 + 3 + 2 + 8 + 1
    # What is made of queries, keys and values before attention takes them.
    products += 3 * (model.qk_norm or model.rotary) + model.value_residual
    # Without the compiler both norms' outputs are kept too, and the sum between the two halves.
    float32 = 4 if compute.compile is False else 1
    sides = 4 * model.heads
    if not compute.fused_attention:
        sides = number * model.heads * (model.grid**2 + model.class_tokens)
    return (4 * float32 + number * products) * model.width + sides


def _kept_numbers(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """How many numbers a module keeps for the backward pass, its parameters not counted.

    inputs: on the meta device, as are the parameters.
    """
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> None:
        kept[StorageWeakRef(tensor.untyped_storage())] = tensor.numel()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda _: torch.empty(0)):
        module(*(tensor.requires_grad_() for tensor in inputs))
    for parameter in module.parameters():
        kept.pop(StorageWeakRef(parameter.untyped_storage()), None)
    return sum(kept.values())


def gpu_memory(footprint: Footprint, settings: TrainSettings, gpus: int) -> GpuMemory:
    """Of one of the GPUs that share the images of a step."""
    compute = settings.compute
    is_sharded = compute.parallel == "fsdp" and gpus > 1
    held = footprint.parameters / (gpus if is_sharded else 1)
    image, copied = footprint.blocks * footprint.block, 1.0
    if compute.recompute_activations:
        image = footprint.blocks * footprint.input + footprint.block
    # Between the passes, the weights of blocks are given up where they are made again.
    if compute.reshard if is_sharded else compute.recompute_activations:
        copied = min(1.0, WHOLE_BLOCKS / footprint.blocks)
    copy_bytes = footprint.copy_bytes or 4 * is_sharded
    images = ceil(settings.batch_size / (gpus * compute.micro_batches))
    return GpuMemory(
        states=(STATE_BYTES + AVERAGE_BYTES * (settings.second_ema_decay is not None)) * held,
        gradients=GRADIENT_BYTES * held,
        activations=images * (image + footprint.beside),
        copies=copy_bytes * copied * footprint.parameters,
        # Plain DDP keeps them in its buckets.
        holds_gradients=compute.micro_batches > 1 or (gpus > 1 and not is_sharded),
    )


@dataclass(frozen=True)
class Way:
    """Settings of `[train.compute]` with which a step fits, and what it takes then."""

    settings: Mapping[str, object]
    memory: GpuMemory


def ways_to_fit(footprint: Footprint, settings: TrainSettings, gpus: int, card: float) -> list[Way]:
    """Ways to train on cards with so many bytes: by one setting each, else by several at once."""
    compute = settings.compute

    def first(options: Iterable[Mapping[str, object]]) -> list[Way]:
        """The first one that fits, if any does."""
        for changes in filter(None, options):
            changed = settings.model_copy(update={"compute": compute.model_copy(update=changes)})
            memory = gpu_memory(footprint, changed, gpus)
            if memory.fits(card):
                return [Way(changes, memory)]
        return []

    sharded: dict[str, object] = {}
    if gpus > 1 and compute.parallel == "ddp":
        sharded = {"parallel": "fsdp"}
    elif gpus > 1 and not compute.reshard:
        sharded = {"reshard": True}
    again = {} if compute.recompute_activations else {"recompute_activations": True}
    divided = [{"micro_batches": parts} for parts in _finer_parts(settings, gpus)]
    both = {**sharded, **again}
    alone = first([sharded]) + first([again]) + first(divided)
    return alone or first([both]) or first({**both, **some} for some in divided)


def _finer_parts(settings: TrainSettings, gpus: int) -> Iterator[int]:
    """Numbers of micro-batches, above the one that is set, into which a step can be divided."""
    if not any(term.compares_images for term in settings.align):
        images = ceil(settings.batch_size / gpus)
        finer = range(settings.compute.micro_batches + 1, images + 1)
        yield from (parts for parts in finer if images % parts == 0)
