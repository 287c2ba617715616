"""From files on disk to batches: sources, decoding, transforms, reader, pipelines."""
