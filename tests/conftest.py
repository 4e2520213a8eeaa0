"""For all tests: small networks are faster on one thread, and results don't depend on the machine's cores."""

import torch

torch.set_num_threads(1)
