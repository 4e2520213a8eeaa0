"""Makes `longrec.kernels` importable from a checkout that is not installed."""

import importlib.util
import sys
from pathlib import Path

__all__ = ["ROOT", "use_checkout"]

ROOT = Path(__file__).resolve().parents[2]


def use_checkout() -> None:
    """Make `longrec` this checkout's, whatever is installed: the core in `longrec/`, the rooms beside it.

    The checkout's root stays off `sys.path`, where its folders would hide packages called `kernels` or `datasets`.
    """
    core = ROOT / "longrec"
    spec = importlib.util.spec_from_file_location(
        "longrec", core / "__init__.py", submodule_search_locations=[str(core), str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["longrec"] = module
    spec.loader.exec_module(module)
