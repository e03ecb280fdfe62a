"""PyTorch's side of the goldens for zoo-mlp: what each network is compared with. `generate.py` says how."""

import timm
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


class TemplateMlp(nn.Module):
    def __init__(self, norm, middle, last, widths=(3072, 64, 48, 10)):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(o, affine=False) for o in widths[1:-1]) if norm else None
        self.middle, self.last = middle, last

    def forward(self, x):
        x = x.flatten(1)
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = self.middle(self.norms[i](x) if self.norms else x)
        return self.last(self.layers[-1](x))


class TemplateMixerLayer(nn.Module):
    def __init__(self, tokens, channels):
        super().__init__()
        def mlp(width):
            return nn.ModuleDict({"fc1": nn.Linear(width, width), "fc2": nn.Linear(width, width)})
        self.norm1, self.mlp_tokens = nn.LayerNorm(tokens), mlp(tokens)
        self.norm2, self.mlp_channels = nn.LayerNorm(channels), mlp(channels)

    def forward(self, x):
        y = self.norm1(x.transpose(1, 2))
        y = self.mlp_tokens["fc2"](F.gelu(self.mlp_tokens["fc1"](y)))
        x = x + y.transpose(1, 2)
        y = self.norm2(x)
        return x + self.mlp_channels["fc2"](F.gelu(self.mlp_channels["fc1"](y)))


class TemplateMixer(nn.Module):
    def __init__(self, patch, channels, layers):
        super().__init__()
        self.row, tokens = 3 * patch * patch, (32 // patch) ** 2
        self.embed = nn.Linear(self.row, channels)
        self.layers = nn.ModuleList(TemplateMixerLayer(tokens, channels) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm([tokens, channels]), nn.Linear(tokens, 10)

    def forward(self, x):
        x = self.embed(x.reshape(x.shape[0], -1, self.row))  # the memory as it lies, no patches
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(2))


def mixer():
    """timm's network, narrow and flat, with as many tokens as four by four patches give."""
    return timm.models.mlp_mixer.MlpMixer(
        num_classes=10, img_size=32, patch_size=8, num_blocks=3, embed_dim=64, mlp_ratio=(0.5, 4.0))


# name: how PyTorch builds it. Counts are published, so that a slip in a definition above shows.
MODELS = {
    "mlp": Reference(Mlp, 3072 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10),
    "mlp_bn": Reference(lambda: Mlp(norm=True), 3072 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10 + 2 * (512 + 256),
                        settings="mlp batch_norm"),
    "template_mlp": Reference(lambda: TemplateMlp(True, F.relu, lambda x: F.softmax(x, 1)), 64 * (3072 + 48) + 480,
                              batch=8, settings="template mlp"),
    "template_mlp_leaky": Reference(lambda: TemplateMlp(False, F.leaky_relu, torch.sigmoid), 64 * (3072 + 48) + 480,
                                    settings="template mlp leaky"),
    "mixer_narrow": Reference(mixer, batch=2, settings="mixer narrow"),
    "mixer_s32_224": Reference(lambda: timm.create_model("mixer_s32_224", num_classes=10, img_size=64),
                               batch=2, image=64),
    "template_mixer_s4": Reference(lambda: TemplateMixer(4, 128, 6), 273_674, batch=2),
}
