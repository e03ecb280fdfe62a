"""PyTorch's side of the goldens for zoo-mobile: what each network is compared with. `generate.py` says how."""

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.models import MobileNetV2

from reference import Reference


def cifar_mobilenet_v1():
    """The stem does not stride."""
    net = timm.create_model("mobilenetv1_100", num_classes=10)
    net.conv_stem.stride = (1, 1)
    return net


def cifar_mobilenet_v2():
    """Neither the stem nor the second stage strides."""
    rows = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    net = MobileNetV2(num_classes=10, inverted_residual_setting=rows)
    net.features[0][0].stride = (1, 1)
    return net


def shuffle(x, groups):
    """Zhang et al. 2017, section 3.1: (g, n) channels, transposed, flattened."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """Figure 2b, and 2c where the map is halved."""

    def __init__(self, c_in, c_out, groups, halves, first_groups):
        super().__init__()
        inside, branch = c_out // 4, c_out - c_in if halves else c_out
        self.conv1 = nn.Conv2d(c_in, inside, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, 2 if halves else 1, 1, groups=inside, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, branch, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.groups, self.halves = groups, halves

    def forward(self, x):
        y = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        if self.halves:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


class ShuffleNet(nn.Module):
    """Zhang et al. 2017, table 1; `channels` are those of stage 2."""

    def __init__(self, groups, channels, cifar=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, 1 if cifar else 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.pool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
        c_in = 24
        for stage, (c_out, units) in enumerate([(channels, 4), (2 * channels, 8), (4 * channels, 4)], start=2):
            layers = []
            for i in range(units):
                first = 1 if stage == 2 and i == 0 else groups
                layers.append(ShuffleUnit(c_in, c_out, groups, i == 0, first))
                c_in = c_out
            setattr(self, f"stage{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(c_in, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(self.stage4(self.stage3(self.stage2(x))).mean((2, 3)))


# The stems for ImageNet leave a 32nd of the side: images of 64, so that the last BatchNorms see more than one pixel.
IMAGENET = {"image": 64}

# name: how PyTorch builds it. Counts are published, less the classifier's other 990 classes, so that a slip in a
# definition above shows.
MODELS = {
    "mobilenet_v1": Reference(
        lambda: timm.create_model("mobilenetv1_100", num_classes=10), 4_231_976 - 990 * 1025, **IMAGENET),
    "cifar_mobilenet_v1": Reference(cifar_mobilenet_v1, 3_217_226),
    "mobilenet_v2": Reference(lambda: MobileNetV2(num_classes=10), 3_504_872 - 990 * 1281, **IMAGENET),
    "cifar_mobilenet_v2": Reference(cifar_mobilenet_v2, 2_236_682),
    "shufflenet_v1_g1": Reference(lambda: ShuffleNet(1, 144), 1_531_936 - 990 * 577, **IMAGENET),
    "shufflenet_v1_g3": Reference(lambda: ShuffleNet(3, 240), 1_865_728 - 990 * 961, **IMAGENET),
    "cifar_shufflenet_v1_g2": Reference(lambda: ShuffleNet(2, 200, cifar=True), 940_858),
}
