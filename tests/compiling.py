"""Marks for tests in which torch compiles, since warnings are errors."""

import pytest

# Those of torch's own compiler, which it hides from users or which tell them nothing.
COMPILING = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        # It looks at every attribute of the tensors that it meets.
        "The .grad attribute of a Tensor that is not a leaf Tensor",
        # It imports parts of torch that are written in TorchScript.
        "`torch.jit.script_method` is deprecated:DeprecationWarning",
    )
]
