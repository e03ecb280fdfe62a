"""PyTorch's side of the goldens for zoo-mobile: what each network is compared with. `generate.py` says how."""

from reference import Reference

MODELS = {}
