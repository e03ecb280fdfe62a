//! The number of threads changes no bit.

use crate::compare::with_level;
use crate::input::{Input, Values};
use crate::norm::{EPS, run_batch_norm};
use crate::pointwise::FUNCTIONS;
use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_core::ops::{self, Conv2dParams, Level};
use zoo_core::rng::Rng;

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
    for level in Level::vectors() {
        for (name, inputs, op) in &cases {
            let [one, two, five] =
                pools.each_ref().map(|p| with_level(level, || p.install(|| bits(inputs, op.as_ref()))));
            assert!(one == two && one == five, "{name}, {level:?}: bits depend on the number of threads");
        }
    }
}
