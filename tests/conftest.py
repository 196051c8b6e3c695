"""Before anything imports Triton: without a GPU its kernels run in the interpreter. The same examples in every run."""

import os

import torch
from hypothesis import settings

# Other examples every time are for whoever looks for them: `pytest --hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
