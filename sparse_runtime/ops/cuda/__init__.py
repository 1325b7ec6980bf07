"""Linear layers and encoders on NVIDIA GPUs: Triton kernels, libraries, and the choice of them."""
