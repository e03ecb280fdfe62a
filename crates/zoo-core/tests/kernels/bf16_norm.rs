//! Normalisations of bfloat16 maps; see [`crate::bf16`] for the rule.

use crate::bf16::{Rule, close, compare, map, maps, once, upstream};
use crate::compare::{property, with_level};
use crate::input::{Input, Setting, Values};
use crate::norm::{EPS, batch_norm_expected, norm_inputs, run_batch_norm};
use crate::num::{Num, num};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::any;
use zoo_core::ops::{self, Level};
use zoo_core::rng::Rng;
use zoo_core::{BatchNorm, BatchNormConfig, ModuleT, Pointwise, VarStore, seq};

/// x, weight, bias; x of numbers that bfloat16 holds.
fn inputs(setting: &Setting, dims: &[usize]) -> Vec<Input> {
    let mut inputs = norm_inputs(setting, dims, &dims[1..2], 3.0);
    inputs[0].values = crate::bf16::rounded(&inputs[0].values);
    inputs
}

/// Mean and variance that are given.
fn given_statistics(seed: u64, c: usize) -> [Input; 2] {
    let rng = &mut Rng::new(seed, "statistics");
    let mut given = [Input::new(rng, &[c], Values::Uniform, 1.0), Input::new(rng, &[c], Values::Uniform, 1.0)];
    given.iter_mut().for_each(|of| of.values.iter_mut().for_each(|v| *v = f64::from(*v as f32)));
    given[1].values.iter_mut().for_each(|v| *v = v.abs());
    given
}

fn run(t: &[Tensor], given: Option<&[Input; 2]>) -> candle_core::Result<Tensor> {
    let Some([mean, var]) = given else { return run_batch_norm(t, None) };
    let (mean, var) = (mean.tensor(DType::F32)?, var.tensor(DType::F32)?);
    ops::batch_norm(&t[0], &t[1], &t[2], (&mean, &var), EPS, false)
}

#[test]
fn batch_normalisation() {
    property(60, (maps(), any::<bool>(), any::<bool>()), |((dims, setting), train, flat)| {
        // (b, c) too.
        let dims = if flat { vec![dims[0] * dims[2], dims[1]] } else { dims.to_vec() };
        let inputs = inputs(&setting, &dims);
        let given = (!train).then(|| given_statistics(setting.seed, dims[1]));
        let upstream = upstream(&mut Rng::new(setting.seed, "upstream"), &dims);
        let expected = batch_norm_expected(&inputs, given.as_ref(), upstream);
        let terms = dims.iter().product::<usize>() / dims[1] + 8;
        compare(&inputs, 1, &expected, (once(terms), &setting), |t| run(t, given.as_ref()))
    });
}

/// With an activation as one operation. Nothing comes from upstream where a rounding decides whether the value was cut.
#[test]
fn batch_normalisation_and_an_activation() {
    property(40, (maps(), any::<bool>()), |((dims, setting), six)| {
        let setting = Setting { lies: [crate::input::Lies::Contiguous; 2], tracked: [true; 2], ..setting };
        if dims[0] * dims[2] * dims[3] < 2 {
            return Ok(());
        }
        let inputs = inputs(&setting, &dims);
        let mut up = upstream(&mut Rng::new(setting.seed, "upstream"), &dims);
        let plain = batch_norm_expected(&inputs, None, up.clone());
        let limit = if six { 6.0 } else { f64::INFINITY };
        for (up, y) in up.iter_mut().zip(&plain.output) {
            let near = |kink: f64| (y.value - kink).abs() <= 1e-4 * y.scale;
            if y.value <= 0.0 || y.value >= limit || near(0.0) || near(limit) {
                *up = 0.0;
            }
        }
        let mut expected = batch_norm_expected(&inputs, None, up);
        for y in &mut expected.output {
            y.value = y.value.clamp(0.0, limit);
        }
        // Where the value was cut the gradient is none, whatever comes: let something come.
        for (up, y) in expected.upstream.iter_mut().zip(&plain.output) {
            if y.value < -1e-3 * y.scale || y.value > limit + 1e-3 * y.scale {
                *up = 0.5;
            }
        }
        let activation = if six { Pointwise::Relu6 } else { Pointwise::Relu };
        let terms = dims.iter().product::<usize>() / dims[1] + 8;
        compare(&inputs[..1], 1, &expected, (once(terms), &setting), |t| {
            let store = VarStore::new(0, DType::F32, &Device::Cpu);
            let config = BatchNormConfig { eps: EPS, ..BatchNormConfig::default() };
            let norm = BatchNorm::with(dims[1], config, store.root())?;
            for ((_, var), of) in store.parameters().iter().zip(&inputs[1..]) {
                var.set(&of.tensor(DType::F32)?)?;
            }
            seq![norm, activation].forward_t(&t[0], true)
        })
    });
}

/// A mean that is many times the spread, in many blocks; and what is no number stays in its channel.
#[test]
fn statistics_of_many_blocks() {
    for (dims, large) in [([3, 5, 61, 67], 30.0), ([7, 16, 40, 40], 0.0), ([2, 300, 9, 9], 8.0), ([513, 33, 1, 1], 1.0)]
    {
        let mut xs = map(&mut Rng::new(1, "statistics"), &dims, Values::Uniform, 1.0);
        xs.values.iter_mut().for_each(|x| *x += large);
        xs.values = crate::bf16::rounded(&xs.values);
        let s = dims[2] * dims[3];
        let channels = |want: &dyn Fn(&[f64]) -> f64| -> Vec<Num> {
            let of = |c: usize| {
                let all = xs.values.iter().enumerate().filter(|(i, _)| i / s % dims[1] == c);
                num(want(&all.map(|(_, &x)| x).collect::<Vec<_>>()))
            };
            (0..dims[1]).map(of).collect()
        };
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let var = |x: &[f64]| x.iter().map(|v| (v - mean(x)).powi(2)).sum::<f64>() / x.len() as f64;
        let (means, vars) = (channels(&mean), channels(&var));
        for level in Level::supported() {
            let stats = with_level(level, || ops::batch_stats(&xs.tensor(DType::BF16).unwrap())).unwrap();
            // No rounding to bfloat16 at all.
            let rule = Rule { terms: 64, roundings: 0 };
            close(&format!("mean, {level:?}"), &stats.mean, &means, rule).unwrap();
            close(&format!("variance, {level:?}"), &stats.var, &vars, rule).unwrap();
            assert_eq!(stats.count, dims[0] * s);
        }
    }
    let mut xs = map(&mut Rng::new(2, "statistics"), &[2, 17, 3, 3], Values::Uniform, 1.0);
    (xs.values[9 * 4], xs.values[9 * 8]) = (f64::NAN, f64::INFINITY);
    for level in Level::supported() {
        let (stats, ys) = with_level(level, || {
            let xs = xs.tensor(DType::BF16).unwrap();
            let stats = ops::batch_stats(&xs).unwrap();
            let one = Tensor::ones(17, DType::F32, &Device::Cpu).unwrap();
            let ys = ops::batch_norm(&xs, &one, &one, (&stats.mean, &stats.var), EPS, true).unwrap();
            (stats, ys.to_dtype(DType::F32).unwrap())
        });
        let means = stats.mean.to_vec1::<f32>().unwrap();
        assert!(means[4].is_nan() && means[8] == f32::INFINITY, "{level:?}: {means:?}");
        for (i, &var) in stats.var.to_vec1::<f32>().unwrap().iter().enumerate() {
            assert_eq!(var.is_nan(), i == 4 || i == 8, "{level:?}: {i} {var}");
            let of: Vec<f32> = ys.narrow(1, i, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(of.iter().all(|y| y.is_nan() == (i == 4 || i == 8)), "{level:?}: {i} {of:?}");
        }
    }
}

/// The number of threads changes no bit.
#[test]
fn threads_change_nothing() {
    let setting = Setting::plain(3);
    let inputs = inputs(&setting, &[5, 24, 33, 31]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let xs = candle_core::Var::from_tensor(&inputs[0].tensor(DType::BF16).unwrap()).unwrap();
            let [weight, bias] = [1, 2].map(|i| {
                let of = inputs[i].tensor(DType::F32).unwrap();
                candle_core::Var::from_tensor(&of).unwrap()
            });
            let ys = zoo_core::tape::recorded(&xs, true, |xs| {
                let ys = run_batch_norm(&[xs.clone(), weight.as_tensor().clone(), bias.as_tensor().clone()], None)?;
                zoo_core::tape::to_dtype(&ys, DType::F32)
            });
            let ys = ys.unwrap();
            let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let all = [ys, grads.get(&xs).unwrap().clone(), grads.get(&weight).unwrap().clone()];
            all.map(|t| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap())
        })
    };
    let _alone = crate::compare::FORCED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    assert_eq!(run(1), run(3));
}
