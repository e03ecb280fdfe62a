//! What padding and pooling do to the size of an image, on a batch of 32 grey images of 28x28 pixels, as MNIST has.
//!
//! `cargo run --release --example padding_and_pooling`

use candle_core::{DType, Device, Module, Result, Tensor};
use zoo_core::{AvgPool2d, Conv2d, Conv2dConfig, MaxPool2d, ModuleT, VarStore, adaptive_avg_pool2d, global_avg_pool2d};

fn show(what: &str, xs: &Tensor, expected: &[usize]) {
    println!("{what:<44} {:?}", xs.dims());
    assert_eq!(xs.dims(), expected, "{what}");
}

fn main() -> Result<()> {
    let store = VarStore::new(42, DType::F32, &Device::Cpu);
    let vb = store.root();
    let xs = Tensor::arange(0f32, (32 * 28 * 28) as f32, &Device::Cpu)?.reshape((32, 1, 28, 28))?;
    show("images", &xs, &[32, 1, 28, 28]);

    println!("\nPadding");
    // A window of 5 pixels fits into 28 at 24 places: without padding ("valid") each convolution eats kernel - 1
    // pixels.
    let conv = |name: &str, config| Conv2d::new(1, 6, config, vb.pp(name))?.forward_t(&xs, false);
    show("5x5, no padding: 28 - 5 + 1", &conv("valid", Conv2dConfig::new(5))?, &[32, 6, 24, 24]);
    // (kernel - 1) / 2 zeros on every side give the pixels back: padding "same", for odd kernels and stride 1.
    for kernel in [1, 3, 5, 7] {
        let config = Conv2dConfig::new(kernel).padding((kernel - 1) / 2);
        let ys = conv(&format!("same{kernel}"), config)?;
        show(&format!("{kernel}x{kernel}, padding {} (same)", (kernel - 1) / 2), &ys, &[32, 6, 28, 28]);
    }
    // A dilated kernel reaches further: dilation * (kernel - 1) + 1 pixels, here 5.
    let config = Conv2dConfig::new(3).dilation(2).padding(2);
    show("3x3, dilation 2, padding 2 (same)", &conv("dilated", config)?, &[32, 6, 28, 28]);
    // With stride 2, padding "same" halves the image.
    let config = Conv2dConfig::new(3).stride(2).padding(1);
    show("3x3, stride 2, padding 1", &conv("strided", config)?, &[32, 6, 14, 14]);

    println!("\nPooling");
    // The largest, or the mean, of each 2x2 pixels. No weights; each channel on its own.
    let max = MaxPool2d::new(2, 2).forward(&xs)?;
    show("max 2x2, stride 2", &max, &[32, 1, 14, 14]);
    let mean = AvgPool2d::new(2, 2).forward(&xs)?;
    show("mean 2x2, stride 2", &mean, &[32, 1, 14, 14]);
    // The first image begins 0 1 … in its first row and 28 29 … in its second.
    let first = |xs: &Tensor| xs.flatten_all()?.get(0)?.to_scalar::<f32>();
    assert_eq!((first(&max)?, first(&mean)?), (29.0, (0.0 + 1.0 + 28.0 + 29.0) / 4.0));

    // Windows may overlap (AlexNet): 3x3 every 2 pixels fits 13 times, and the last column is never read …
    let overlapping = MaxPool2d::new(3, 2);
    show("max 3x3, stride 2", &overlapping.forward(&xs)?, &[32, 1, 13, 13]);
    // … unless the last window may reach over the edge (GoogLeNet), or zeros stand around the image (ResNet).
    show("max 3x3, stride 2, ceil_mode", &MaxPool2d { ceil_mode: true, ..overlapping }.forward(&xs)?, &[32, 1, 14, 14]);
    show("max 3x3, stride 2, padding 1", &MaxPool2d { padding: 1, ..overlapping }.forward(&xs)?, &[32, 1, 14, 14]);
    // Padding "same" and stride 1: a pooling that keeps the size, as inside an Inception module.
    let same = MaxPool2d { padding: 1, ..MaxPool2d::new(3, 1) };
    show("max 3x3, stride 1, padding 1 (same)", &same.forward(&xs)?, &[32, 1, 28, 28]);
    // Where the padding's zeros count, the mean at the edge is too small: 4 pixels of 9 in the corner.
    let counted = AvgPool2d { padding: 1, ..AvgPool2d::new(3, 1) };
    let not_counted = AvgPool2d { count_include_pad: false, ..counted };
    let corner = (0.0 + 1.0 + 28.0 + 29.0) / 4.0;
    assert!((first(&counted.forward(&xs)?)? - corner * 4.0 / 9.0).abs() < 1e-4);
    assert!((first(&not_counted.forward(&xs)?)? - corner).abs() < 1e-4);

    println!("\nTo a size that the classifier can count on");
    // A grid laid over the image, whatever its size: the classifier behind it fits every image.
    show("mean over the cells of a 7x7 grid", &adaptive_avg_pool2d(&xs, (7, 7))?, &[32, 1, 7, 7]);
    show("mean over the cells of a 6x6 grid", &adaptive_avg_pool2d(&xs, (6, 6))?, &[32, 1, 6, 6]);
    show("global mean", &global_avg_pool2d(&xs)?, &[32, 1]);
    Ok(())
}
