"""What serving costs and yields on this machine: `longrec bench serving`, one file a part.

The only folder of `server/` that may import whatever lies below: it measures the engine beside the server.
"""
