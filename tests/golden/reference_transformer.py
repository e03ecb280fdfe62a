"""PyTorch's side of the goldens for zoo-transformer: what each network is compared with. `generate.py` says how."""

import timm

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
