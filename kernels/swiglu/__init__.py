"""silu(gate) * up."""

from rmfast.kernels.swiglu.op import swiglu

__all__ = ["swiglu"]
