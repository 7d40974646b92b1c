"""Weights of transformers in files: runs, checkpoints, published files, and whether they fit."""
