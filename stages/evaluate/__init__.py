"""Images to numbers: how far samples are from a reference."""
