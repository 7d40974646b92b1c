"""From weights to images to numbers."""
