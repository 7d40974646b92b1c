"""The demo autoencoder: its weights in the diffusers format, and the script that trains it."""
