"""PyTorch's side of the goldens for zoo-transformer: what each network is compared with. `generate.py` says how."""

import math
from dataclasses import dataclass, field

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

from reference import Reference


def vit(image, patch, dim, depth, heads, **options):
    return lambda: timm.models.vision_transformer.VisionTransformer(
        img_size=image, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads, num_classes=10, **options)


# name: how PyTorch builds it. Counts are published, or are timm's.
MODELS = {
    # 4x4 patches of 16 pixels instead of 14x14: the positions shrink with the image.
    "vit_tiny_patch16_224": Reference(vit(64, 16, 192, 12, 3), 5_717_416 - 990 * 193 - 180 * 192, batch=2, image=64),
    "cifar_vit_tiny_patch4": Reference(vit(32, 4, 192, 12, 3), 5_362_762, batch=2),
    "vit_mean": Reference(vit(32, 8, 48, 3, 3, global_pool="avg", class_token=False), settings="vit mean"),
    "vit_mean_beside_class_token": Reference(vit(32, 8, 48, 3, 3, global_pool="avg"), settings="vit mean beside class token"),
}


# ---------------------------------------------------------------------------------------------------------- sequences

BATCH, SOURCE, TARGET, D_MODEL, VOCABULARY, PAD = 3, 7, 5, 32, 13, 0
# How many places of each source and target are no padding.
LENGTHS = [(7, 5), (4, 3), (1, 4)]


def padding(which, length):
    return torch.tensor([[j >= lengths[which] for j in range(length)] for lengths in LENGTHS])


def small(norm_first=False, activation="relu", final_norms=True):
    net = nn.Transformer(D_MODEL, 4, 2, 2, 64, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first)
    if not final_norms:
        net.encoder.norm = net.decoder.norm = None
    return net


@dataclass
class Sequences:
    """nn.Transformer itself, on embedded sequences."""

    name: str
    settings: dict = field(default_factory=dict)
    masks: bool = True

    def __post_init__(self):
        self.build = lambda settings=self.settings: small(**settings)
        self.settings = {"kind": "transformer", "masks": self.masks, **self.settings}

    def inputs(self, unit):
        return {"source": unit("source", (BATCH, SOURCE, D_MODEL)), "target": unit("target", (BATCH, TARGET, D_MODEL))}

    def run(self, net, source, target):
        if not self.masks:
            return net(source, target), None
        causal = torch.ones(TARGET, TARGET, dtype=torch.bool).triu(1)
        hidden = padding(0, SOURCE)
        return net(source, target, tgt_mask=causal, src_key_padding_mask=hidden, memory_key_padding_mask=hidden,
                   tgt_key_padding_mask=padding(1, TARGET)), None


class Translator(nn.Module):
    """The keys of PyTorch's tutorial on translation, the figures of Vaswani et al. 2017."""

    def __init__(self, sharing):
        super().__init__()
        self.transformer = small()
        self.generator = nn.Linear(D_MODEL, VOCABULARY)
        for name in ("src_tok_emb", "tgt_tok_emb"):
            setattr(self, name, nn.ModuleDict({"embedding": nn.Embedding(VOCABULARY, D_MODEL)}))
        if sharing != "none":
            self.tgt_tok_emb["embedding"].weight = self.generator.weight
        if sharing == "all":
            self.src_tok_emb["embedding"].weight = self.generator.weight

    def embed(self, table, tokens):
        place = torch.arange(tokens.shape[1], dtype=torch.float64)[:, None]
        angles = place / 10000 ** (torch.arange(0, D_MODEL, 2, dtype=torch.float64) / D_MODEL)
        positions = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
        return table["embedding"](tokens) * math.sqrt(D_MODEL) + positions

    def forward(self, source, target):
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        hidden = source == PAD
        states = self.transformer(
            self.embed(self.src_tok_emb, source), self.embed(self.tgt_tok_emb, target), tgt_mask=causal,
            src_key_padding_mask=hidden, memory_key_padding_mask=hidden, tgt_key_padding_mask=target == PAD)
        return self.generator(states)


@dataclass
class Tokens:
    """The translator with its loss."""

    name: str
    sharing: str
    label_smoothing: float = 0.1

    def __post_init__(self):
        self.build = lambda: Translator(self.sharing)
        self.settings = {"kind": "translator", "sharing": self.sharing, "label_smoothing": self.label_smoothing}

    def inputs(self, unit):
        def tokens(which, length):
            some = (unit(f"tokens{which}", (BATCH, length)) * 2**20).long() % (VOCABULARY - 1) + 1
            return some.masked_fill(padding(which, length), PAD)
        return {"source": tokens(0, SOURCE), "target": tokens(1, TARGET)}

    def run(self, net, source, target):
        logits = net(source, target[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD,
                               label_smoothing=self.label_smoothing)
        # What stands behind the end of a target is nobody's concern.
        return logits * (target[:, :-1] != PAD)[..., None], loss


SEQUENCES = [
    Sequences("post_norm_relu"),
    Sequences("post_norm_gelu", {"activation": "gelu"}),
    Sequences("pre_norm_relu", {"norm_first": True}),
    Sequences("pre_norm_gelu", {"norm_first": True, "activation": "gelu"}),
    Sequences("no_masks", masks=False),
    Sequences("no_final_norms", {"final_norms": False}),
    Tokens("translator", "none"),
    Tokens("translator_shares_target", "target"),
    Tokens("translator_shares_all", "all"),
    Tokens("translator_unsmoothed", "all", 0.0),
]
