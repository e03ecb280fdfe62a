"""PyTorch's side of the goldens for zoo-mlp: what each network is compared with. `generate.py` says how."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from reference import Reference


class Mlp(nn.Module):
    def __init__(self, widths=(3072, 512, 256, 10), norm=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(o) for o in widths[1:-1]) if norm else None

    def forward(self, x):
        x = x.flatten(1)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i + 1 < len(self.layers):
                x = F.relu(self.norms[i](x) if self.norms else x)
        return x


# name: how PyTorch builds it. Counts are published, so that a slip in a definition above shows.
MODELS = {
    "mlp": Reference(Mlp, 3072 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10),
    "mlp_bn": Reference(lambda: Mlp(norm=True), 3072 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10 + 2 * (512 + 256),
                        settings="mlp batch_norm"),
}
