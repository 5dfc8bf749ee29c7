"""The recipes themselves (YAML files only); the code that reads them is `audiossl.recipe`."""
