"""How GPUs multiply numbers of type float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 numbers exactly, or in TF32.

    TF32 rounds what is multiplied to 11 bits of precision, as many as float16 has, and sums in
    float32; a CPU has no such thing. By default torch computes convolutions in TF32, and matrix
    products exactly.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
