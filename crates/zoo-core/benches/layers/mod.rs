//! Convolutions and products at the sizes where the networks spend their time.

use zoo_core::ops::Conv2dParams;

/// A convolution of a network.
#[derive(Clone, Copy)]
pub struct Layer {
    pub network: &'static str,
    pub b: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub side: usize,
    pub kernel: usize,
    pub stride: usize,
    pub groups: usize,
}

const fn layer(
    network: &'static str,
    b: usize,
    (c_in, c_out): (usize, usize),
    side: usize,
    (kernel, stride, groups): (usize, usize, usize),
) -> Layer {
    Layer { network, b, c_in, c_out, side, kernel, stride, groups }
}

/// The layers by network, each with its network's batch.
pub const LAYERS: &[Layer] = &[
    layer("resnet20 stem", 128, (3, 16), 32, (3, 1, 1)),
    layer("resnet20", 128, (16, 16), 32, (3, 1, 1)),
    layer("resnet20", 128, (16, 32), 32, (3, 2, 1)),
    layer("resnet20", 128, (32, 32), 16, (3, 1, 1)),
    layer("resnet20", 128, (64, 64), 8, (3, 1, 1)),
    layer("resnet18", 64, (64, 64), 32, (3, 1, 1)),
    layer("resnet18", 64, (64, 128), 32, (3, 2, 1)),
    layer("resnet18", 64, (64, 128), 32, (1, 2, 1)),
    layer("resnet18", 64, (128, 128), 16, (3, 1, 1)),
    layer("resnet18", 64, (256, 256), 8, (3, 1, 1)),
    layer("resnet18", 64, (512, 512), 4, (3, 1, 1)),
    layer("vgg16", 128, (3, 64), 32, (3, 1, 1)),
    layer("vgg16", 128, (128, 128), 16, (3, 1, 1)),
    layer("vgg16", 128, (256, 512), 4, (3, 1, 1)),
    layer("vgg16", 128, (512, 512), 2, (3, 1, 1)),
    layer("densenet121", 32, (256, 128), 32, (1, 1, 1)),
    layer("densenet121", 32, (128, 32), 32, (3, 1, 1)),
    layer("densenet121", 32, (512, 128), 8, (1, 1, 1)),
    layer("densenet121", 32, (1024, 512), 8, (1, 1, 1)),
    layer("mobilenet_v1 depthwise", 64, (64, 64), 32, (3, 2, 64)),
    layer("mobilenet_v1 depthwise", 64, (128, 128), 16, (3, 1, 128)),
    layer("mobilenet_v1 depthwise", 64, (512, 512), 4, (3, 1, 512)),
    layer("mobilenet_v1", 64, (64, 128), 16, (1, 1, 1)),
    layer("mobilenet_v1", 64, (512, 512), 4, (1, 1, 1)),
    layer("mobilenet_v2 depthwise", 64, (144, 144), 32, (3, 1, 144)),
    layer("mobilenet_v2 depthwise", 64, (192, 192), 16, (3, 2, 192)),
    layer("mobilenet_v2", 64, (16, 96), 32, (1, 1, 1)),
    layer("mobilenet_v2", 64, (144, 24), 32, (1, 1, 1)),
    layer("shufflenet_v1_g3", 64, (240, 60), 16, (1, 1, 3)),
    layer("shufflenet_v1_g3 depthwise", 64, (60, 60), 16, (3, 1, 60)),
    layer("shufflenet_v1_g3", 64, (60, 240), 16, (1, 1, 3)),
    layer("resnet50 stem", 8, (3, 64), 224, (7, 2, 1)),
    layer("vit_tiny patches", 64, (3, 192), 32, (4, 4, 1)),
];

impl Layer {
    pub fn name(&self) -> String {
        let Self { network, b, c_in, c_out, side, kernel, stride, groups } = self;
        format!("{network} b{b} {c_in}-{c_out} {side}x{side} k{kernel} s{stride} g{groups}")
    }

    pub fn params(&self) -> Conv2dParams {
        let pair = |n| (n, n);
        Conv2dParams {
            stride: pair(self.stride),
            padding: pair(self.padding()),
            groups: self.groups,
            ..Default::default()
        }
    }

    /// Operations of the forward pass, two for a multiply-add.
    pub fn flops(&self) -> u64 {
        let out = (self.side + 2 * self.padding() - self.kernel) / self.stride + 1;
        (2 * self.b * self.c_out * out * out * self.c_in / self.groups * self.kernel * self.kernel) as u64
    }

    fn padding(&self) -> usize {
        if self.kernel == self.stride { 0 } else { self.kernel / 2 }
    }
}

/// Linear layers: name, rows, inputs and outputs.
pub const LINEAR: [(&str, usize, usize, usize); 6] = [
    ("vit_tiny qkv", 64 * 65, 192, 576),
    ("vit_tiny mlp", 64 * 65, 192, 768),
    ("vit_tiny mlp", 64 * 65, 768, 192),
    ("mixer tokens", 128 * 128, 64, 64),
    ("mixer channels", 128 * 64, 128, 128),
    ("head", 128, 512, 10),
];
