"""One-shot compression: layer-wise reconstruction from a few hundred texts, without labels."""
