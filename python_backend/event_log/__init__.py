"""The event log: every user's events, durable and append-only. The truth that memories are a cache of.

`log.py` says what a log promises, `records.py` what its bytes mean; `lmdb_log.py` and `redis_log.py` each know one
store, `lmdb_batch.py` and `recency.py` serve the former, `opening.py` chooses between them.
"""

from longrec.python_backend.event_log.log import Append, Appended, EventLog, Extent, Span
from longrec.python_backend.event_log.opening import open_event_log

__all__ = ["Append", "Appended", "EventLog", "Extent", "Span", "open_event_log"]
