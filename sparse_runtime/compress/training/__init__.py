"""Training recipes: stages of pruning, distillation and quantization (docs/compress)."""
