"""Stage one: image files to cached latents and features."""
