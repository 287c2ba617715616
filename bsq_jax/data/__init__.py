"""From files on disk to batches of pixels: sources, transforms, pipeline."""
