"""Image and video tokenization with binary spherical quantization (BSQ-ViT) in JAX."""
