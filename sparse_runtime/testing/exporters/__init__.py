"""Models in the layouts of pruning and quantization tools, small, for tests of what opens them."""
