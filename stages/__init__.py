"""The two stages and what follows: encode, train, sample."""

import os

# cuBLAS reads it once, when a process first uses it, which any network may do long before a
# training step asks for the same bits each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
