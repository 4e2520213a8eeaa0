"""Proof of the kernels without a GPU: what compiles to what, and how much each case moves and multiplies.

`compiling` and `counting` each run in child processes of their own, since a process either interprets kernels or
compiles them; `python -m longrec.kernels.bench.worker` is that child.
"""
