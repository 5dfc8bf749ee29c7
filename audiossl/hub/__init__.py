"""Model folders: found, downloaded, checked, converted, described."""
