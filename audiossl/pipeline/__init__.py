"""Many inputs to many records: in order, resumable, whole or not at all."""
