"""For all tests: kernels run in triton's interpreter where there is no NVIDIA GPU, small networks on one thread."""

import os
from pathlib import Path

# before triton is first imported: @triton.jit decides when a kernel's file is read
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

torch.set_num_threads(1)
