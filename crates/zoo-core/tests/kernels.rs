//! Every operation against plain loops in f64: output and every gradient, over random shapes, layouts and values, with every
//! kind of vectors that this machine has, in f32 and in f64. And what the loops show besides: NaN and infinities go where
//! IEEE arithmetic sends them, the number of threads changes no bit, a malformed shape is an error that names the shapes.
//!
//! # The rule of errors
//!
//! Rounding errors grow with what was summed, not with the sum. So the reference computes a second number beside each
//! value, its scale: of an input its absolute value, of a sum the sum of the scales, of a product their product, of f(x)
//! |f(x)| + |f'(x)| · scale(x). For a convolution the scale is the convolution of the absolute values. The rule is
//!
//! |ours - reference| ≤ ε · scale, with ε = 1e-5 in f32 and 1e-12 in f64,
//!
//! plus the smallest normal number, for what underflows. Inputs are f32 numbers, so that both types read the same.
//!
//! `PROPTEST_CASES` and `PROPTEST_RNG_SEED` ask for other cases than the fixed ones.

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use std::sync::{Mutex, PoisonError};
use zoo_core::ops::{self, Conv2dParams, Level, Pointwise, simd};
use zoo_core::rng::Rng;

// ---- The reference's numbers ----

/// A value and its scale.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Num {
    value: f64,
    scale: f64,
}

const ZERO: Num = Num { value: 0.0, scale: 0.0 };

fn num(x: f64) -> Num {
    Num { value: x, scale: x.abs() }
}

impl Num {
    /// f(self), given f and its derivative there.
    fn map(self, f: f64, derivative: f64) -> Self {
        Self { value: f, scale: f.abs() + derivative.abs() * self.scale }
    }

    fn exp(self) -> Self {
        self.map(self.value.exp(), self.value.exp())
    }

    fn tanh(self) -> Self {
        self.map(self.value.tanh(), 1.0 - self.value.tanh().powi(2))
    }

    fn erf(self) -> Self {
        self.map(erf(self.value), std::f64::consts::FRAC_2_SQRT_PI * (-self.value * self.value).exp())
    }

    fn ln(self) -> Self {
        self.map(self.value.ln(), 1.0 / self.value)
    }

    /// 1 / √self
    fn rsqrt(self) -> Self {
        self.map(self.value.sqrt().recip(), -0.5 * self.value.powf(-1.5))
    }
}

/// 2/√π · e^(-x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1·3·…·(2n+1)): all terms of one sign, so nothing cancels.
fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 7.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut total) = (x, 0.0);
    for n in 1..400 {
        total += term;
        term *= 2.0 * x * x / f64::from(2 * n + 1);
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * total
}

macro_rules! arithmetic {
    ($($trait:ident $op:ident($a:ident, $b:ident) = $value:expr, $scale:expr;)*) => {
        $(impl $trait for Num {
            type Output = Self;
            #[inline]
            fn $op(self, other: Self) -> Self {
                let ($a, $b) = (self, other);
                Self { value: $value, scale: $scale }
            }
        })*
    };
}

arithmetic! {
    Add add(a, b) = a.value + b.value, a.scale + b.scale;
    Sub sub(a, b) = a.value - b.value, a.scale + b.scale;
    Mul mul(a, b) = a.value * b.value, a.scale * b.scale;
    Div div(a, b) = a.value / b.value, (a.scale + (a.value / b.value).abs() * b.scale) / b.value.abs();
}

impl AddAssign for Num {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Neg for Num {
    type Output = Self;
    fn neg(self) -> Self {
        Self { value: -self.value, scale: self.scale }
    }
}

impl std::iter::Sum for Num {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(ZERO, Add::add)
    }
}

// ---- Inputs ----

/// How a tensor lies in memory. Whatever surrounds it is NaN, so that a kernel that strays is seen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lies {
    Contiguous,
    /// The last two dimensions exchanged.
    Transposed,
    /// A part of the last dimension.
    Narrowed,
    /// A part of the first dimension: contiguous from an offset.
    Offset,
}

fn lies() -> impl Strategy<Value = Lies> {
    prop_oneof![3 => Just(Lies::Contiguous), 1 => Just(Lies::Transposed), 1 => Just(Lies::Narrowed), 1 => Just(Lies::Offset)]
}

/// What the values are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Values {
    Uniform,
    /// Multiples of 1/2: ties, zeros, and every kink of the functions.
    Grid,
    MostlyZero,
}

fn values() -> impl Strategy<Value = Values> {
    prop_oneof![2 => Just(Values::Uniform), 1 => Just(Values::Grid), 1 => Just(Values::MostlyZero)]
}

fn draw(rng: &mut Rng, n: usize, values: Values, size: f64) -> Vec<f64> {
    let mut one = || match values {
        Values::Uniform => f64::from(rng.uniform_in(-size, size) as f32),
        Values::Grid => (rng.uniform_in(-size, size) * 2.0).round() / 2.0,
        Values::MostlyZero if rng.below(4) > 0 => 0.0,
        Values::MostlyZero => f64::from(rng.uniform_in(-size, size) as f32),
    };
    (0..n).map(|_| one()).collect()
}

#[derive(Debug, Clone)]
struct Input {
    dims: Vec<usize>,
    values: Vec<f64>,
    lies: Lies,
    /// Asks for its gradient.
    tracked: bool,
}

impl Input {
    fn new(rng: &mut Rng, dims: &[usize], values: Values, size: f64) -> Self {
        let n = dims.iter().product();
        Self { dims: dims.to_vec(), values: draw(rng, n, values, size), lies: Lies::Contiguous, tracked: true }
    }

    fn lying(self, lies: Lies) -> Self {
        Self { lies, ..self }
    }

    fn tracked(self, tracked: bool) -> Self {
        Self { tracked, ..self }
    }

    fn nums(&self) -> Vec<Num> {
        self.values.iter().map(|&x| num(x)).collect()
    }

    fn tensor(&self, dtype: DType) -> Result<Tensor> {
        Tensor::from_slice(&self.values, self.dims.as_slice(), &Device::Cpu)?.to_dtype(dtype)
    }

    /// What lies in memory.
    fn stored(&self, dtype: DType) -> Result<Tensor> {
        let plain = self.tensor(dtype)?;
        let rank = self.dims.len();
        let within = |dim: usize| {
            let rubbish = |n: usize| {
                let mut dims = self.dims.clone();
                dims[dim] = n;
                Tensor::full(f64::NAN, dims, &Device::Cpu)?.to_dtype(dtype)
            };
            Tensor::cat(&[&rubbish(1)?, &plain, &rubbish(2)?], dim)
        };
        match self.lies {
            Lies::Transposed if rank >= 2 => plain.transpose(rank - 2, rank - 1)?.contiguous(),
            Lies::Narrowed => within(rank - 1),
            Lies::Offset => within(0),
            _ => Ok(plain),
        }
    }

    /// The tensor itself in what lies in memory, or in the gradient of that.
    fn view(&self, stored: &Tensor) -> Result<Tensor> {
        let rank = self.dims.len();
        match self.lies {
            Lies::Transposed if rank >= 2 => stored.transpose(rank - 2, rank - 1),
            Lies::Narrowed => stored.narrow(rank - 1, 1, self.dims[rank - 1]),
            Lies::Offset => stored.narrow(0, 1, self.dims[0]),
            _ => Ok(stored.clone()),
        }
    }
}

// ---- The comparison ----

/// What the loops say: the output, and the gradients of Σ output · upstream.
struct Expected {
    dims: Vec<usize>,
    upstream: Vec<f64>,
    output: Vec<Num>,
    grads: Vec<Vec<Num>>,
}

/// `simd::force` holds for the whole process, and tests run side by side.
static FORCED: Mutex<()> = Mutex::new(());

fn with_level<R>(level: Level, f: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            simd::force(None).expect("no level is always supported");
        }
    }
    let _alone = FORCED.lock().unwrap_or_else(PoisonError::into_inner);
    let _restore = Restore;
    simd::force(Some(level)).expect("the level is supported");
    f()
}

fn fail(message: String) -> TestCaseError {
    TestCaseError::fail(message)
}

fn close(what: &str, got: &Tensor, want: &[Num], dtype: DType) -> std::result::Result<(), TestCaseError> {
    let got: Vec<f64> =
        got.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1()).map_err(|e| fail(e.to_string()))?;
    let (epsilon, tiny) =
        if dtype == DType::F32 { (1e-5, f64::from(f32::MIN_POSITIVE)) } else { (1e-12, f64::MIN_POSITIVE) };
    if got.len() != want.len() {
        return Err(fail(format!("{what}: {} elements for {}", got.len(), want.len())));
    }
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let value = want.value;
        // An infinite term that a function made finite again, as e^(-∞), has no scale.
        let scale = if want.scale.is_finite() { want.scale } else { value.abs() };
        let fits = if value.is_finite() {
            (got - value).abs() <= epsilon * scale + tiny
        } else {
            got == value || got.is_nan() && value.is_nan()
        };
        if !fits {
            return Err(fail(format!("{what}, element {i}: {got:e} for {value:e} of scale {scale:e}, {dtype:?}")));
        }
    }
    Ok(())
}

/// Runs `op` in both types with every kind of vectors, and compares. The upstream gradient arrives strided if so asked.
fn compare(
    inputs: &[Input],
    expected: &Expected,
    strided_upstream: bool,
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> std::result::Result<(), TestCaseError> {
    for level in Level::supported() {
        for dtype in [DType::F32, DType::F64] {
            let run = || -> Result<(Tensor, Vec<Option<Tensor>>)> {
                let vars = inputs.iter().map(|i| Var::from_tensor(&i.stored(dtype)?)).collect::<Result<Vec<_>>>()?;
                let place = |(input, var): (&Input, &Var)| {
                    input.view(&if input.tracked { var.as_tensor().clone() } else { var.as_detached_tensor() })
                };
                let ys = op(&inputs.iter().zip(&vars).map(place).collect::<Result<Vec<_>>>()?)?;
                let upstream = Tensor::from_slice(&expected.upstream, expected.dims.as_slice(), &Device::Cpu)?;
                let (mut left, mut right) = (ys.clone(), upstream.to_dtype(dtype)?);
                let rank = ys.rank();
                if strided_upstream && rank >= 2 {
                    left = left.transpose(rank - 2, rank - 1)?;
                    right = right.transpose(rank - 2, rank - 1)?;
                }
                let grads =
                    if inputs.iter().any(|i| i.tracked) { Some((left * right)?.sum_all()?.backward()?) } else { None };
                let grad = |(input, var): (&Input, &Var)| {
                    grads.as_ref().and_then(|g| g.get(var)).map(|g| input.view(g)).transpose()
                };
                Ok((ys, inputs.iter().zip(&vars).map(grad).collect::<Result<_>>()?))
            };
            let (ys, grads) = with_level(level, run).map_err(|e| fail(format!("{level:?}, {dtype:?}: {e}")))?;
            if ys.dims() != expected.dims || ys.dtype() != dtype {
                return Err(fail(format!("output {:?} {:?} for {:?} {dtype:?}", ys.dims(), ys.dtype(), expected.dims)));
            }
            close(&format!("output, {level:?}"), &ys, &expected.output, dtype)?;
            for (i, (input, grad)) in inputs.iter().zip(&grads).enumerate() {
                match (input.tracked, grad) {
                    (true, Some(grad)) => {
                        close(&format!("gradient of input {i}, {level:?}"), grad, &expected.grads[i], dtype)?;
                    }
                    (false, None) => {}
                    (true, None) => return Err(fail(format!("input {i} has no gradient"))),
                    (false, Some(_)) => return Err(fail(format!("input {i} asked for no gradient and has one"))),
                }
            }
        }
    }
    Ok(())
}

/// Holds `test` true for `cases` values of `strategy`.
fn property<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> std::result::Result<(), TestCaseError>) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(4);
    }
    TestRunner::new(config).run(&strategy, test).unwrap_or_else(|e| panic!("{e}"));
}

/// What a case has besides its shapes.
#[derive(Debug, Clone, Copy)]
struct Setting {
    lies: [Lies; 2],
    tracked: [bool; 2],
    values: Values,
    strided_upstream: bool,
    seed: u64,
}

impl Setting {
    /// Contiguous, tracked, uniform.
    fn plain(seed: u64) -> Self {
        let (lies, tracked) = ([Lies::Contiguous; 2], [true; 2]);
        Self { lies, tracked, values: Values::Uniform, strided_upstream: false, seed }
    }

    fn rng(&self) -> Rng {
        Rng::new(self.seed, "kernels")
    }
}

fn setting() -> impl Strategy<Value = Setting> {
    let tracked = || prop_oneof![4 => Just(true), 1 => Just(false)];
    ((lies(), lies()), (tracked(), tracked()), values(), any::<bool>(), any::<u64>()).prop_map(
        |(lies, tracked, values, strided_upstream, seed)| Setting {
            lies: lies.into(),
            tracked: tracked.into(),
            values,
            strided_upstream,
            seed,
        },
    )
}

fn channels() -> impl Strategy<Value = usize> {
    select(vec![1, 3, 5, 8, 16, 17, 24, 64])
}

fn side() -> impl Strategy<Value = (usize, usize)> {
    (1..=33usize, 1..=33usize)
}

// ---- Convolution ----

#[derive(Debug, Clone, Copy)]
struct Conv {
    b: usize,
    c_in: usize,
    c_out: usize,
    size: (usize, usize),
    kernel: (usize, usize),
    params: Conv2dParams,
    bias: bool,
}

impl Conv {
    fn reach(&self) -> (usize, usize) {
        let p = self.params;
        ((self.kernel.0 - 1) * p.dilation.0 + 1, (self.kernel.1 - 1) * p.dilation.1 + 1)
    }

    fn output(&self) -> (usize, usize) {
        let (p, reach) = (self.params, self.reach());
        let along = |n: usize, reach: usize, stride: usize, padding: usize| (n + 2 * padding - reach) / stride + 1;
        (along(self.size.0, reach.0, p.stride.0, p.padding.0), along(self.size.1, reach.1, p.stride.1, p.padding.1))
    }

    fn macs(&self) -> usize {
        let (oh, ow) = self.output();
        self.b * self.c_out * oh * ow * self.c_in / self.params.groups * self.kernel.0 * self.kernel.1
    }

    /// Large enough for its kernel, small enough for the loops.
    fn fitted(mut self) -> Self {
        let (reach, p) = (self.reach(), self.params);
        let least = (reach.0.saturating_sub(2 * p.padding.0).max(1), reach.1.saturating_sub(2 * p.padding.1).max(1));
        self.size = (self.size.0.max(least.0), self.size.1.max(least.1));
        while self.macs() > 1_000_000 {
            match () {
                () if self.b > 1 => self.b -= 1,
                () if self.size.0 > least.0 && self.size.0 >= self.size.1 => self.size.0 -= 1,
                () if self.size.1 > least.1 => self.size.1 -= 1,
                () if self.size.0 > least.0 => self.size.0 -= 1,
                () => break,
            }
        }
        self
    }

    fn inputs(&self, setting: &Setting) -> Vec<Input> {
        let (rng, values) = (&mut setting.rng(), setting.values);
        let weight = [self.c_out, self.c_in / self.params.groups, self.kernel.0, self.kernel.1];
        let xs = Input::new(rng, &[self.b, self.c_in, self.size.0, self.size.1], values, 1.0);
        let mut inputs = vec![
            xs.lying(setting.lies[0]).tracked(setting.tracked[0]),
            Input::new(rng, &weight, values, 1.0).lying(setting.lies[1]).tracked(setting.tracked[1]),
        ];
        if self.bias {
            inputs.push(Input::new(rng, &[self.c_out], values, 1.0).lying(setting.lies[1]));
        }
        inputs
    }

    fn expected(&self, inputs: &[Input], rng: &mut Rng) -> Expected {
        let Conv2dParams { stride, padding, dilation, groups } = self.params;
        let ((h, w), (oh, ow), (kh, kw)) = (self.size, self.output(), self.kernel);
        let (group_in, group_out) = (self.c_in / groups, self.c_out / groups);
        let dims = vec![self.b, self.c_out, oh, ow];
        let upstream = draw(rng, dims.iter().product(), Values::Uniform, 1.0);
        let (xs, weight) = (inputs[0].nums(), inputs[1].nums());
        let mut output = Vec::with_capacity(upstream.len());
        let (mut dx, mut dw, mut db) = (vec![ZERO; xs.len()], vec![ZERO; weight.len()], vec![ZERO; self.c_out]);
        for n in 0..self.b {
            for (o, db) in db.iter_mut().enumerate() {
                for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
                    let dy = num(upstream[output.len()]);
                    let mut y = inputs.get(2).map_or(ZERO, |bias| num(bias.values[o]));
                    *db += dy;
                    for (c, ki) in (0..group_in).flat_map(|c| (0..kh).map(move |ki| (c, ki))) {
                        let Some(row) = (i * stride.0 + ki * dilation.0).checked_sub(padding.0).filter(|&r| r < h)
                        else {
                            continue;
                        };
                        for kj in 0..kw {
                            let Some(col) = (j * stride.1 + kj * dilation.1).checked_sub(padding.1).filter(|&c| c < w)
                            else {
                                continue;
                            };
                            let channel = o / group_out * group_in + c;
                            let x = ((n * self.c_in + channel) * h + row) * w + col;
                            let k = ((o * group_in + c) * kh + ki) * kw + kj;
                            y += xs[x] * weight[k];
                            dx[x] += weight[k] * dy;
                            dw[k] += xs[x] * dy;
                        }
                    }
                    output.push(y);
                }
            }
        }
        Expected { dims, upstream, output, grads: vec![dx, dw, db] }
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Tensor> {
        ops::conv2d(&inputs[0], &inputs[1], inputs.get(2), self.params)
    }

    fn check(&self, setting: &Setting) -> std::result::Result<(), TestCaseError> {
        let inputs = self.inputs(setting);
        let expected = self.expected(&inputs, &mut Rng::new(setting.seed, "upstream"));
        compare(&inputs, &expected, setting.strided_upstream, |t| self.run(t))
    }
}

fn square(kernel: usize, stride: usize, padding: usize) -> ((usize, usize), Conv2dParams) {
    let pair = |n| (n, n);
    ((kernel, kernel), Conv2dParams { stride: pair(stride), padding: pair(padding), ..Conv2dParams::default() })
}

/// The windows that networks have, as often as any other.
fn window() -> impl Strategy<Value = ((usize, usize), Conv2dParams)> {
    let usual = select(vec![square(3, 1, 1), square(3, 2, 1), square(1, 1, 0), square(1, 2, 0), square(5, 1, 2)]);
    let pair = |range: std::ops::RangeInclusive<usize>| (range.clone(), range);
    let other = (pair(1..=5), pair(1..=4), pair(0..=3), pair(1..=2)).prop_map(|(kernel, stride, padding, dilation)| {
        (kernel, Conv2dParams { stride, padding, dilation, groups: 1 })
    });
    prop_oneof![usual, other]
}

fn conv() -> impl Strategy<Value = Conv> {
    let grouping = prop_oneof![3 => Just(0usize), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    (1..=4usize, channels(), channels(), side(), window(), grouping, any::<bool>()).prop_map(
        |(b, c_in, c_out, size, (kernel, params), grouping, bias)| {
            let (c_in, c_out, groups) = match grouping {
                0 => (c_in, c_out, 1),
                1 => (c_in.next_multiple_of(2), c_out.next_multiple_of(2), 2),
                // Depthwise, with one or two outputs a channel.
                multiplier => (c_in, c_in * (multiplier - 1), c_in),
            };
            Conv { b, c_in, c_out, size, kernel, params: Conv2dParams { groups, ..params }, bias }.fitted()
        },
    )
}

#[test]
fn convolution() {
    property(600, (conv(), setting()), |(conv, setting)| conv.check(&setting));
}

/// Many channels and images on planes of a few pixels, where the products run over the images.
#[test]
fn convolution_of_small_planes() {
    let pointwise = ((1usize, 1usize), Conv2dParams::default());
    let windows = prop_oneof![2 => window(), 1 => Just(pointwise)];
    let (images, channels, side) = (8..=11usize, select(vec![32usize, 33, 48, 70]), 1..=7usize);
    let convs = (images, (channels.clone(), channels), (side.clone(), side), windows, 1..=2usize, any::<bool>());
    let convs = convs.prop_map(|(b, (c_in, c_out), size, (kernel, params), groups, bias)| {
        let (c_in, c_out) = (c_in * groups, c_out * groups);
        let mut conv = Conv { b, c_in, c_out, size, kernel, params: Conv2dParams { groups, ..params }, bias };
        let (reach, p) = (conv.reach(), params.padding);
        conv.size = (size.0.max(reach.0.saturating_sub(2 * p.0)), size.1.max(reach.1.saturating_sub(2 * p.1)));
        conv
    });
    property(40, (convs, setting()), |(conv, setting)| conv.check(&setting));
}

/// Rows of whole vectors, of which one packed copy serves all horizontal taps: shifts that stay in the zeros between the rows, fill
/// them, and reach past them; outputs as wide as the input, narrower and wider by whole vectors.
#[test]
fn convolution_of_whole_rows() {
    let width = select(vec![8usize, 16, 24, 32, 48]);
    let taps = (select(vec![2usize, 3, 5]), 1..=9usize, select(vec![0usize, 1, 2]));
    let sizes = (1..=5usize, select(vec![1usize, 3, 8, 17]), 1..=9usize, width, taps, 1..=2usize, any::<bool>());
    let convs = sizes.prop_map(|(b, channels, height, width, (taps, dilation, share), groups, bias)| {
        let reach = (taps - 1) * dilation + 1;
        // No padding, what keeps the width, or all that meets the image.
        let padding = (reach - 1) * share / 2;
        let params = Conv2dParams { padding: (1, padding), dilation: (1, dilation), groups, ..Conv2dParams::default() };
        let (c_in, c_out) = (channels * groups, (channels + 1) * groups);
        let size = (height, width.max(reach.saturating_sub(2 * padding)));
        Conv { b, c_in, c_out, size, kernel: (3, taps), params, bias }
    });
    property(120, (convs, setting()), |(conv, setting)| conv.check(&setting));
}

/// Larger than a tile of any kind, which the random cases seldom are.
#[test]
fn large_convolution() {
    let conv = |b, c_in, c_out, size, (kernel, params): (_, Conv2dParams), groups| Conv {
        b,
        c_in,
        c_out,
        size,
        kernel,
        params: Conv2dParams { groups, ..params },
        bias: true,
    };
    let cases = [
        conv(1, 64, 64, (33, 33), square(3, 1, 1), 1),
        conv(9, 16, 16, (16, 16), square(3, 1, 1), 1),
        conv(2, 3, 64, (41, 37), square(7, 2, 3), 1),
        conv(3, 300, 72, (8, 8), square(1, 1, 0), 1),
        conv(2, 130, 17, (16, 16), square(1, 2, 0), 1),
        conv(3, 60, 240, (15, 15), square(1, 1, 0), 3),
        conv(3, 96, 96, (33, 31), square(3, 2, 1), 96),
        conv(1, 20, 70, (4, 4), square(3, 1, 1), 1),
        conv(17, 512, 40, (1, 1), square(3, 1, 1), 1),
        conv(35, 260, 40, (4, 4), square(3, 1, 1), 1),
        conv(9, 32, 130, (15, 15), square(3, 2, 1), 1),
        conv(5, 96, 70, (7, 7), square(1, 1, 0), 1),
        conv(1, 3, 5, (70, 65), square(11, 4, 2), 1),
    ];
    for (i, conv) in cases.iter().enumerate() {
        conv.check(&Setting::plain(i as u64)).unwrap_or_else(|e| panic!("{conv:?}: {e}"));
    }
}

// ---- Products ----

/// (m, k) · (k, n) with gradients, added into the places.
fn product(a: &[Num], b: &[Num], dy: &[f64], (m, k, n): (usize, usize, usize)) -> [Vec<Num>; 3] {
    let (mut y, mut da, mut db) = (vec![ZERO; m * n], vec![ZERO; m * k], vec![ZERO; k * n]);
    for i in 0..m {
        for l in 0..k {
            for j in 0..n {
                let grad = num(dy[i * n + j]);
                y[i * n + j] += a[i * k + l] * b[l * n + j];
                da[i * k + l] += grad * b[l * n + j];
                db[l * n + j] += a[i * k + l] * grad;
            }
        }
    }
    [y, da, db]
}

fn transposed(xs: &[Num], rows: usize, cols: usize) -> Vec<Num> {
    (0..cols).flat_map(|j| (0..rows).map(move |i| xs[i * cols + j])).collect()
}

fn check_linear(
    (lead, c_in, c_out, bias): (&[usize], usize, usize, bool),
    setting: &Setting,
) -> std::result::Result<(), TestCaseError> {
    let (rng, values) = (&mut setting.rng(), setting.values);
    let mut inputs = vec![
        Input::new(rng, &[lead, &[c_in]].concat(), values, 1.0).lying(setting.lies[0]).tracked(setting.tracked[0]),
        Input::new(rng, &[c_out, c_in], values, 1.0).lying(setting.lies[1]).tracked(setting.tracked[1]),
    ];
    if bias {
        inputs.push(Input::new(rng, &[c_out], values, 1.0).lying(setting.lies[1]));
    }
    let rows: usize = lead.iter().product();
    let upstream = draw(rng, rows * c_out, Values::Uniform, 1.0);
    let weight = transposed(&inputs[1].nums(), c_out, c_in);
    let [mut output, dx, dw] = product(&inputs[0].nums(), &weight, &upstream, (rows, c_in, c_out));
    let mut db = vec![ZERO; c_out];
    for (i, (y, &dy)) in output.iter_mut().zip(&upstream).enumerate() {
        *y += inputs.get(2).map_or(ZERO, |bias| num(bias.values[i % c_out]));
        db[i % c_out] += num(dy);
    }
    let grads = vec![dx, transposed(&dw, c_in, c_out), db];
    let expected = Expected { dims: [lead, &[c_out]].concat(), upstream, output, grads };
    compare(&inputs, &expected, setting.strided_upstream, |t| ops::linear(&t[0], &t[1], t.get(2)))
}

#[test]
fn linear() {
    let lead = proptest::collection::vec(1..=9usize, 1..=3);
    let widths = (1..=70usize, 1..=70usize);
    property(200, (lead, widths, any::<bool>(), setting()), |(lead, (c_in, c_out), bias, setting)| {
        check_linear((&lead, c_in, c_out, bias), &setting)
    });
    for (i, (rows, c_in, c_out)) in
        [(1, 512, 10), (130, 192, 576), (64, 3, 130), (300, 48, 128)].into_iter().enumerate()
    {
        check_linear((&[rows], c_in, c_out, true), &Setting::plain(i as u64)).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn matrix_product() {
    let lead = proptest::collection::vec(1..=3usize, 0..=2);
    let sizes = (1..=40usize, 1..=40usize, 1..=40usize);
    property(150, (lead, sizes, setting()), |(lead, (m, k, n), setting)| {
        let (rng, values) = (&mut setting.rng(), setting.values);
        let input = |rng: &mut Rng, tail: &[usize], i: usize| {
            let input = Input::new(rng, &[&lead, tail].concat(), values, 1.0);
            input.lying(setting.lies[i]).tracked(setting.tracked[i])
        };
        let inputs = [input(rng, &[m, k], 0), input(rng, &[k, n], 1)];
        let batch: usize = lead.iter().product();
        let upstream = draw(rng, batch * m * n, Values::Uniform, 1.0);
        let (a, b) = (inputs[0].nums(), inputs[1].nums());
        let mut all = [const { Vec::new() }; 3];
        for i in 0..batch {
            let part = |n: usize| i * n..(i + 1) * n;
            let parts = product(&a[part(m * k)], &b[part(k * n)], &upstream[part(m * n)], (m, k, n));
            all.iter_mut().zip(parts).for_each(|(all, part)| all.extend(part));
        }
        let [output, da, db] = all;
        let expected = Expected { dims: [lead.as_slice(), &[m, n]].concat(), upstream, output, grads: vec![da, db] };
        compare(&inputs, &expected, setting.strided_upstream, |t| ops::matmul(&t[0], &t[1]))
    });
}

// ---- Normalisation ----

/// Mean and biased variance.
fn moments(xs: &[Num]) -> (Num, Num) {
    let n = num(xs.len() as f64);
    let mean = xs.iter().copied().sum::<Num>() / n;
    (mean, xs.iter().map(|&x| (x - mean) * (x - mean)).sum::<Num>() / n)
}

/// The gradient of x̂ = (x - μ) / std over one group, given that of x̂.
fn normalised_grad(normal: &[Num], dy: &[Num], inv_std: Num) -> Vec<Num> {
    let n = num(dy.len() as f64);
    let along_one = dy.iter().copied().sum::<Num>() / n;
    let along_x = dy.iter().zip(normal).map(|(&dy, &x)| dy * x).sum::<Num>() / n;
    dy.iter().zip(normal).map(|(&dy, &x)| (dy - along_one - x * along_x) * inv_std).collect()
}

/// The inputs x, weight, bias of a norm; weights near 1.
fn norm_inputs(setting: &Setting, dims: &[usize], affine: &[usize], size: f64) -> Vec<Input> {
    let rng = &mut setting.rng();
    let mut inputs = vec![
        Input::new(rng, dims, setting.values, size).lying(setting.lies[0]).tracked(setting.tracked[0]),
        Input::new(rng, affine, Values::Uniform, 0.5).lying(setting.lies[1]).tracked(setting.tracked[1]),
        Input::new(rng, affine, setting.values, 1.0).tracked(setting.tracked[1]),
    ];
    inputs[1].values.iter_mut().for_each(|w| *w = f64::from((*w + 1.0) as f32));
    inputs
}

const EPS: f64 = 1e-3;

/// Batch normalisation by the batch's statistics, or by the given (mean, variance).
fn batch_norm_expected(inputs: &[Input], given: Option<&[Input; 2]>, upstream: Vec<f64>) -> Expected {
    let dims = inputs[0].dims.clone();
    let (c, s) = (dims[1], dims[2..].iter().product::<usize>());
    let (xs, weight, bias) = (inputs[0].nums(), inputs[1].nums(), inputs[2].nums());
    let (mut output, mut dx) = (vec![ZERO; xs.len()], vec![ZERO; xs.len()]);
    let (mut dw, mut db) = (vec![ZERO; c], vec![ZERO; c]);
    for channel in 0..c {
        let places: Vec<usize> = (0..xs.len()).filter(|i| i / s % c == channel).collect();
        let x: Vec<Num> = places.iter().map(|&i| xs[i]).collect();
        let dy: Vec<Num> = places.iter().map(|&i| num(upstream[i])).collect();
        let (mean, var) = match given {
            Some([mean, var]) => (num(mean.values[channel]), num(var.values[channel])),
            None => moments(&x),
        };
        let inv_std = (var + num(EPS)).rsqrt();
        let normal: Vec<Num> = x.iter().map(|&x| (x - mean) * inv_std).collect();
        let scaled: Vec<Num> = dy.iter().map(|&dy| dy * weight[channel]).collect();
        let grad = match given {
            Some(_) => scaled.iter().map(|&dy| dy * inv_std).collect(),
            None => normalised_grad(&normal, &scaled, inv_std),
        };
        for (k, &i) in places.iter().enumerate() {
            output[i] = normal[k] * weight[channel] + bias[channel];
            dx[i] = grad[k];
            dw[channel] += dy[k] * normal[k];
            db[channel] += dy[k];
        }
    }
    Expected { dims, upstream, output, grads: vec![dx, dw, db] }
}

fn run_batch_norm(t: &[Tensor], given: Option<&[Input; 2]>) -> Result<Tensor> {
    match given {
        Some([mean, var]) => {
            let (mean, var) = (mean.tensor(t[0].dtype())?, var.tensor(t[0].dtype())?);
            ops::batch_norm(&t[0], &t[1], &t[2], (&mean, &var), EPS, false)
        }
        None => {
            let stats = ops::batch_stats(&t[0])?;
            ops::batch_norm(&t[0], &t[1], &t[2], (&stats.mean, &stats.var), EPS, true)
        }
    }
}

#[test]
fn batch_normalisation() {
    let rest = prop_oneof![Just(vec![]), (1..=33usize).prop_map(|n| vec![n]), side().prop_map(|(h, w)| vec![h, w])];
    // Small planes of eight images and more go another way than others.
    let images = prop_oneof![3 => 1..=9usize, 1 => 30..=70usize];
    property(200, (images, channels(), rest, any::<bool>(), setting()), |(b, c, rest, train, setting)| {
        let dims = [&[b, c], rest.as_slice()].concat();
        let inputs = norm_inputs(&setting, &dims, &[c], 3.0);
        let rng = &mut Rng::new(setting.seed, "statistics");
        let mut given = [Input::new(rng, &[c], Values::Uniform, 1.0), Input::new(rng, &[c], Values::Uniform, 1.0)];
        given[1].values.iter_mut().for_each(|v| *v = v.abs());
        let given = (!train).then_some(&given);
        let upstream = draw(rng, dims.iter().product(), Values::Uniform, 1.0);
        let expected = batch_norm_expected(&inputs, given, upstream);
        compare(&inputs, &expected, setting.strided_upstream, |t| run_batch_norm(t, given))
    });
}

#[test]
fn batch_statistics() {
    property(40, (1..=9usize, channels(), side(), setting()), |(b, c, (h, w), setting)| {
        let xs =
            Input::new(&mut setting.rng(), &[b, c, h, w], setting.values, 3.0).lying(setting.lies[0]).tracked(false);
        let of = |channel: usize| -> Vec<Num> {
            xs.nums().into_iter().enumerate().filter(|(i, _)| i / (h * w) % c == channel).map(|(_, x)| x).collect()
        };
        let all: Vec<(Num, Num)> = (0..c).map(|channel| moments(&of(channel))).collect();
        let output = all.iter().map(|m| m.0).chain(all.iter().map(|m| m.1)).collect();
        let expected = Expected { dims: vec![2, c], upstream: vec![0.0; 2 * c], output, grads: Vec::new() };
        compare(&[xs], &expected, false, |t| {
            let stats = ops::batch_stats(&t[0])?;
            assert_eq!(stats.count, b * h * w);
            Tensor::stack(&[stats.mean, stats.var], 0)
        })
    });
}

/// The rule forgives what a large mean makes of a variance in one pass, PyTorch does not: E\[x²\] - μ² would lose every digit here.
#[test]
fn a_large_mean_costs_the_variance_no_digits() {
    for level in Level::supported() {
        for dims in [[4, 3, 9, 11], [2, 5, 33, 33]] {
            let mut xs = Input::new(&mut Rng::new(1, "mean"), &dims, Values::Uniform, 1.0);
            xs.values.iter_mut().for_each(|x| *x = f64::from((*x + 3000.0) as f32));
            let (c, s) = (dims[1], dims[2] * dims[3]);
            let (var, normal) = with_level(level, || {
                let xs = xs.tensor(DType::F32).unwrap();
                let (ones, zeros) =
                    (Tensor::ones(s, DType::F32, &Device::Cpu), Tensor::zeros(s, DType::F32, &Device::Cpu));
                let rows = xs.reshape(((), s)).unwrap();
                let normal = ops::layer_norm(&rows, &ones.unwrap(), &zeros.unwrap(), 0.0).unwrap();
                let var = ops::batch_stats(&xs).unwrap().var.to_vec1::<f32>().unwrap();
                (var, normal.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            });
            for (channel, &got) in var.iter().enumerate() {
                let x: Vec<Num> = (xs.nums().into_iter().enumerate())
                    .filter_map(|(i, x)| (i / s % c == channel).then_some(x))
                    .collect();
                let want = moments(&x).1.value;
                assert!((f64::from(got) / want - 1.0).abs() < 1e-4, "{level:?}: {got} for {want}");
            }
            for (got, xs) in normal.chunks(s).zip(xs.nums().chunks(s)) {
                let (mean, var) = moments(xs);
                for (&got, x) in got.iter().zip(xs) {
                    // The sums of f32 numbers of this size leave some 1e-3 in the mean.
                    let want = (x.value - mean.value) / var.value.sqrt();
                    assert!((f64::from(got) - want).abs() < 5e-3, "{level:?}: {got} for {want}");
                }
            }
        }
    }
}

fn layer_norm_expected(inputs: &[Input], upstream: Vec<f64>) -> Expected {
    let (xs, weight, bias) = (inputs[0].nums(), inputs[1].nums(), inputs[2].nums());
    let n = weight.len();
    let (mut output, mut dx) = (Vec::new(), Vec::new());
    let (mut dw, mut db) = (vec![ZERO; n], vec![ZERO; n]);
    for (x, dy) in xs.chunks(n).zip(upstream.chunks(n)) {
        let (mean, var) = moments(x);
        let inv_std = (var + num(EPS)).rsqrt();
        let normal: Vec<Num> = x.iter().map(|&x| (x - mean) * inv_std).collect();
        let scaled: Vec<Num> = dy.iter().zip(&weight).map(|(&dy, &w)| num(dy) * w).collect();
        dx.extend(normalised_grad(&normal, &scaled, inv_std));
        for i in 0..n {
            output.push(normal[i] * weight[i] + bias[i]);
            dw[i] += num(dy[i]) * normal[i];
            db[i] += num(dy[i]);
        }
    }
    Expected { dims: inputs[0].dims.clone(), upstream, output, grads: vec![dx, dw, db] }
}

#[test]
fn layer_normalisation() {
    let lead = proptest::collection::vec(1..=9usize, 0..=2);
    let tail =
        prop_oneof![(1..=300usize).prop_map(|n| vec![n]), (1..=9usize, 1..=33usize).prop_map(|(m, n)| vec![m, n])];
    property(200, (lead, tail, setting()), |(lead, tail, setting)| {
        let dims = [lead, tail.clone()].concat();
        let inputs = norm_inputs(&setting, &dims, &tail, 3.0);
        let upstream = draw(&mut Rng::new(setting.seed, "upstream"), dims.iter().product(), Values::Uniform, 1.0);
        let expected = layer_norm_expected(&inputs, upstream);
        compare(&inputs, &expected, setting.strided_upstream, |t| ops::layer_norm(&t[0], &t[1], &t[2], EPS))
    });
}

// ---- Softmax and the loss ----

/// e^(x - max) of a row, and their sum. The difference of two inputs is rounded once.
fn exponentials(row: &[f64]) -> (Vec<Num>, Num) {
    // As PyTorch, a NaN among the inputs is the largest.
    let max = row.iter().copied().fold(f64::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
    let exps: Vec<Num> = row.iter().map(|&x| num(x - max).exp()).collect();
    let total = exps.iter().copied().sum();
    (exps, total)
}

fn softmax_expected(input: &Input, upstream: Vec<f64>) -> Expected {
    let n = *input.dims.last().expect("a last dimension");
    let (mut output, mut dx) = (Vec::new(), Vec::new());
    for (row, dy) in input.values.chunks(n).zip(upstream.chunks(n)) {
        let (exps, total) = exponentials(row);
        let ys: Vec<Num> = exps.into_iter().map(|e| e / total).collect();
        let along: Num = ys.iter().zip(dy).map(|(&y, &dy)| y * num(dy)).sum();
        dx.extend(ys.iter().zip(dy).map(|(&y, &dy)| y * (num(dy) - along)));
        output.extend(ys);
    }
    Expected { dims: input.dims.clone(), upstream, output, grads: vec![dx] }
}

#[test]
fn softmax() {
    let lead = proptest::collection::vec(1..=9usize, 0..=3);
    property(200, (lead, 1..=200usize, select(vec![1.0, 10.0, 80.0]), setting()), |(lead, n, size, setting)| {
        let input =
            Input::new(&mut setting.rng(), &[lead, vec![n]].concat(), setting.values, size).lying(setting.lies[0]);
        let upstream = draw(&mut Rng::new(setting.seed, "upstream"), input.values.len(), Values::Uniform, 1.0);
        let expected = softmax_expected(&input, upstream);
        compare(&[input], &expected, setting.strided_upstream, |t| ops::softmax(&t[0]))
    });
}

fn cross_entropy_expected(logits: &Input, targets: &[u32], smoothing: f64, upstream: f64) -> Expected {
    let (b, classes) = (logits.dims[0], logits.dims[1]);
    let (mut loss, mut dx) = (ZERO, Vec::new());
    for (row, &target) in logits.values.chunks(classes).zip(targets) {
        let (exps, total) = exponentials(row);
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for (k, &x) in row.iter().enumerate() {
            let q = smoothing / classes as f64 + if k == target as usize { 1.0 - smoothing } else { 0.0 };
            if q > 0.0 {
                loss += num(q) * (total.ln() - num(x - max)) / num(b as f64);
            }
            dx.push((exps[k] / total - num(q)) * num(upstream) / num(b as f64));
        }
    }
    Expected { dims: Vec::new(), upstream: vec![upstream], output: vec![loss], grads: vec![dx] }
}

#[test]
fn cross_entropy() {
    let smoothing = select(vec![0.0, 0.1, 1.0]);
    property(80, (1..=33usize, 1..=120usize, smoothing, setting()), |(b, classes, smoothing, setting)| {
        let rng = &mut setting.rng();
        let logits = Input::new(rng, &[b, classes], setting.values, 8.0).lying(setting.lies[0]);
        let targets: Vec<u32> = (0..b).map(|_| rng.below(classes) as u32).collect();
        let expected = cross_entropy_expected(&logits, &targets, smoothing, 0.75);
        let targets = Tensor::new(targets, &Device::Cpu).expect("on the CPU");
        compare(&[logits], &expected, false, |t| ops::cross_entropy(&t[0], &targets, smoothing))
    });
}

// ---- Functions ----

const FUNCTIONS: [Pointwise; 11] = [
    Pointwise::Relu,
    Pointwise::Relu6,
    Pointwise::LeakyRelu(0.01),
    Pointwise::LeakyRelu(0.25),
    Pointwise::Gelu,
    Pointwise::GeluTanh,
    Pointwise::Silu,
    Pointwise::Sigmoid,
    Pointwise::Tanh,
    Pointwise::HardSigmoid,
    Pointwise::HardSwish,
];

/// f(x) and f'(x), with PyTorch's derivative at the kinks.
fn function(f: Pointwise, at: f64) -> (Num, Num) {
    let (x, one, half) = (num(at), num(1.0), num(0.5));
    // Not min and max, which would swallow a NaN.
    let six = |y: f64| y.clamp(0.0, 6.0);
    let sigmoid = || one / (one + (-x).exp());
    match f {
        Pointwise::Relu if at <= 0.0 => (ZERO, ZERO),
        Pointwise::Relu => (x, one),
        Pointwise::Relu6 => (num(six(at)), if at <= 0.0 || at >= 6.0 { ZERO } else { one }),
        Pointwise::LeakyRelu(_) if at > 0.0 => (x, one),
        Pointwise::LeakyRelu(slope) => (x * num(slope), num(slope)),
        Pointwise::Gelu => {
            let cdf = half * (one + (x * num(std::f64::consts::FRAC_1_SQRT_2)).erf());
            let density = (num(-0.5) * x * x).exp() * num((2.0 * std::f64::consts::PI).sqrt().recip());
            (x * cdf, cdf + x * density)
        }
        Pointwise::GeluTanh => {
            let (a, b) = (num((2.0 / std::f64::consts::PI).sqrt()), num(0.044_715));
            let t = (a * (x + b * x * x * x)).tanh();
            let inner = a * (one + num(3.0) * b * x * x);
            (half * x * (one + t), half * (one + t) + half * x * (one - t * t) * inner)
        }
        Pointwise::Silu => {
            let s = sigmoid();
            (x * s, s * (one + x * (one - s)))
        }
        Pointwise::Sigmoid => (sigmoid(), sigmoid() * (one - sigmoid())),
        Pointwise::Tanh => (x.tanh(), one - x.tanh() * x.tanh()),
        Pointwise::HardSigmoid => {
            (num(six(at + 3.0)) / num(6.0), if at > -3.0 && at < 3.0 { one / num(6.0) } else { ZERO })
        }
        Pointwise::HardSwish => {
            let slope = if at <= -3.0 {
                ZERO
            } else if at < 3.0 {
                x / num(3.0) + half
            } else {
                one
            };
            (x * num(six(at + 3.0)) / num(6.0), slope)
        }
    }
}

fn pointwise_expected(f: Pointwise, input: &Input, upstream: Vec<f64>) -> Expected {
    let (output, slopes): (Vec<Num>, Vec<Num>) = input.values.iter().map(|&x| function(f, x)).unzip();
    let dx = slopes.into_iter().zip(&upstream).map(|(slope, &dy)| slope * num(dy)).collect();
    Expected { dims: input.dims.clone(), upstream, output, grads: vec![dx] }
}

#[test]
fn pointwise() {
    let dims =
        proptest::collection::vec(1..=17usize, 1..=4).prop_filter("small", |d| d.iter().product::<usize>() < 9000);
    let size = select(vec![0.1, 4.0, 8.0, 60.0]);
    property(400, (select(FUNCTIONS.to_vec()), dims, size, setting()), |(f, dims, size, setting)| {
        let input = Input::new(&mut setting.rng(), &dims, setting.values, size).lying(setting.lies[0]);
        let upstream = draw(&mut Rng::new(setting.seed, "upstream"), input.values.len(), Values::Uniform, 1.0);
        let expected = pointwise_expected(f, &input, upstream);
        compare(&[input], &expected, setting.strided_upstream, |t| ops::pointwise(&t[0], f))
    });
}

// ---- Pooling ----

#[derive(Debug, Clone, Copy)]
struct Pool {
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
    ceil_mode: bool,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Max,
    Average { count_include_pad: bool },
}

impl Pool {
    /// Windows along one dimension: (first, end) in the padded image, without those that `ceil_mode` drops.
    fn windows(&self, n: usize, k: usize, s: usize, p: usize) -> Vec<(usize, usize)> {
        let starts = (0..).map(|o| o * s);
        starts
            .take_while(|start| {
                start + k <= n + 2 * p || (self.ceil_mode && start + k < n + 2 * p + s && *start < n + p)
            })
            .map(|start| (start, start + k))
            .collect()
    }

    fn expected(&self, kind: Kind, input: &Input, rng: &mut Rng) -> Expected {
        let &[b, c, h, w] = input.dims.as_slice() else { unreachable!("four dimensions") };
        let rows = self.windows(h, self.kernel.0, self.stride.0, self.padding.0);
        let cols = self.windows(w, self.kernel.1, self.stride.1, self.padding.1);
        let dims = vec![b, c, rows.len(), cols.len()];
        let upstream = draw(rng, dims.iter().product(), Values::Uniform, 1.0);
        let xs = input.nums();
        let (mut output, mut dx) = (Vec::new(), vec![ZERO; xs.len()]);
        for plane in 0..b * c {
            for (row, col) in rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col))) {
                let dy = num(upstream[output.len()]);
                let inside: Vec<usize> = (row.0..row.1)
                    .flat_map(|r| (col.0..col.1).map(move |c| (r, c)))
                    .filter(|(r, c)| {
                        (self.padding.0..h + self.padding.0).contains(r)
                            && (self.padding.1..w + self.padding.1).contains(c)
                    })
                    .map(|(r, c)| (plane * h + r - self.padding.0) * w + c - self.padding.1)
                    .collect();
                match kind {
                    Kind::Max => {
                        let mut best = inside[0];
                        for &i in &inside {
                            if xs[i].value > xs[best].value || xs[i].value.is_nan() {
                                best = i;
                            }
                        }
                        output.push(xs[best]);
                        dx[best] += dy;
                    }
                    Kind::Average { count_include_pad } => {
                        // What lies beyond even the padding never counts.
                        let padded =
                            (row.1.min(h + 2 * self.padding.0) - row.0) * (col.1.min(w + 2 * self.padding.1) - col.0);
                        let count = num(if count_include_pad { padded } else { inside.len() } as f64);
                        output.push(inside.iter().map(|&i| xs[i]).sum::<Num>() / count);
                        inside.iter().for_each(|&i| dx[i] += dy / count);
                    }
                }
            }
        }
        Expected { dims, upstream, output, grads: vec![dx] }
    }

    fn run(&self, kind: Kind, xs: &Tensor) -> Result<Tensor> {
        let Self { kernel, stride, padding, ceil_mode } = *self;
        match kind {
            Kind::Max => ops::max_pool2d(xs, kernel, stride, padding, ceil_mode),
            Kind::Average { count_include_pad } => {
                ops::avg_pool2d(xs, kernel, stride, padding, ceil_mode, count_include_pad)
            }
        }
    }
}

fn pool() -> impl Strategy<Value = Pool> {
    let usual = |kernel, stride, padding| Pool {
        kernel: (kernel, kernel),
        stride: (stride, stride),
        padding: (padding, padding),
        ceil_mode: false,
    };
    let pair = |range: std::ops::RangeInclusive<usize>| (range.clone(), range);
    let other =
        (pair(1..=5), pair(1..=4), pair(0..=2), any::<bool>()).prop_map(|(kernel, stride, padding, ceil_mode)| {
            let padding = (padding.0.min(kernel.0 / 2), padding.1.min(kernel.1 / 2));
            Pool { kernel, stride, padding, ceil_mode }
        });
    prop_oneof![select(vec![usual(2, 2, 0), usual(3, 2, 1), usual(3, 1, 1), usual(3, 2, 0)]), other]
}

#[test]
fn pooling() {
    let kind = select(vec![
        Kind::Max,
        Kind::Max,
        Kind::Average { count_include_pad: true },
        Kind::Average { count_include_pad: false },
    ]);
    property(400, (1..=4usize, channels(), side(), pool(), kind, setting()), |(b, c, (h, w), pool, kind, setting)| {
        let (h, w) = (h.max(pool.kernel.0), w.max(pool.kernel.1));
        let input = Input::new(&mut setting.rng(), &[b, c, h, w], setting.values, 2.0).lying(setting.lies[0]);
        let expected = pool.expected(kind, &input, &mut Rng::new(setting.seed, "upstream"));
        compare(&[input], &expected, setting.strided_upstream, |t| pool.run(kind, &t[0]))
    });
}

#[test]
fn adaptive_pooling() {
    let cells = prop_oneof![Just((1, 1)), (1..=9usize, 1..=9usize)];
    property(150, (1..=4usize, channels(), side(), cells, setting()), |(b, c, (h, w), (oh, ow), setting)| {
        let input = Input::new(&mut setting.rng(), &[b, c, h, w], setting.values, 2.0).lying(setting.lies[0]);
        let cell = |i: usize, n: usize, cells: usize| i * n / cells..((i + 1) * n).div_ceil(cells);
        let dims = vec![b, c, oh, ow];
        let upstream = draw(&mut Rng::new(setting.seed, "upstream"), dims.iter().product(), Values::Uniform, 1.0);
        let xs = input.nums();
        let (mut output, mut dx) = (Vec::new(), vec![ZERO; xs.len()]);
        for plane in 0..b * c {
            for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
                let dy = num(upstream[output.len()]);
                let places: Vec<usize> =
                    cell(i, h, oh).flat_map(|r| cell(j, w, ow).map(move |c| (plane * h + r) * w + c)).collect();
                let count = num(places.len() as f64);
                output.push(places.iter().map(|&i| xs[i]).sum::<Num>() / count);
                places.iter().for_each(|&i| dx[i] += dy / count);
            }
        }
        let expected = Expected { dims, upstream, output, grads: vec![dx] };
        compare(&[input], &expected, setting.strided_upstream, |t| ops::adaptive_avg_pool2d(&t[0], (oh, ow)))
    });
}

// ---- NaN and infinities ----

/// One NaN or infinity among the inputs, or a zero that meets one: it reaches the outputs and gradients that the loops send it
/// to, and no other. The loops do what PyTorch does: a zero weight times NaN is NaN, the padding multiplies nothing, a NaN wins
/// a maximum and passes ReLU.
#[test]
fn special_values_go_where_arithmetic_sends_them() {
    let specials = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let must = |what: String, result: std::result::Result<(), TestCaseError>| {
        result.unwrap_or_else(|e| panic!("{what}: {e}"));
    };
    let convs = [
        (1, 5, 9, (7, 18), square(3, 1, 1), 1),
        (2, 16, 16, (9, 17), square(3, 1, 1), 1),
        (1, 8, 16, (17, 9), square(3, 2, 1), 1),
        (2, 17, 24, (5, 7), square(1, 1, 0), 1),
        (1, 8, 8, (6, 7), square(1, 2, 0), 1),
        (1, 6, 6, (9, 19), square(3, 1, 1), 6),
        (1, 6, 6, (9, 19), square(3, 2, 1), 6),
        (1, 6, 4, (8, 8), square(5, 1, 2), 2),
    ];
    for (i, special) in specials.into_iter().enumerate() {
        for &(b, c_in, c_out, size, (kernel, params), groups) in &convs {
            let conv = Conv { b, c_in, c_out, size, kernel, params: Conv2dParams { groups, ..params }, bias: true };
            for place in 0..3 {
                let mut inputs = conv.inputs(&Setting { values: Values::MostlyZero, ..Setting::plain(i as u64) });
                // In the image at its corner, its middle, its end; in the weight at its end.
                let xs = &mut inputs[0].values;
                let at = [0, xs.len() / 2 + 3, xs.len() - 1][place];
                xs[at] = special;
                let expected = conv.expected(&inputs, &mut Rng::new(1, "upstream"));
                must(format!("{conv:?}, {special} at {at}"), compare(&inputs, &expected, false, |t| conv.run(t)));
            }
        }
        for f in FUNCTIONS {
            // The limits themselves: the loops' formulas make 0 · ∞ of some, as PyTorch's do, but not of the same.
            if !special.is_nan() && !matches!(f, Pointwise::Relu | Pointwise::Relu6 | Pointwise::LeakyRelu(_)) {
                continue;
            }
            let mut input = Input::new(&mut Rng::new(2, "special"), &[3, 37], Values::Grid, 4.0);
            input.values[40] = special;
            let expected = pointwise_expected(f, &input, vec![1.0; 111]);
            must(format!("{f:?} of {special}"), compare(&[input], &expected, false, |t| ops::pointwise(&t[0], f)));
        }
        for pool in [2, 3].map(|k| Pool { kernel: (k, k), stride: (2, 2), padding: (k / 2, k / 2), ceil_mode: false }) {
            for kind in [Kind::Max, Kind::Average { count_include_pad: true }] {
                let mut input = Input::new(&mut Rng::new(3, "special"), &[2, 3, 7, 21], Values::Grid, 1.0);
                input.values[30] = special;
                let expected = pool.expected(kind, &input, &mut Rng::new(1, "upstream"));
                must(
                    format!("{kind:?} {pool:?} {special}"),
                    compare(&[input], &expected, false, |t| pool.run(kind, &t[0])),
                );
            }
        }
        // One row, one channel, one element.
        let mut input = Input::new(&mut Rng::new(4, "special"), &[5, 19], Values::Uniform, 1.0);
        input.values[23] = special;
        let expected = softmax_expected(&input, vec![1.0; 95]);
        let forward = input.clone().tracked(false);
        must(format!("softmax of {special}"), compare(&[forward], &expected, false, |t| ops::softmax(&t[0])));
        let setting = Setting::plain(5);
        let mut inputs = norm_inputs(&setting, &[4, 19], &[19], 1.0);
        inputs[0].values[23] = special;
        let expected = layer_norm_expected(&inputs, vec![1.0; 76]);
        must(
            format!("layer_norm of {special}"),
            compare(&inputs, &expected, false, |t| ops::layer_norm(&t[0], &t[1], &t[2], EPS)),
        );
        let mut inputs = norm_inputs(&setting, &[2, 3, 5, 7], &[3], 1.0);
        inputs[0].values[40] = special;
        let given = [0.0, 1.0].map(|x| Input { values: vec![x; 3], ..inputs[1].clone() });
        for given in [None, Some(&given)] {
            let expected = batch_norm_expected(&inputs, given, vec![1.0; 210]);
            must(
                format!("batch_norm of {special}, training {}", given.is_none()),
                compare(&inputs, &expected, false, |t| run_batch_norm(t, given)),
            );
        }
        let mut linear =
            [&[3usize, 5] as &[usize], &[7, 5]].map(|d| Input::new(&mut Rng::new(6, "l"), d, Values::Grid, 1.0));
        linear[0].values[7] = special;
        let weight = transposed(&linear[1].nums(), 7, 5);
        let [output, dx, dw] = product(&linear[0].nums(), &weight, &[1.0; 21], (3, 5, 7));
        let grads = vec![dx, transposed(&dw, 5, 7)];
        let expected = Expected { dims: vec![3, 7], upstream: vec![1.0; 21], output, grads };
        must(format!("linear of {special}"), compare(&linear, &expected, false, |t| ops::linear(&t[0], &t[1], None)));
    }
    // A class of probability zero costs nothing, and everything once smoothing wants it.
    let logits = Input {
        values: vec![0.0, f64::NEG_INFINITY, 0.0, 0.0, 0.0, 0.0],
        ..Input::new(&mut Rng::new(8, "x"), &[2, 3], Values::Grid, 1.0)
    };
    for smoothing in [0.0, 0.1] {
        let expected = cross_entropy_expected(&logits, &[0, 2], smoothing, 1.0);
        let targets = Tensor::new(&[0u32, 2], &Device::Cpu).unwrap();
        must(
            format!("cross_entropy of -∞, smoothing {smoothing}"),
            compare(std::slice::from_ref(&logits), &expected, false, |t| {
                ops::cross_entropy(&t[0], &targets, smoothing)
            }),
        );
    }
    // What PyTorch gives at the infinities for the smooth functions.
    let at = |f: Pointwise, x: f32| -> f32 {
        ops::pointwise(&Tensor::new(&[x; 17], &Device::Cpu).unwrap(), f).unwrap().to_vec1().unwrap()[16]
    };
    let infinity = f32::INFINITY;
    for f in [Pointwise::Gelu, Pointwise::GeluTanh, Pointwise::Silu, Pointwise::HardSwish] {
        assert_eq!(at(f, infinity), infinity, "{f:?}");
        let low = at(f, -infinity);
        assert!(low.is_nan(), "{f:?} of -∞ is {low}");
    }
    for (f, low) in [(Pointwise::Sigmoid, 0.0), (Pointwise::Tanh, -1.0), (Pointwise::HardSigmoid, 0.0)] {
        assert_eq!((at(f, -infinity), at(f, infinity)), (low, 1.0), "{f:?}");
    }
}

// ---- Threads ----

/// Output and gradients as bits.
fn bits(inputs: &[Input], op: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<u32>> {
    let vars: Vec<Var> = inputs.iter().map(|i| Var::from_tensor(&i.tensor(DType::F32).unwrap()).unwrap()).collect();
    let ys = op(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>()).unwrap();
    let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    std::iter::once(&ys).chain(vars.iter().map(|v| grads.get(v).expect("tracked"))).map(flat).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let input = |dims: &[usize]| Input::new(&mut Rng::new(7, &format!("{dims:?}")), dims, Values::Uniform, 1.0);
    let pair = |n: usize| (n, n);
    type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;
    let mut cases: Vec<(String, Vec<Input>, Op)> = Vec::new();
    for (b, c_in, c_out, side, kernel, stride, groups) in [
        (13, 6, 10, 17, 3, 1, 1),
        (5, 16, 16, 32, 3, 1, 1),
        (3, 64, 64, 8, 3, 1, 1),
        (7, 16, 32, 16, 3, 2, 1),
        (9, 40, 24, 9, 1, 1, 1),
        (6, 24, 40, 10, 1, 2, 1),
        (5, 12, 18, 9, 3, 1, 3),
        (5, 12, 24, 7, 1, 1, 3),
        (7, 33, 33, 15, 3, 1, 33),
        (7, 33, 33, 15, 3, 2, 33),
        (19, 40, 50, 4, 3, 1, 1),
        (37, 64, 80, 7, 1, 1, 2),
    ] {
        let params = Conv2dParams { stride: pair(stride), padding: pair(kernel / 2), groups, ..Default::default() };
        cases.push((
            format!("conv2d {b} {c_in}->{c_out} {kernel}x{kernel} stride {stride} groups {groups}"),
            vec![input(&[b, c_in, side, side]), input(&[c_out, c_in / groups, kernel, kernel]), input(&[c_out])],
            Box::new(move |t| ops::conv2d(&t[0], &t[1], Some(&t[2]), params)),
        ));
    }
    for rows in [7, 130] {
        cases.push((
            format!("linear {rows}"),
            vec![input(&[rows, 100]), input(&[70, 100]), input(&[70])],
            Box::new(|t| ops::linear(&t[0], &t[1], Some(&t[2]))),
        ));
        cases.push((
            format!("layer_norm {rows}"),
            vec![input(&[rows, 9, 65]), input(&[65]), input(&[65])],
            Box::new(|t| ops::layer_norm(&t[0], &t[1], &t[2], EPS)),
        ));
        cases.push((format!("softmax {rows}"), vec![input(&[rows, 65])], Box::new(|t| ops::softmax(&t[0]))));
        cases.push((
            format!("cross_entropy {rows}"),
            vec![input(&[rows, 65])],
            Box::new(|t| {
                let targets = Tensor::arange(0u32, t[0].dims()[0] as u32, &Device::Cpu)?;
                ops::cross_entropy(&t[0], &(targets / 7.0)?, 0.1)
            }),
        ));
    }
    for dims in [[13, 6, 17, 17], [2, 40, 8, 8]] {
        cases.push((
            format!("batch_norm {dims:?}"),
            vec![input(&dims), input(&[dims[1]]), input(&[dims[1]])],
            Box::new(|t| run_batch_norm(t, None)),
        ));
        cases.push((
            format!("max_pool2d {dims:?}"),
            vec![input(&dims)],
            Box::new(move |t| ops::max_pool2d(&t[0], pair(3), pair(2), pair(1), false)),
        ));
        cases.push((
            format!("avg_pool2d {dims:?}"),
            vec![input(&dims)],
            Box::new(move |t| ops::avg_pool2d(&t[0], pair(3), pair(2), pair(1), false, true)),
        ));
        cases.push((
            format!("adaptive_avg_pool2d {dims:?}"),
            vec![input(&dims)],
            Box::new(move |t| ops::adaptive_avg_pool2d(&t[0], (3, 5))),
        ));
        for f in FUNCTIONS {
            cases.push((format!("{f:?} {dims:?}"), vec![input(&dims)], Box::new(move |t| ops::pointwise(&t[0], f))));
        }
    }
    cases.push((
        "matmul".into(),
        vec![input(&[3, 33, 40]), input(&[3, 40, 65])],
        Box::new(|t| ops::matmul(&t[0], &t[1])),
    ));
    let pools = [1, 2, 5].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads"));
    for level in Level::supported() {
        for (name, inputs, op) in &cases {
            let [one, two, five] =
                pools.each_ref().map(|p| with_level(level, || p.install(|| bits(inputs, op.as_ref()))));
            assert!(one == two && one == five, "{name}, {level:?}: bits depend on the number of threads");
        }
    }
}

// ---- Errors ----

#[test]
fn malformed_shapes_are_errors_that_name_operation_and_shapes() {
    let t = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let pair = |n: usize| (n, n);
    let conv = |stride, padding, dilation, groups| Conv2dParams {
        stride: pair(stride),
        padding: pair(padding),
        dilation: pair(dilation),
        groups,
    };
    let plain = Conv2dParams::default();
    let x = t(&[2, 6, 5, 7]);
    let norm = |w: &[usize], b: &[usize], m: &[usize], v: &[usize]| {
        ops::batch_norm(&x, &t(w), &t(b), (&t(m), &t(v)), 1e-5, true)
    };
    let cases: Vec<(Result<Tensor>, &[&str])> = vec![
        (ops::conv2d(&t(&[6, 5, 7]), &t(&[4, 6, 3, 3]), None, plain), &["conv2d", "[6, 5, 7]", "[4, 6, 3, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 3]), None, plain), &["conv2d", "[2, 6, 5, 7]", "[4, 6, 3]"]),
        (ops::conv2d(&x, &t(&[4, 5, 3, 3]), None, plain), &["conv2d", "[2, 6, 5, 7]", "[4, 5, 3, 3]"]),
        (
            ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(1, 0, 1, 2)),
            &["conv2d", "[2, 6, 5, 7]", "[4, 6, 3, 3]", "groups 2"],
        ),
        (
            ops::conv2d(&x, &t(&[5, 3, 3, 3]), None, conv(1, 0, 1, 2)),
            &["conv2d", "[2, 6, 5, 7]", "[5, 3, 3, 3]", "groups 2"],
        ),
        (ops::conv2d(&x, &t(&[4, 6, 6, 3]), None, plain), &["conv2d", "[2, 6, 5, 7]", "[4, 6, 6, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(1, 0, 3, 1)), &["conv2d", "[2, 6, 5, 7]", "[4, 6, 3, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), Some(&t(&[6])), plain), &["conv2d", "bias [6]", "[4, 6, 3, 3]"]),
        (ops::conv2d(&t(&[0, 6, 5, 7]), &t(&[4, 6, 3, 3]), None, plain), &["conv2d", "[0, 6, 5, 7]", "[4, 6, 3, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 0, 3]), None, plain), &["conv2d", "[4, 6, 0, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(0, 0, 1, 1)), &["conv2d", "stride"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(1, 0, 0, 1)), &["conv2d", "dilation"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(1, 0, 1, 0)), &["conv2d", "groups"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]).to_dtype(DType::F64).unwrap(), None, plain), &["conv2d", "F32", "F64"]),
        (ops::linear(&x, &t(&[4, 7]).to_dtype(DType::F64).unwrap(), None), &["linear", "F32", "F64"]),
        (ops::linear(&x, &t(&[4, 6]), None), &["linear", "[2, 6, 5, 7]", "[4, 6]"]),
        (ops::linear(&x, &t(&[7]), None), &["linear", "[2, 6, 5, 7]", "[7]"]),
        (ops::linear(&x, &t(&[4, 7]), Some(&t(&[7]))), &["linear", "bias [7]", "[4, 7]"]),
        (ops::linear(&t(&[0, 7]), &t(&[4, 7]), None), &["linear", "[0, 7]", "[4, 7]"]),
        (ops::matmul(&t(&[2, 3]), &t(&[4, 5])), &["matmul", "[2, 3]", "[4, 5]"]),
        (ops::matmul(&t(&[2, 3, 4]), &t(&[3, 4, 5])), &["matmul", "[2, 3, 4]", "[3, 4, 5]"]),
        (ops::matmul(&t(&[3]), &t(&[3, 5])), &["matmul", "[3]", "[3, 5]"]),
        (norm(&[5], &[6], &[6], &[6]), &["batch_norm", "[2, 6, 5, 7]", "[5]"]),
        (norm(&[6], &[5], &[6], &[6]), &["batch_norm", "[2, 6, 5, 7]", "[5]"]),
        (norm(&[6], &[6], &[1, 6], &[6]), &["batch_norm", "[2, 6, 5, 7]", "[1, 6]"]),
        (norm(&[6], &[6], &[6], &[7]), &["batch_norm", "[2, 6, 5, 7]", "[7]"]),
        (ops::batch_norm(&t(&[6]), &t(&[6]), &t(&[6]), (&t(&[6]), &t(&[6])), EPS, true), &["batch_norm", "[6]"]),
        (ops::batch_stats(&t(&[6])).map(|s| s.mean), &["batch_norm", "[6]"]),
        (ops::layer_norm(&x, &t(&[5]), &t(&[5]), EPS), &["layer_norm", "[2, 6, 5, 7]", "[5]"]),
        (ops::layer_norm(&x, &t(&[7]), &t(&[5]), EPS), &["layer_norm", "[2, 6, 5, 7]", "[7]", "[5]"]),
        (ops::layer_norm(&t(&[0, 7]), &t(&[7]), &t(&[7]), EPS), &["layer_norm", "[0, 7]", "[7]"]),
        (ops::softmax(&t(&[])), &["softmax", "[]"]),
        (ops::softmax(&t(&[3, 0])), &["softmax", "[3, 0]"]),
        (ops::max_pool2d(&t(&[6, 5, 7]), pair(2), pair(2), pair(0), false), &["max_pool2d", "[6, 5, 7]"]),
        (ops::max_pool2d(&x, pair(6), pair(1), pair(0), false), &["max_pool2d", "[2, 6, 5, 7]", "(6, 6)"]),
        (ops::max_pool2d(&x, pair(2), pair(2), pair(2), false), &["max_pool2d", "(2, 2)"]),
        (ops::max_pool2d(&x, pair(2), pair(0), pair(0), false), &["max_pool2d", "[2, 6, 5, 7]", "(0, 0)"]),
        (ops::avg_pool2d(&x, pair(8), pair(1), pair(1), true, true), &["avg_pool2d", "[2, 6, 5, 7]", "(8, 8)"]),
        (ops::avg_pool2d(&t(&[3]), pair(2), pair(2), pair(0), false, true), &["avg_pool2d", "[3]"]),
        (ops::adaptive_avg_pool2d(&t(&[3]), pair(2)), &["adaptive_avg_pool2d", "[3]"]),
        (ops::adaptive_avg_pool2d(&x, pair(0)), &["adaptive_avg_pool2d", "[2, 6, 5, 7]", "(0, 0)"]),
        (ops::cross_entropy(&t(&[2, 3]), &t(&[3]), 0.0), &["cross_entropy", "[2, 3]", "[3]"]),
        (ops::cross_entropy(&t(&[2]), &t(&[2]), 0.0), &["cross_entropy", "[2]"]),
        (ops::cross_entropy(&t(&[2, 3]), &(t(&[2]) + 3.0).unwrap(), 0.0), &["cross_entropy", "target 3", "[2, 3]"]),
    ];
    for (i, (result, expected)) in cases.into_iter().enumerate() {
        let message = result.expect_err(&format!("case {i}, {expected:?}, is an error")).to_string();
        for part in expected {
            assert!(message.contains(part), "case {i}: `{message}` does not mention `{part}`");
        }
    }
}
