"""PyTorch's side of the goldens for zoo-resnet: what each network is compared with. `generate.py` says how."""

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import SEModule
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from reference import Reference


class CifarBlock(nn.Module):
    def __init__(self, c_in, c_out, stride, shortcut, se=False):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.se = SEModule(c_out, rd_channels=c_out // 16) if se else nn.Identity()
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
        y = self.se(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(y if self.kind is None else y + self.skip(x))


class CifarResNet(nn.Module):
    """He et al. 2015, section 4.2: 6n + 2 layers."""

    def __init__(self, n, shortcut, se=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        c_in = 16
        for stage, (width, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
            blocks = []
            for i in range(n):
                blocks.append(CifarBlock(c_in, width, stride if i == 0 else 1, shortcut, se))
                c_in = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet(block, blocks, **options):
    return ResNet(block, blocks, num_classes=10, **options)


def stride_on_1x1(net):
    """He et al. 2015, section 4.1: a bottleneck strides in its first 1x1 convolution."""
    for block in net.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return net


def cifar_stem(net):
    """32x32 images stay whole: a 3x3 stem and no pooling behind it."""
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


class PlainNet(nn.Module):
    """He et al. 2015, table 1 without shortcuts. `bottleneck`: 1x1, 3x3, 1x1 with four times the width."""

    class Block(nn.Module):
        def __init__(self, c_in, width, stride, bottleneck):
            super().__init__()
            self.conv1 = nn.Conv2d(c_in, width, 1 if bottleneck else 3, 1 if bottleneck else stride,
                                   0 if bottleneck else 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride if bottleneck else 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            if bottleneck:
                self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
                self.bn3 = nn.BatchNorm2d(4 * width)

        def forward(self, x):
            x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
            return F.relu(self.bn3(self.conv3(x))) if hasattr(self, "conv3") else x

    def __init__(self, blocks, bottleneck=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        c_in = 64
        for stage, (width, n) in enumerate(zip([64, 128, 256, 512], blocks), start=1):
            layers = []
            for i in range(n):
                layers.append(self.Block(c_in, width, 2 if stage > 1 and i == 0 else 1, bottleneck))
                c_in = 4 * width if bottleneck else width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(c_in, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


class TemplateBlock(nn.Module):
    def __init__(self, width, big):
        super().__init__()
        sizes = [(1, width, width // 4), (3, width // 4, width // 4), (1, width // 4, width)] if big else [
            (3, width, width), (3, width, width)]
        for i, (k, c_in, c_out) in enumerate(sizes, start=1):
            setattr(self, f"conv{i}", nn.Conv2d(c_in, c_out, k, 1, k // 2))
            setattr(self, f"bn{i}", nn.BatchNorm2d(c_out))
        self.layers = len(sizes)

    def forward(self, x):
        y = x
        for i in range(1, self.layers + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y if i < self.layers else y + x)
        return y


class TemplateResidualCnn(nn.Module):
    """The list walked by pairs: equal neighbours and the last entry are blocks, others pool and widen with zeros."""

    def __init__(self, widths, image, big=False):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 7, 2, 3)
        self.widths = widths
        equal = [w for w, after in zip(widths, widths[1:] + widths[-1:]) if w == after]
        self.blocks = nn.ModuleList(TemplateBlock(w, big) for w in equal)
        self.classifier = nn.Linear(self.features(torch.zeros(2, 3, image, image)).shape[1], 10)

    def features(self, x):
        x, blocks = F.max_pool2d(self.stem(x), 3, 2, 1), iter(self.blocks)
        for width, after in zip(self.widths, self.widths[1:] + self.widths[-1:]):
            x = next(blocks)(x) if width == after else F.pad(F.max_pool2d(x, 3, 2), (0, 0, 0, 0, 0, after - width))
        return x.flatten(1)

    def forward(self, x):
        return self.classifier(self.features(x))


TEMPLATE = [32, 32, 64, 64, 64, 64, 128, 128, 128]
# The stem of table 1 leaves a 32nd of the side: images of 64, so that the last BatchNorms see more than one pixel.
IMAGENET = {"image": 64}
# Where a rounding of f32 turns the winner of a pooling window or the sign before a ReLU among four images, there are
# fewer: the draws of `generate.py` do not meet every turn.
THREE = {"image": 64, "batch": 3}
# Bottlenecks' options are compared on networks of one block a stage.
ONE_EACH = [1, 1, 1, 1]

# name, and behind a slash what the registry does not have: how PyTorch builds it. Counts are published, less the
# classifier's other 990 classes, so that a slip in a definition above shows.
MODELS = {
    "cifar_resnet20": Reference(lambda: CifarResNet(3, "A"), 269_722),
    "cifar_plain20": Reference(lambda: CifarResNet(3, None), 269_722),
    "cifar_resnet20_b": Reference(lambda: CifarResNet(3, "B"), 272_474),
    "cifar_seresnet20": Reference(lambda: CifarResNet(3, "A", se=True)),
    "resnet18": Reference(lambda: resnet(BasicBlock, [2, 2, 2, 2]), 11_689_512 - 990 * 513, **IMAGENET),
    "resnet50": Reference(lambda: resnet(Bottleneck, [3, 4, 6, 3]), 25_557_032 - 990 * 2049, **IMAGENET),
    "bottlenecks/stride_on_1x1": Reference(
        lambda: stride_on_1x1(resnet(Bottleneck, ONE_EACH)), settings="bottlenecks stride_on_1x1", **IMAGENET),
    "bottlenecks/groups": Reference(
        lambda: resnet(Bottleneck, ONE_EACH, groups=32, width_per_group=4), settings="bottlenecks groups", **IMAGENET),
    "plain18": Reference(lambda: PlainNet([2, 2, 2, 2]), **IMAGENET),
    "bottlenecks/plain": Reference(
        lambda: PlainNet(ONE_EACH, bottleneck=True), settings="bottlenecks plain", image=64,
        batch=2),
    "cifar_resnet18": Reference(lambda: cifar_stem(resnet(BasicBlock, [2, 2, 2, 2])), 11_173_962),
    "seresnet18": Reference(lambda: timm.create_model("seresnet18", num_classes=10), 11_779_624 - 990 * 513, **THREE),
    "bottlenecks/se": Reference(
        lambda: timm.models.ResNet(
            timm.models.resnet.Bottleneck, ONE_EACH, num_classes=10, block_args={"attn_layer": "se"}),
        settings="bottlenecks se", **THREE),
    "resnets/max": Reference(
        lambda: timm.models.ResNet(timm.models.resnet.BasicBlock, ONE_EACH, num_classes=10, global_pool="max"),
        settings="resnet one_each max", **IMAGENET),
    "resnets/avgmax": Reference(
        lambda: timm.models.ResNet(timm.models.resnet.BasicBlock, ONE_EACH, num_classes=10, global_pool="avgmax"),
        settings="resnet one_each avgmax", **IMAGENET),
    "template_residual_cnn": Reference(lambda: TemplateResidualCnn(TEMPLATE, 64), **IMAGENET),
    "template_residual_cnn/big": Reference(
        lambda: TemplateResidualCnn(TEMPLATE, 64, big=True), settings="template_residual_cnn big", **IMAGENET),
}
