"""The command line: click only; what the commands do lives in the package above."""
