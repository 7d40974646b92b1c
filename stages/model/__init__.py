"""What is trained, sampled and analysed: transformers, and the paths between latents and noise."""
