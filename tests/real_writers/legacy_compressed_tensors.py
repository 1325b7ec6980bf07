"""Writes models with a compressed-tensors that still had the sparse formats, and what it reads.

    python legacy_compressed_tensors.py OUT

with torch 2.13.0, transformers 4.57.1 and compressed-tensors 0.12.2. For every format OUT gets a
directory with the model as the package saves it, and beside it NAME.safetensors with the weights as
the package itself decompresses them.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

PINS = {"torch": "2.13.0", "transformers": "4.57.1", "compressed-tensors": "0.12.2"}


def pruned_bert() -> BertForSequenceClassification:
    """Two layers, whose matrices are 2:4 with a few zeros more."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    model = BertForSequenceClassification(config).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and ".layer." in name:
            groups = weight.data.unflatten(1, (-1, 4))
            groups.scatter_(2, groups.abs().topk(2, dim=2, largest=False).indices, 0)
            groups[0, 0] = 0
    return model


def quantize(model: BertForSequenceClassification, kind: str) -> None:
    """Weights of 8 bits with a scale a row, inputs a scale a token."""
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    weights = {"num_bits": 8, "type": kind, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": kind, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config = QuantizationConfig(
        config_groups={"group_0": group},
        quantization_status="frozen",
        format=f"{kind}-quantized",
        ignore=["classifier"],
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            weight = module.weight.data
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
            scale, zero_point = calculate_qparams(low, high, scheme.weights)
            # Away from -128, which the 2:4 writer takes for a small magnitude.
            module.weight_scale.data = scale * 1.01
            module.weight_zero_point.data = zero_point


def write(directory: Path, sparsity: str, kind: str | None) -> None:
    """One model in one format, and its weights as the package reads them."""
    from compressed_tensors.compressors import ModelCompressor

    model = pruned_bert()
    if kind is not None:
        quantize(model, kind)
    arguments: dict[str, Any] = {
        "format": sparsity,
        "targets": ["Linear"],
        "ignore": [] if kind is None else ["classifier"],
        "sparsity_structure": "2:4" if "24" in sparsity else "unstructured",
    }
    from compressed_tensors.config import SparsityCompressionConfig

    config = SparsityCompressionConfig.load_from_registry(sparsity, **arguments)
    compressor = ModelCompressor.from_pretrained_model(
        model, sparsity_config=config, quantization_format=kind and f"{kind}-quantized"
    )
    compressor.compress_model(model)
    directory.mkdir(parents=True)
    model.config.save_pretrained(directory)
    compressed = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(compressed, directory / "model.safetensors", metadata={"format": "pt"})
    compressor.update_config(str(directory))
    compressor.decompress_model(model)
    weights = {
        name: weight.data.contiguous()
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and name.endswith(".weight")
    }
    save_file(weights, directory.with_suffix(".safetensors"))


def main() -> None:
    """Write every combination."""
    found = {name: version(name).partition("+")[0] for name in PINS}
    if found != PINS:
        sys.exit(f"expected {PINS}, got {found}")
    out = Path(sys.argv[1])
    for sparsity in ("sparse-bitmask", "sparse-24-bitmask"):
        for kind in (None, "int", "float"):
            write(out / f"{sparsity}_{kind or 'plain'}", sparsity, kind)


if __name__ == "__main__":
    main()
