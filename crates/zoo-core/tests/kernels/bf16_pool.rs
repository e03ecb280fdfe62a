//! Pooling of bfloat16 maps; see [`crate::bf16`] for the rule.

use crate::bf16::{compare, map, maps, multilinear, once, rounded, upstream};
use crate::compare::{fail, property};
use crate::input::{Values, draw};
use crate::pool::{Kind, pool};
use proptest::prelude::any;
use zoo_core::ops;
use zoo_core::rng::Rng;

#[test]
fn pooling() {
    property(150, (maps(), pool(), any::<(bool, bool)>()), |((dims, setting), pool, (max, pad))| {
        if dims[2] + 2 * pool.padding.0 < pool.kernel.0 || dims[3] + 2 * pool.padding.1 < pool.kernel.1 {
            return Ok(());
        }
        let kind = if max { Kind::Max } else { Kind::Average { count_include_pad: pad } };
        let rng = &mut Rng::new(setting.seed, "pool");
        let mut xs = map(rng, &dims, setting.values, 3.0).lying(setting.lies[0]);
        let n = xs.values.len();
        if n > 50 && setting.seed % 3 == 0 {
            for (i, special) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().enumerate() {
                xs.values[11 * i] = special;
            }
        }
        let expected = pool.expected_of(kind, &xs, |n| rounded(&draw(rng, n, Values::Uniform, 1.0)));
        compare(&[xs], 1, &expected, (once(40), &setting), |t| pool.run(kind, &t[0]))
    });
}

/// The mean of a whole map, and cells of several sizes.
#[test]
fn adaptive_averages() {
    property(60, (maps(), (1..=4usize, 1..=4usize)), |((dims, setting), size)| {
        let rng = &mut Rng::new(setting.seed, "cells");
        let xs = map(rng, &dims, Values::Uniform, 3.0).lying(setting.lies[0]);
        let up = upstream(rng, &[dims[0], dims[1], size.0, size.1]);
        let op = |t: &[candle_core::Tensor]| {
            // The same size hands the input on; a tape wants an operation.
            ops::add(&ops::adaptive_avg_pool2d(&t[0], size)?, &ops::adaptive_avg_pool2d(&t[0], size)?)
        };
        let expected = multilinear(std::slice::from_ref(&xs), up, &op).map_err(|e| fail(e.to_string()))?;
        let rule = crate::bf16::Rule { terms: 200, roundings: 3 };
        compare(&[xs], 1, &expected, (rule, &setting), op)
    });
}
