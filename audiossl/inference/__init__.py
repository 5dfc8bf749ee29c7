"""Models at work on sounds: one file a verb, and what they share."""
