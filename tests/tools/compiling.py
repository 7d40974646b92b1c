"""Marks for tests in which torch compiles, since warnings are errors."""

import pytest

# The compiler looks at every attribute of the tensors that it meets; torch hides it from users.
LOOKING = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
# It imports parts of torch that are written in TorchScript.
SCRIPTED = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)
COMPILING = [LOOKING, SCRIPTED]
