"""The server's runtime: finds or unpacks a tritonserver, writes model repositories, starts, probes, stops.

Knows the core and the wire only; the model itself runs in the server's Python stub (`longrec.python_backend`).
"""
