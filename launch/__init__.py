"""Command-line launchers."""

import gc

# Importing and tracing make many objects, nearly all of which stay: at Python's own threshold, looking for garbage
# among them took a second of every start.
gc.set_threshold(20_000)
