"""The parts of `gpu_check.py`: what is checked and timed on a GPU, in processes of their own, and how it is reported.

Needs torch, triton and numpy, and nothing else that a plain checkout lacks.
"""
