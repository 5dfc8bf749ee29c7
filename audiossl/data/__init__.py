"""Data: one manifest format, adapters, loading and augmentation."""
