"""longrec: long-memory sequential recommendation, served by NVIDIA Triton Inference Server.

This package is the core that all rooms share: errors, protocol, configuration, catalogue, checkpoint. It imports
neither torch nor tritonclient.
"""

__version__ = "0.1.0"
