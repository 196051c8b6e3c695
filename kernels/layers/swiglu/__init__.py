"""silu(gate) * up."""

from rmfast.kernels.layers.swiglu.op import swiglu

__all__ = ["swiglu"]
