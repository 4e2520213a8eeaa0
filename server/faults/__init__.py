"""What goes wrong in production, done on purpose to a real server: `longrec bench faults`.

`registry.py` lists the faults; `crashes.py`, `messages.py`, `stores.py` and `models.py` do them; `rig.py` is the server
that they are done to, `load.py` and `wire.py` the clients, `ledger.py` the book that the log is compared with,
`subject.py` the network, `report.py` the outcome.
"""
