//! A convolution, a ReLU and a dropout on 32 photographs: what each does to the shape and to the numbers.
//!
//! `cargo run --release --example conv_relu_dropout`

use candle_core::{D, DType, Device, Result, Tensor};
use zoo_core::rng::Rng;
use zoo_core::{Conv2d, Conv2dConfig, Dropout, ModuleT, VarStore, relu};

/// Share of the elements that are exactly 0.
fn share_of_zeros(xs: &Tensor) -> Result<f64> {
    let zeros = xs.eq(0f32)?.to_dtype(DType::F32)?.flatten_all()?;
    Ok(f64::from(zeros.mean(D::Minus1)?.to_scalar::<f32>()?))
}

fn main() -> Result<()> {
    // A store owns the tensors; its seed fixes how they start and what the dropout drops.
    let store = VarStore::new(42, DType::F32, &Device::Cpu);
    let vb = store.root();

    // 32 images of 3 channels and 224x224 pixels, here of noise: (batch, channels, height, width).
    let (mut rng, shape) = (Rng::new(0, "images"), (32, 3, 224, 224));
    let noise = (0..32 * 3 * 224 * 224).map(|_| rng.normal() as f32).collect();
    let xs = Tensor::from_vec(noise, shape, &Device::Cpu)?;
    println!("images       {:?}", xs.dims());

    // AlexNet's first convolution: 64 kernels of 11x11, moved 4 pixels at a time, 2 rows of zeros around the image.
    // A side of n pixels becomes (n + 2 * padding - kernel) / stride + 1, rounded down: (224 + 4 - 11) / 4 + 1 = 55.
    let conv = Conv2d::new(3, 64, Conv2dConfig::new(11).stride(4).padding(2), vb.pp("conv"))?;
    let maps = conv.forward_t(&xs, true)?;
    println!("convolution  {:?}", maps.dims());
    assert_eq!(maps.dims(), &[32, 64, 55, 55]);
    // 64 kernels over 3 channels, and a bias each.
    assert_eq!(store.parameter_count(), 64 * 3 * 11 * 11 + 64);

    // ReLU keeps what is positive and makes the rest 0: the shape stays, and of values around 0 about half go.
    let active = relu(&maps)?;
    let zeros = share_of_zeros(&active)?;
    println!("ReLU         {:?}, {:.1} % zeros", active.dims(), 100.0 * zeros);
    assert_eq!(active.dims(), maps.dims());
    assert!((0.4..0.6).contains(&zeros));

    // In training, dropout makes every element 0 with probability p, and the others 1 / (1 - p) times as large, so that
    // the mean stays. (Whole channels go with `Dropout::channels`, which suits convolutions better: neighbours are
    // alike.)
    let dropout = Dropout::new(0.5, &vb.pp("dropout"))?;
    let dropped = dropout.forward_t(&active, true)?;
    println!("dropout      {:?}, {:.1} % zeros", dropped.dims(), 100.0 * share_of_zeros(&dropped)?);
    assert_eq!(dropped.dims(), maps.dims());
    // Half of what was left has gone.
    assert!((share_of_zeros(&dropped)? - (zeros + 0.5 * (1.0 - zeros))).abs() < 0.01);
    let mean = |xs: &Tensor| -> Result<f64> { Ok(f64::from(xs.mean_all()?.to_scalar::<f32>()?)) };
    assert!((mean(&dropped)? / mean(&active)? - 1.0).abs() < 0.01);

    // In evaluation it is the identity.
    let kept = dropout.forward_t(&active, false)?;
    assert_eq!((&kept - &active)?.abs()?.max_all()?.to_scalar::<f32>()?, 0.0);
    println!("in evaluation the dropout changes nothing");
    Ok(())
}
