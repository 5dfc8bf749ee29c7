"""Code that finds, reads, checks and writes recipes; the YAML files are in `audiossl.recipes`."""
