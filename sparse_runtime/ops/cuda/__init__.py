"""The CUDA backend: Triton kernels, a plan of launches, CUDA graphs. Nothing here imports triton
before a kernel is asked for."""
