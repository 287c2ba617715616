"""From files of pictures to sharded global batches."""
