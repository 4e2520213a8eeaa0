"""What the client costs and what it promises, on real servers of its own: `longrec bench client`.

`chaos.py` kills the server under a stream, `failover.py` one of two under load, `costs.py` measures CPU time and bulk
throughput beside hand-written loops over tritonclient; `rig.py` is what they serve. May import whatever lies below,
like `server/bench`.
"""
