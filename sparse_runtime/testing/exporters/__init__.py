"""Writers of foreign checkpoint layouts: each reader is proven by a round trip without downloads.

Each takes the plain tensors of a model as it is meant to run and writes a directory in which a
pruning or quantization tool would have left it.
"""

from __future__ import annotations
