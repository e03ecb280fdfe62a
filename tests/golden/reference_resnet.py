"""PyTorch's side of the goldens for zoo-resnet: what each network is compared with. `generate.py` says how."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from reference import Reference


class CifarBlock(nn.Module):
    def __init__(self, c_in, c_out, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.kind, self.stride, self.widen = shortcut, stride, c_out - c_in
        if shortcut == "B" and (stride != 1 or c_in != c_out):
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def skip(self, x):
        if hasattr(self, "shortcut"):
            return self.shortcut(x)
        # Option A: every stride-th pixel, zero channels half below and half above.
        low = self.widen // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, low, self.widen - low))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y if self.kind is None else y + self.skip(x))


class CifarResNet(nn.Module):
    """He et al. 2015, section 4.2: 6n + 2 layers."""

    def __init__(self, n, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        c_in = 16
        for stage, (width, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
            blocks = []
            for i in range(n):
                blocks.append(CifarBlock(c_in, width, stride if i == 0 else 1, shortcut))
                c_in = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


# name: how PyTorch builds it. Counts are published, so that a slip in a definition above shows.
MODELS = {
    "cifar_resnet20": Reference(lambda: CifarResNet(3, "A"), 269_722),
    "cifar_plain20": Reference(lambda: CifarResNet(3, None), 269_722),
    "cifar_resnet20_b": Reference(lambda: CifarResNet(3, "B"), 272_474),
}
