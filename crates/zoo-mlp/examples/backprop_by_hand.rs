//! Back-propagation by hand: a perceptron learns to tell two spirals apart, with a forward and a backward pass in which
//! every derivative is written out. Then autograd computes the same gradients on the same weights, and both must agree.
//!
//! Run with `cargo run --example backprop_by_hand -p zoo-mlp`.
//!
//! # The network
//! N points in the plane, X: (N, 2). Two hidden layers of H units, two classes:
//!
//! ```text
//!   Z1 = X · W1ᵀ + b1     A1 = max(Z1, 0)      (N, H)
//!   Z2 = A1 · W2ᵀ + b2    A2 = max(Z2, 0)      (N, H)
//!   Z3 = A2 · W3ᵀ + b3    P  = softmax(Z3)     (N, 2)
//!   L  = - 1/N Σ_n log P[n, y_n]               one number
//! ```
//!
//! A weight is kept as (out, in), the layout of checkpoints; hence the transposes.
//!
//! # The idea
//! Write dQ for ∂L/∂Q, a tensor of Q's own shape. The forward pass builds L from the input upwards; the backward pass
//! starts at L and takes one step down at a time with the chain rule: what a step needs is the gradient of its output
//! and what it read on the way up. Nothing else is kept, and each gradient is computed once.

use candle_core::{DType, Device, Result, Tensor, bail};
use zoo_core::loss::cross_entropy;
use zoo_core::rng::Rng;
use zoo_core::{Model, VarStore};
use zoo_mlp::mlp::{Config, Mlp};

const HIDDEN: usize = 32;
const POINTS: usize = 200;
const STEPS: usize = 1500;
const LEARNING_RATE: f64 = 0.2;
const MOMENTUM: f64 = 0.9;
/// Both passes compute in f64 and differ in the order of their sums at most. An error in a formula would be near 1.
const TOLERANCE: f64 = 1e-10;

/// A linear layer: a weight (out, in) and a bias (out). The gradient of one has the same two fields.
#[derive(Clone)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
}

impl Layer {
    /// Weights from N(0, 2 / in), which keeps the spread of the signal through a ReLU (He et al. 2015); biases 0.
    fn new(inputs: usize, outputs: usize, rng: &mut Rng) -> Result<Self> {
        let std = (2.0 / inputs as f64).sqrt();
        let values: Vec<f64> = (0..outputs * inputs).map(|_| std * rng.normal()).collect();
        Ok(Self {
            weight: Tensor::from_vec(values, (outputs, inputs), &Device::Cpu)?,
            bias: Tensor::zeros(outputs, DType::F64, &Device::Cpu)?,
        })
    }

    /// Z = A · Wᵀ + b: (N, in) -> (N, out). The bias is the same for every row.
    fn forward(&self, a: &Tensor) -> Result<Tensor> {
        a.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }

    /// From dZ (N, out) and the A (N, in) that the layer read: its own gradients, and dA to hand further down.
    fn backward(&self, dz: &Tensor, a: &Tensor) -> Result<(Self, Tensor)> {
        // Z[n,o] = Σ_i A[n,i] W[o,i] + b[o]. W[o,i] acts on Z[n,o] of every point n, with the factor A[n,i]:
        // dW[o,i] = Σ_n dZ[n,o] A[n,i], in short dW = dZᵀ · A.
        let weight = dz.t()?.matmul(a)?;
        // b[o] acts on Z[n,o] of every point n, with the factor 1: db[o] = Σ_n dZ[n,o].
        let bias = dz.sum(0)?;
        // A[n,i] acts on Z[n,o] of every unit o, with the factor W[o,i]: dA[n,i] = Σ_o dZ[n,o] W[o,i], dA = dZ · W.
        let da = dz.matmul(&self.weight)?;
        Ok((Self { weight, bias }, da))
    }

    /// W ← W + V, with V ← μ V - η dW the step that momentum gives; likewise b.
    fn step(&mut self, velocity: &mut Self, grad: &Self) -> Result<()> {
        velocity.weight = ((&velocity.weight * MOMENTUM)? - (&grad.weight * LEARNING_RATE)?)?;
        velocity.bias = ((&velocity.bias * MOMENTUM)? - (&grad.bias * LEARNING_RATE)?)?;
        self.weight = (&self.weight + &velocity.weight)?;
        self.bias = (&self.bias + &velocity.bias)?;
        Ok(())
    }
}

/// 1 where z > 0, 0 elsewhere: the derivative of max(z, 0). At 0 itself there is none; 0 is what everyone takes.
fn is_positive(z: &Tensor) -> Result<Tensor> {
    z.gt(&z.zeros_like()?)?.to_dtype(DType::F64)
}

/// P[n,k] = exp(Z[n,k]) / Σ_j exp(Z[n,j]). Taking the largest Z of the row off all of them changes nothing, since it
/// cancels, and keeps exp from overflowing.
fn softmax(z: &Tensor) -> Result<Tensor> {
    let e = z.broadcast_sub(&z.max_keepdim(1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(1)?)
}

/// What the forward pass computes and the backward pass reads again.
struct Activations {
    z1: Tensor,
    a1: Tensor,
    z2: Tensor,
    a2: Tensor,
    p: Tensor,
}

struct Net {
    layers: [Layer; 3],
}

impl Net {
    fn forward(&self, x: &Tensor) -> Result<Activations> {
        let [layer1, layer2, layer3] = &self.layers;
        let z1 = layer1.forward(x)?; //   Z1 = X · W1ᵀ + b1
        let a1 = z1.relu()?; //           A1 = max(Z1, 0)
        let z2 = layer2.forward(&a1)?; // Z2 = A1 · W2ᵀ + b2
        let a2 = z2.relu()?; //           A2 = max(Z2, 0)
        let z3 = layer3.forward(&a2)?; // Z3 = A2 · W3ᵀ + b3
        let p = softmax(&z3)?; //         P  = softmax(Z3)
        Ok(Activations { z1, a1, z2, a2, p })
    }

    /// `one_hot` is Y (N, 2), with Y[n,k] = 1 if k = y_n and 0 otherwise.
    fn backward(&self, x: &Tensor, one_hot: &Tensor, forward: &Activations) -> Result<[Layer; 3]> {
        let Activations { z1, a1, z2, a2, p } = forward;
        let [layer1, layer2, layer3] = &self.layers;
        // With log P[n,y] = Z[n,y] - log Σ_j exp(Z[n,j]) and N points in the mean,
        // ∂L/∂Z3[n,k] = - 1/N (Y[n,k] - exp(Z[n,k]) / Σ_j exp(Z[n,j])), so dZ3 = (P - Y) / N: what the network says
        // minus what is true. Softmax and logarithm, each with a tangled derivative, together have this simple one.
        let dz3 = ((p - one_hot)? / x.dim(0)? as f64)?;
        let (d3, da2) = layer3.backward(&dz3, a2)?; // dW3 = dZ3ᵀ · A2   db3 = Σ_n dZ3   dA2 = dZ3 · W3
        // A2 = max(Z2, 0), element by element: dZ2 = dA2 where Z2 > 0, and 0 where the unit was silent.
        let dz2 = (da2 * is_positive(z2)?)?;
        let (d2, da1) = layer2.backward(&dz2, a1)?; // dW2 = dZ2ᵀ · A1   db2 = Σ_n dZ2   dA1 = dZ2 · W2
        let dz1 = (da1 * is_positive(z1)?)?; //        dZ1 = dA1 where Z1 > 0
        let (d1, _dx) = layer1.backward(&dz1, x)?; //  dW1 = dZ1ᵀ · X    db1 = Σ_n dZ1   dX is of no use here
        Ok([d1, d2, d3])
    }
}

/// L = - 1/N Σ_n log P[n, y_n]. With Y one-hot, Σ_k Y[n,k] log P[n,k] picks the right class.
fn loss(p: &Tensor, one_hot: &Tensor) -> Result<f64> {
    let sum = (p.log()? * one_hot)?.sum_all()?.to_scalar::<f64>()?;
    Ok(-sum / p.dim(0)? as f64)
}

/// Points on two arms that wind one and a half times around each other, a little blurred: no straight line tells them
/// apart.
fn spirals(count: usize, rng: &mut Rng) -> Result<(Tensor, Vec<u32>)> {
    let mut points = Vec::with_capacity(2 * count);
    let labels: Vec<u32> = (0..count).map(|n| (n % 2) as u32).collect();
    for &label in &labels {
        let along = rng.uniform().sqrt(); // from the centre, 0, to the end of the arm, 1
        let angle = along * 3.0 * std::f64::consts::PI + f64::from(label) * std::f64::consts::PI;
        points.push(along * angle.cos() + 0.02 * rng.normal());
        points.push(along * angle.sin() + 0.02 * rng.normal());
    }
    Ok((Tensor::from_vec(points, (count, 2), &Device::Cpu)?, labels))
}

fn one_hot(labels: &[u32]) -> Result<Tensor> {
    let rows: Vec<f64> = labels.iter().flat_map(|&y| [f64::from(y == 0), f64::from(y == 1)]).collect();
    Tensor::from_vec(rows, (labels.len(), 2), &Device::Cpu)
}

fn accuracy(net: &Net, x: &Tensor, labels: &[u32]) -> Result<f64> {
    let said: Vec<u32> = net.forward(x)?.p.argmax(1)?.to_vec1()?;
    Ok(said.iter().zip(labels).filter(|(said, y)| said == y).count() as f64 / labels.len() as f64)
}

fn norm(xs: &Tensor) -> Result<f64> {
    Ok(xs.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
}

/// The same network out of the zoo's layers with the same weights: candle records what they compute and differentiates
/// it.
fn check_against_autograd(net: &Net, grads: &[Layer; 3], x: &Tensor, labels: &[u32]) -> Result<()> {
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let reference = Mlp::new(&Config::new(&[2, HIDDEN, HIDDEN, 2]), store.root())?;
    let variable = |i: usize, part: &str| {
        let key = format!("layers.{i}.{part}");
        match store.get(&key).and_then(|slot| slot.var) {
            Some(var) => Ok(var),
            None => bail!("the zoo's network has no `{key}`"),
        }
    };
    for (i, layer) in net.layers.iter().enumerate() {
        variable(i, "weight")?.set(&layer.weight)?;
        variable(i, "bias")?.set(&layer.bias)?;
    }
    let loss = cross_entropy(&reference.forward_t(x, true)?, &Tensor::new(labels, &Device::Cpu)?, 0.0)?;
    let autograd = loss.backward()?;
    for (i, by_hand) in grads.iter().enumerate() {
        for (part, by_hand) in [("weight", &by_hand.weight), ("bias", &by_hand.bias)] {
            let Some(want) = autograd.get(variable(i, part)?.as_tensor()) else {
                bail!("autograd has no layers.{i}.{part}")
            };
            let error = norm(&(by_hand - want)?)? / norm(want)?;
            println!("  layers.{i}.{part:<7}|gradient| {:.6}   relative difference {error:.1e}", norm(want)?);
            assert!(error < TOLERANCE, "the gradient of layers.{i}.{part} is wrong by {error:e} of its norm");
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut rng = Rng::new(1, "two spirals");
    let (x, labels) = spirals(POINTS, &mut rng)?;
    let (unseen, unseen_labels) = spirals(1000, &mut rng)?;
    let y = one_hot(&labels)?;

    let mut layer = |inputs, outputs| Layer::new(inputs, outputs, &mut rng);
    let mut net = Net { layers: [layer(2, HIDDEN)?, layer(HIDDEN, HIDDEN)?, layer(HIDDEN, 2)?] };
    let mut velocities = net.layers.clone();
    for velocity in &mut velocities {
        *velocity = Layer { weight: velocity.weight.zeros_like()?, bias: velocity.bias.zeros_like()? };
    }

    println!("gradients at the start, by hand against autograd:");
    let forward = net.forward(&x)?;
    check_against_autograd(&net, &net.backward(&x, &y, &forward)?, &x, &labels)?;

    println!("\n step    loss    accuracy on the {POINTS} points, and on 1000 unseen ones");
    for step in 0..=STEPS {
        let forward = net.forward(&x)?;
        if step % 300 == 0 {
            let (seen, unseen) = (accuracy(&net, &x, &labels)?, accuracy(&net, &unseen, &unseen_labels)?);
            println!("{step:>5}  {:.4}    {seen:.3}  {unseen:.3}", loss(&forward.p, &y)?);
        }
        let grads = net.backward(&x, &y, &forward)?;
        for ((layer, velocity), grad) in net.layers.iter_mut().zip(&mut velocities).zip(&grads) {
            layer.step(velocity, grad)?;
        }
    }

    println!("\ngradients at the end, by hand against autograd:");
    let forward = net.forward(&x)?;
    check_against_autograd(&net, &net.backward(&x, &y, &forward)?, &x, &labels)?;

    let unseen = accuracy(&net, &unseen, &unseen_labels)?;
    assert!(unseen > 0.95, "the network did not learn the spirals: {unseen} of the unseen points are right");
    println!("\nevery gradient agrees within {TOLERANCE:e}; {:.1} % of the unseen points are right", 100.0 * unseen);
    Ok(())
}
