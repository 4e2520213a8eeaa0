"""What Triton loads; the model itself is `longrec.python_backend.model`."""

from longrec.python_backend.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
