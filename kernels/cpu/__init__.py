"""Bodies for the CPU, where the reference is far from what the machine can do."""
