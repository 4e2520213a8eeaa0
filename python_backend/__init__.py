"""What runs inside tritonserver's Python backend: queries, event log, memory pool, engine, metrics, and `model.py`, the
only file that knows `triton_python_backend_utils`. Everything else runs, and is tested, without a server."""
