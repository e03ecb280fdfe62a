"""PyTorch's side of the goldens for zoo-cnn: what each network is compared with. `generate.py` says how."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.models import AlexNet, DenseNet, GoogLeNet
from torchvision.models.vgg import VGG, cfgs, make_layers

from reference import Reference

# torchvision's hidden layers are wide enough for 100 million parameters; the goldens have the same layers, narrower.
HIDDEN = 256


def narrow(net):
    """`net` with hidden layers of HIDDEN and ten classes."""
    linear = [i for i, layer in enumerate(net.classifier) if isinstance(layer, nn.Linear)]
    c_in = net.classifier[linear[0]].in_features
    for i, c_out in zip(linear, [HIDDEN, HIDDEN, 10]):
        net.classifier[i] = nn.Linear(c_in, c_out)
        c_in = c_out
    return net


class CifarAlexNet(nn.Module):
    def __init__(self):
        super().__init__()
        layers, c_in = [], 3
        for c_out, kernel, pool in [(64, 5, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True)]:
            layers += [nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2)] if pool else []
            c_in = c_out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(256 * 3 * 3, 1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 1024), nn.ReLU(),
            nn.Linear(1024, 10),
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class CifarVgg16Bn(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.classifier = make_layers(cfgs["D"], batch_norm=True), nn.Linear(512, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def cifar_google_net():
    """torchvision's network behind a stem that keeps the size of the image."""
    net = GoogLeNet(num_classes=10, aux_logits=False, init_weights=False)
    net.conv1.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool1 = net.maxpool2 = nn.Identity()
    return net


def full_google_net():
    """torchvision's network with every option: auxiliary classifiers, its input transformed, the paper's 5x5 kernels."""
    net = GoogLeNet(num_classes=10, transform_input=True, init_weights=False)
    for module in net.modules():
        if type(module).__name__ == "Inception":
            conv = module.branch3[1].conv
            module.branch3[1].conv = nn.Conv2d(conv.in_channels, conv.out_channels, 5, padding=2, bias=False)
    return net


def dense_net(stem=None, norm0=True, pool0=True, **options):
    net = DenseNet(num_classes=10, **options)
    if stem:
        net.features.conv0 = nn.Conv2d(3, net.features.conv0.out_channels, bias=False, **stem)
    if not norm0:
        del net.features.norm0, net.features.relu0
    if not pool0:
        del net.features.pool0
    return net


SMALL_STEM = {"stem": {"kernel_size": 3, "padding": 1}, "pool0": False}


class PlainDenseNet(nn.Module):
    """Huang et al. 2016 without bottlenecks and compression: three blocks of two layers, k = 12."""

    def __init__(self):
        super().__init__()
        features, c = {"conv0": nn.Conv2d(3, 16, 3, padding=1, bias=False)}, 16
        for block in range(1, 4):
            if block > 1:
                features[f"transition{block - 1}"] = nn.ModuleDict(
                    {"norm": nn.BatchNorm2d(c), "conv": nn.Conv2d(c, c, 1, bias=False)})
            layers = {}
            for layer in range(1, 3):
                layers[f"denselayer{layer}"] = nn.ModuleDict(
                    {"norm1": nn.BatchNorm2d(c), "conv1": nn.Conv2d(c, 12, 3, padding=1, bias=False)})
                c += 12
            features[f"denseblock{block}"] = nn.ModuleDict(layers)
        self.features = nn.ModuleDict(features | {"norm5": nn.BatchNorm2d(c)})
        self.classifier = nn.Linear(c, 10)

    def forward(self, x):
        x = self.features["conv0"](x)
        for block in range(1, 4):
            if block > 1:
                transition = self.features[f"transition{block - 1}"]
                x = F.avg_pool2d(transition["conv"](F.relu(transition["norm"](x))), 2)
            for layer in self.features[f"denseblock{block}"].values():
                x = torch.cat([x, layer["conv1"](F.relu(layer["norm1"](x)))], 1)
        return self.classifier(F.relu(self.features["norm5"](x)).mean((2, 3)))


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
    # At 96 pixels the last map is 2x2, which the 6x6 grid repeats.
    "alexnet": Reference(lambda: narrow(AlexNet()), batch=2, image=96, settings="alexnet hidden 256"),
    "cifar_alexnet": Reference(CifarAlexNet),
    # At 64 pixels the last map is 2x2, on which the cells of the 7x7 grid overlap.
    "vgg11": Reference(
        lambda: narrow(VGG(make_layers(cfgs["A"]), init_weights=False)), batch=2, image=64, settings="vgg11 hidden 256"),
    "vgg13_bn": Reference(
        lambda: narrow(VGG(make_layers(cfgs["B"], batch_norm=True), init_weights=False)), settings="vgg13_bn hidden 256"),
    "cifar_vgg16_bn": Reference(CifarVgg16Bn, 14_728_266),
    "googlenet": Reference(lambda: GoogLeNet(num_classes=10, aux_logits=False, init_weights=False), image=64),
    "googlenet_auxiliary": Reference(
        full_google_net, image=64, auxiliary=0.3, settings="googlenet auxiliary transform_input kernel 5"),
    "cifar_googlenet": Reference(cifar_google_net, batch=2),
    "densenet121": Reference(lambda: DenseNet(num_classes=10), image=64),
    "densenet_unpadded": Reference(
        lambda: dense_net({"kernel_size": 7, "stride": 2}, block_config=(2, 1, 1, 2)), image=96,
        settings="densenet unpadded 2 1 1 2"),
    "cifar_densenet": Reference(lambda: dense_net(**SMALL_STEM, block_config=(2, 1, 1, 2)), settings="densenet small 2 1 1 2"),
    "cifar_densenet_bc_22_12": Reference(
        lambda: dense_net(**SMALL_STEM, norm0=False, growth_rate=12, block_config=(3, 3, 3), num_init_features=24),
        settings="densenet bc 22 12"),
    "cifar_densenet_10_12": Reference(PlainDenseNet, settings="densenet plain 10 12"),
    "template_cnn": Reference(TemplateCnn, 1_183_322),
}
