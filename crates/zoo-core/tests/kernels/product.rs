//! Linear maps and matrix products against plain loops.

use crate::compare::{Expected, compare, property};
use crate::input::{Input, Setting, Values, draw, setting};
use crate::num::{Num, ZERO, num};
use proptest::prelude::any;
use proptest::test_runner::TestCaseError;
use zoo_core::ops;
use zoo_core::rng::Rng;

/// (m, k) · (k, n) with gradients, added into the places.
pub fn product(a: &[Num], b: &[Num], dy: &[f64], (m, k, n): (usize, usize, usize)) -> [Vec<Num>; 3] {
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

pub fn transposed(xs: &[Num], rows: usize, cols: usize) -> Vec<Num> {
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
