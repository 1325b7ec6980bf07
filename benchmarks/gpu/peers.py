"""What runs a linear layer beside our kernels: libraries, each in its own form of the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime.benchmarks.gpu.records import Skipped
from sparse_runtime.formats import PackedWeight
from sparse_runtime.ops.cuda.families import LEAST_INT_MM_ROWS
from sparse_runtime.testing import make_activations, make_packed

Call = Callable[[], object]


@dataclass(frozen=True, eq=False)  # by identity: what is made of a copy is kept for it
class Layer:
    """One weight in every form that a contender takes.

    Attributes:
        packed: the weight [out, in], in main memory.
        weight: its dequantized values, bf16 on the GPU.
        bias: bf16 [out] on the GPU.
    """

    packed: PackedWeight
    weight: Tensor
    bias: Tensor

    @classmethod
    def make(cls, shape: tuple[int, int], case: str, device: str = "cuda") -> Layer:
        """A random weight of a case such as "block:64x64@0.9 int8"."""
        structure, _, sparsity = case.split()[0].partition("@")
        packed = make_packed(
            shape, structure, float(sparsity) if sparsity else None, values=case.split()[1]
        )
        bias = make_activations(1, shape[0])[0].to(device, torch.bfloat16)
        return cls(packed, packed.dequantize(torch.float32).to(device, torch.bfloat16), bias)

    def copy(self) -> Layer:
        """The same in memory of its own."""
        return replace(self, weight=self.weight.clone(), bias=self.bias.clone())


@cache
def integers(layer: Layer) -> Tensor:
    """Its stored values int8 [out, in] on the GPU, in memory of their own."""
    return layer.packed.unpack().to(layer.weight.device, copy=True)


def cublas_bf16(layer: Layer, x: Tensor) -> Call:
    """PyTorch's dense linear."""
    return lambda: F.linear(x, layer.weight, layer.bias)


def cublas_int8(layer: Layer, x: Tensor) -> Call:
    """The dense integer product alone: neither scales nor bias.

    Raises:
        Skipped: PyTorch does not take so few rows.
    """
    if len(x) < LEAST_INT_MM_ROWS:
        raise Skipped(f"torch._int_mm takes {LEAST_INT_MM_ROWS} rows or more on CUDA")
    q = x.mul(30).clamp(-127, 127).to(torch.int8)
    weight = integers(layer).t()
    return lambda: torch._int_mm(q, weight)


def torchao_int8(layer: Layer, x: Tensor) -> Call:
    """torchao's dynamic INT8, compiled."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    outputs, inputs = layer.weight.shape
    linear = torch.nn.Linear(inputs, outputs, device=x.device, dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight.copy_(layer.weight)
        linear.bias.copy_(layer.bias)
    quantize_(linear, Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(linear.requires_grad_(False), fullgraph=True, dynamic=False)
    return lambda: compiled(x)


def cusparselt_bf16(layer: Layer, x: Tensor) -> Call:
    """PyTorch's 2:4 on sparse tensor cores."""
    weight = torch.sparse.to_sparse_semi_structured(layer.weight)
    return lambda: F.linear(x, weight, layer.bias)


def cusparselt_int8(layer: Layer, x: Tensor) -> Call:
    """The 2:4 integer product alone."""
    q = x.mul(30).clamp(-127, 127).to(torch.int8)
    compressed = torch._cslt_compress(integers(layer))
    return lambda: torch._cslt_sparse_mm(compressed, q.t(), out_dtype=torch.int32)


def torch_bsr(layer: Layer, x: Tensor) -> Call:
    """PyTorch's Triton kernel for block-sparse weights, ``bsr_dense_addmm``."""
    from torch.sparse._triton_ops import bsr_dense_addmm

    structure = layer.packed.spec.structure
    weight = layer.weight.to_sparse_bsr((structure.rows, structure.cols))
    bias = layer.bias.unsqueeze(1).expand(-1, len(x)).contiguous()
    columns = x.t().contiguous()
    return lambda: bsr_dense_addmm(bias, weight, columns)


def cusparse_fp32(layer: Layer, x: Tensor) -> Call:
    """cuSPARSE's CSR product through CuPy, in float32: it has no type between.

    CuPy refuses to set cuSPARSE's stream while a graph is captured.
    """
    import cupy
    from cupyx.scipy.sparse import csr_matrix

    weight = csr_matrix(cupy.asarray(layer.weight.float()))
    columns = cupy.asarray(x.float().t().contiguous())

    def run() -> object:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            return weight @ columns

    return run
