"""PyTorch's side of the goldens for zoo-transformer: what each network is compared with. `generate.py` says how."""

from reference import Reference

MODELS = {}
