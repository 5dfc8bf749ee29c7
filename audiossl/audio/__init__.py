"""Sound in and out: files, pipes and streams to samples, and back."""
