"""Model `recommender_recompute` as tritonserver's Python backend loads it: `model.py` over an engine without memory."""

from longrec.python_backend import model
from longrec.python_backend.recompute import RecomputeEngine

__all__ = ["TritonPythonModel"]


class TritonPythonModel(model.TritonPythonModel):
    """One instance of model `recommender_recompute`."""

    engine_type = RecomputeEngine
