"""What `import longrec.client` offers and costs."""

import json
import subprocess
import sys

import longrec.client

EXPORTS = [
    "AccessError",
    "Appended",
    "ArgumentError",
    "AsyncClient",
    "AsyncStream",
    "Client",
    "ConflictError",
    "Connection",
    "DeadlineError",
    "Event",
    "Events",
    "GapError",
    "Items",
    "LongrecError",
    "MissingModelError",
    "ModelInfo",
    "Options",
    "Prediction",
    "ProtocolError",
    "RejectedError",
    "Retry",
    "Scored",
    "ServerError",
    "Status",
    "Stream",
    "StreamCall",
    "Tls",
    "Transport",
    "UnavailableError",
]


def test_the_exported_names_are_these() -> None:
    assert longrec.client.__all__ == EXPORTS
    assert all(hasattr(longrec.client, name) for name in EXPORTS)


def test_importing_the_client_loads_nothing_heavy() -> None:
    program = "import json, sys, longrec.client; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    heavy = {
        "torch",
        "triton",
        "pandas",
        "polars",
        "pydantic",
        "tritonclient.http",
        "numba",
        "lmdb",
        "safetensors",
        "typer",
        "opentelemetry",
        "rich",
        "longrec.config",
    }
    assert heavy.isdisjoint(loaded)
