"""Stage two: cached tensors to weights. No frozen network is within reach of this package."""
