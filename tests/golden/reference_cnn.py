"""PyTorch's side of the goldens for zoo-cnn: what each network is compared with. `generate.py` says how."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from reference import Reference


class CifarVgg16Bn(nn.Module):
    def __init__(self):
        super().__init__()
        layers, c_in = [], 3
        for width in [64, 64, "p", 128, 128, "p", 256, 256, 256, "p", 512, 512, 512, "p", 512, 512, 512, "p"]:
            if width == "p":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                c_in = width
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(512, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class TemplateCnn(nn.Module):
    LAYERS = [16, 16, "p", 32, 32, "p", 64, 64, "p", 128, 128, "p", 256, 256]

    def __init__(self):
        super().__init__()
        c_in, units = 3, []
        for width in self.LAYERS:
            if width != "p":
                units.append(nn.ModuleDict({"conv": nn.Conv2d(c_in, width, 3, 1, 1), "bn": nn.BatchNorm2d(width)}))
                c_in = width
        self.features, self.classifier = nn.ModuleList(units), nn.Linear(256, 10)

    def forward(self, x):
        i = 0
        for width in self.LAYERS:
            if width == "p":
                x = F.max_pool2d(x, 3, 2)
                continue
            x = self.features[i]["bn"](self.features[i]["conv"](x))
            i += 1
            if i < len(self.features):  # no ReLU after the very last
                x = F.relu(x)
        return self.classifier(x.flatten(1))


# name: how PyTorch builds it. Counts are published, so that a slip in a definition above shows.
MODELS = {
    "cifar_vgg16_bn": Reference(CifarVgg16Bn, 14_728_266),
    "template_cnn": Reference(TemplateCnn, 1_183_322),
}
