use super::*;
use crate::kernels::conv::{self as f32k, Conv2dParams, Geometry, Epilogue};
use half::bf16;
use std::time::Instant;
pub fn probe() {
    let only: Option<usize> = std::env::var("ONLY").ok().and_then(|x| x.parse().ok());
    let which = std::env::var("WHICH").unwrap_or_default();
    for (at, (b, ci, h, co, k, s, groups)) in [
        (128, 3, 32, 16, 3, 1, 1), (128, 16, 32, 16, 3, 1, 1), (128, 16, 32, 32, 3, 2, 1), (128, 32, 16, 32, 3, 1, 1), (128, 64, 8, 64, 3, 1, 1),
        (64, 64, 32, 64, 3, 1, 1), (64, 128, 16, 128, 3, 1, 1), (64, 256, 8, 256, 3, 1, 1), (64, 512, 4, 512, 3, 1, 1),
        (128, 512, 2, 512, 3, 1, 1), (64, 64, 32, 128, 1, 1, 1), (64, 512, 4, 512, 1, 1, 1), (64, 24, 32, 144, 1, 1, 1), (64, 240, 16, 60, 1, 1, 3),
    ].into_iter().enumerate() {
        if only.is_some_and(|o| o != at) { continue; }
        let p = k / 2;
        let params = Conv2dParams { stride: (s, s), padding: (p, p), groups, ..Default::default() };
        let g = Geometry::new(&[b, ci, h, h], &[co, ci / groups, k, k], params).unwrap();
        let num = |i: usize| ((i * 7919 % 1000) as f32 - 500.0) / 500.0;
        let x: Vec<f32> = (0..b * g.input_image()).map(num).collect();
        let dy: Vec<f32> = (0..b * g.output_image()).map(num).collect();
        let w: Vec<f32> = (0..co * ci / groups * k * k).map(num).collect();
        let (xb, dyb): (Vec<bf16>, Vec<bf16>) = (x.iter().map(|&x| bf16::from_f32(x)).collect(), dy.iter().map(|&x| bf16::from_f32(x)).collect());
        let flop = 2. * g.macs() as f64;
        let time = |f: &dyn Fn()| { f(); let mut best = f64::MAX; for _ in 0..(if which.is_empty() { 7 } else { 40 }) { let t = Instant::now(); f(); best = best.min(t.elapsed().as_secs_f64()); } (format!("{:.0}", flop / best / 1e9), best * 1e3) };
        match which.as_str() { "f" => { let t = time(&|| { std::hint::black_box(conv::forward(&g, &xb, &w, &Finish::bias(None))); }); println!("{t:?}"); continue } "w" => { let t = time(&|| { std::hint::black_box(weight_grad::weight_grad(&g, &xb, &dyb)); }); println!("{t:?}"); continue } _ => {} }
        let a = [
            time(&|| { std::hint::black_box(f32k::forward(&g, &x, &w, &Epilogue::bias(None))); }),
            time(&|| { std::hint::black_box(f32k::input_grad(&g, &dy, &w)); }),
            time(&|| { std::hint::black_box(f32k::weight_grad(&g, &x, &dy)); }),
            time(&|| { std::hint::black_box(conv::forward(&g, &xb, &w, &Finish::bias(None))); }),
            time(&|| { std::hint::black_box(conv::input_grad(&g, &dyb, &w)); }),
            time(&|| { std::hint::black_box(weight_grad::weight_grad(&g, &xb, &dyb)); }),
        ];
        println!("{b}x{ci}x{h} -> {co} k{k} s{s} g{groups}: f32 {} {} {} | bf16 {} {} {} GFLOP/s; ms {:.2} {:.2} {:.2} | {:.2} {:.2} {:.2}", a[0].0, a[1].0, a[2].0, a[3].0, a[4].0, a[5].0, a[0].1, a[1].1, a[2].1, a[3].1, a[4].1, a[5].1);
    }
}
