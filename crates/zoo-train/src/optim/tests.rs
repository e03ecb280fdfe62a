use super::*;
use candle_core::{DType, Device};
use serde_json::Value;
use zoo_core::{Init, VarStore};

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/optim.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(super) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The golden file's parameters, in `dtype`.
fn parameters(golden: &Value, dtype: DType) -> Vec<(String, Var)> {
    let initial = golden["initial"].as_object().unwrap();
    let make = |(key, values): (&String, &Value)| {
        let shape: Vec<usize> = serde_json::from_value(golden["shapes"][key].clone()).unwrap();
        let tensor = Tensor::from_vec(floats(values), shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        (key.clone(), Var::from_tensor(&tensor).unwrap())
    };
    initial.iter().map(make).collect()
}

/// A store with the golden file's gradients of one step.
pub(super) fn gradients(golden: &Value, parameters: &[(String, Var)], step: usize) -> GradStore {
    // The only way to an empty store from outside candle: the gradients of a constant.
    let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
    for (key, var) in parameters {
        if let Some(values) = golden["grads"][step].get(key) {
            let grad = Tensor::from_vec(floats(values), var.shape(), &Device::Cpu).unwrap();
            grads.insert(var, grad.to_dtype(var.dtype()).unwrap());
        }
    }
    grads
}

fn config(run: &Value) -> OptimizerConfig {
    let options = &run["options"];
    let number = |name: &str, default: f64| options.get(name).map_or(default, |v| v.as_f64().unwrap());
    let weight_decay = number("weight_decay", 0.0);
    let betas = options.get("betas").map_or([0.9, 0.999], |b| [0, 1].map(|i| b[i].as_f64().unwrap()));
    let eps = number("eps", 1e-8);
    match run["kind"].as_str().unwrap() {
        "sgd" => {
            let nesterov = options.get("nesterov").is_some();
            OptimizerConfig::Sgd { momentum: number("momentum", 0.0), nesterov, weight_decay }
        }
        "adam" => OptimizerConfig::Adam { betas, eps, weight_decay },
        kind => {
            assert_eq!(kind, "adamw");
            OptimizerConfig::AdamW { betas, eps, weight_decay }
        }
    }
}

/// Follows every run of the golden file; the largest error of any parameter at any step.
fn largest_error(dtype: DType) -> f64 {
    let golden = golden();
    let lrs = floats(&golden["lrs"]);
    let mut largest = 0f64;
    for run in golden["optimizers"].as_array().unwrap() {
        let parameters = parameters(&golden, dtype);
        let decay_all = run["decay_one_dimensional"].as_bool().unwrap();
        let mut optimizer = config(run).build(parameters.clone(), lrs[0], decay_all);
        for (step, &lr) in lrs.iter().enumerate() {
            optimizer.set_lr(lr);
            let mut grads = gradients(&golden, &parameters, step);
            if let Some(max) = run["clip"].as_f64() {
                let norm = clip_grad_norm(&parameters, &mut grads, max).unwrap();
                largest = largest.max((norm - run["norms"][step].as_f64().unwrap()).abs());
            }
            optimizer.step(&grads).unwrap();
            for (key, var) in &parameters {
                let got = var.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                for (got, want) in got.iter().zip(floats(&run["parameters"][step][key])) {
                    assert!(got.is_finite());
                    largest = largest.max((got - want).abs());
                }
            }
        }
    }
    largest
}

#[test]
fn trajectories_are_those_of_pytorch() {
    // Values of order 1, a few dozen operations each: rounding alone stays below 1e-14.
    let error = largest_error(DType::F64);
    assert!(error < 1e-12, "{error}");
    let error = largest_error(DType::F32);
    assert!(error < 1e-5, "{error}");
}

/// Half types go through the composition of candle's ops. Adam's ε vanishes in them, but nothing here divides by zero.
#[test]
fn half_precision_follows_within_its_digits() {
    let error = largest_error(DType::BF16);
    assert!(error < 0.2, "{error}");
}

#[test]
fn a_resumed_run_is_the_same_bit_by_bit() {
    let golden = golden();
    let bits = |parameters: &[(String, Var)]| -> Vec<u64> {
        let values = |(_, var): &(String, Var)| var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        parameters.iter().flat_map(values).map(f64::to_bits).collect()
    };
    for run in golden["optimizers"].as_array().unwrap() {
        let whole = parameters(&golden, DType::F64);
        let mut optimizer = config(run).build(whole.clone(), 0.1, true);
        let mut saved = None;
        for step in 0..6 {
            if step == 3 {
                let copies = whole.iter().map(|(k, v)| (k.clone(), Var::from_tensor(&v.detach()).unwrap()));
                saved = Some((copies.collect::<Vec<_>>(), optimizer.state().unwrap()));
            }
            optimizer.step(&gradients(&golden, &whole, step)).unwrap();
        }
        let (resumed, state) = saved.unwrap();
        let mut optimizer = config(run).build(resumed.clone(), 0.1, true);
        optimizer.load_state(&state).unwrap();
        for step in 3..6 {
            optimizer.step(&gradients(&golden, &resumed, step)).unwrap();
        }
        assert_eq!(bits(&whole), bits(&resumed), "{}", run["name"]);
    }
}

#[test]
fn state_that_does_not_fit_is_refused_whole() {
    let golden = golden();
    let all = parameters(&golden, DType::F64);
    let sgd = || Sgd::new(vec![Group::new(all.clone(), 0.0)], 0.1).momentum(0.9);
    let mut optimizer = sgd();
    optimizer.step(&gradients(&golden, &all, 0)).unwrap();
    let good = optimizer.state().unwrap();
    assert_eq!(
        good.keys().collect::<Vec<_>>(),
        ["w.bias.momentum_buffer", "w.bias.step", "w.weight.momentum_buffer", "w.weight.step"]
    );
    let changed = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let (mut state, mut fresh) = (good.clone(), sgd());
        change(&mut state);
        let message = fresh.load_state(&state).unwrap_err().to_string();
        assert!(fresh.state().unwrap().is_empty(), "a refused state must leave nothing behind");
        message
    };
    let tensor = Tensor::zeros(7, DType::F64, &Device::Cpu).unwrap();
    assert!(changed(&|s| drop(s.insert("fc.step".into(), tensor.clone()))).contains("fc.step"));
    assert!(changed(&|s| drop(s.insert("w.bias.momentum_buffer".into(), tensor.clone()))).contains("[7]"));
    assert!(changed(&|s| drop(s.remove("w.weight.momentum_buffer"))).contains("`w.weight.momentum_buffer` is missing"));
    assert!(changed(&|s| drop(s.remove("w.weight.step"))).contains("w.weight.momentum_buffer"));
}

#[test]
fn a_saved_state_does_not_move_with_the_run() {
    let golden = golden();
    let all = parameters(&golden, DType::F64);
    let mut adam = Adam::new(vec![Group::new(all.clone(), 0.0)], 0.1);
    adam.step(&gradients(&golden, &all, 0)).unwrap();
    let state = adam.state().unwrap();
    let before = state["w.bias.exp_avg"].to_vec1::<f64>().unwrap();
    adam.step(&gradients(&golden, &all, 1)).unwrap();
    assert_eq!(before, state["w.bias.exp_avg"].to_vec1::<f64>().unwrap());
}

#[test]
fn a_group_trains_at_its_own_rate() {
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let trunk = store.root().param(1, "trunk", Init::ZEROS).unwrap();
    let head = store.root().param(1, "head", Init::ZEROS).unwrap();
    let mut parameters = store.parameters();
    let last = parameters.split_off(1);
    let mut sgd = Sgd::new(vec![Group::new(parameters, 0.0).lr_factor(0.1), Group::new(last, 0.0)], 1.0);
    sgd.step(&(&trunk + &head).unwrap().sum_all().unwrap().backward().unwrap()).unwrap();
    assert_eq!((trunk.to_vec1::<f64>().unwrap(), head.to_vec1::<f64>().unwrap()), (vec![-0.1], vec![-1.0]));
}
