"""The rasterizer in plain differentiable PyTorch: one file per stage, as in `kernels/`.

It runs on any device in float32 and float64, is what `kernels.rasterization` uses without a GPU,
and is the oracle that the Triton kernels are tested against.
"""
