"""Kernels run in triton's interpreter where there is no NVIDIA GPU."""

import os
from pathlib import Path

# before triton is first imported: @triton.jit decides when a kernel's file is read
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
