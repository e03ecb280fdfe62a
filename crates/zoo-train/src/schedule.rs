//! Learning rates: pure functions of the step, so that a resumed run needs nothing but its step number.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// A moment in a run, or a stretch from its start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// A share of the whole run: moves along when the run is made shorter or longer.
    Fraction(f64),
    /// Passes over the training images.
    Epoch(f64),
    /// Optimizer steps.
    Step(u64),
}

impl When {
    fn to_steps(self, length: &StepCount) -> u64 {
        match self {
            Self::Fraction(share) => (share * length.total_steps as f64).round() as u64,
            Self::Epoch(epoch) => (epoch * length.steps_per_epoch as f64).round() as u64,
            Self::Step(step) => step,
        }
    }
}

/// How often a smooth decay moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// At every optimizer step.
    Step,
    /// At the start of every epoch.
    Epoch,
}

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Decay {
    /// Stays.
    Constant,
    /// Is multiplied by `gamma` at every milestone.
    MultiStep {
        /// Counted from the start of the run, warm-up included.
        milestones: Vec<When>,
        /// The factor.
        gamma: f64,
    },
    /// Half a cosine from the base rate to 0, spread over what the warm-up leaves of the run (Loshchilov and Hutter
    /// 2016, arXiv 1608.03983). The rate is that at the start of each interval, so that the last one still trains.
    Cosine {
        /// The interval.
        every: Every,
    },
    /// Evenly from the base rate to 0, over the same stretch and by the same rule.
    Linear {
        /// The interval.
        every: Every,
    },
}

/// The first steps of a run, which take the place of the base rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    /// How long. At most a tenth of the run is taken, so that a shortened run still trains at its base rate.
    pub length: When,
    /// `None`: rises evenly at every step, from 1/n to n/n of the base rate over n steps. `Some(f)`: stays at f times
    /// the base rate.
    pub factor: Option<f64>,
}

/// The course of the learning rate relative to the base rate, as a recipe states it.
///
/// ```
/// use zoo_train::schedule::{Decay, Every, StepCount, Schedule, Warmup, When};
/// let warmup = Some(Warmup { length: When::Epoch(2.0), factor: None });
/// let schedule = Schedule { decay: Decay::Cosine { every: Every::Epoch }, warmup };
/// // 20 epochs of 10 steps: the first 20 steps rise, the other 18 epochs fall.
/// let lr = schedule.over(1.0, StepCount { steps_per_epoch: 10, total_steps: 200 });
/// assert_eq!([lr.at(0), lr.at(9), lr.at(19), lr.at(29)], [0.05, 0.5, 1.0, 1.0]);
/// assert!(lr.at(199) < 0.01);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// After the warm-up.
    pub decay: Decay,
    /// Before.
    pub warmup: Option<Warmup>,
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCount {
    /// Optimizer steps of one pass over the training images.
    pub steps_per_epoch: u64,
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
}

impl Schedule {
    /// The base rate from the first step to the last.
    pub const CONSTANT: Self = Self { decay: Decay::Constant, warmup: None };

    /// The learning rates of a run of this length.
    pub fn over(&self, base: f64, length: StepCount) -> LearningRate {
        let warmup = self.warmup.map_or(0, |w| w.length.to_steps(&length).min(length.total_steps / 10));
        let milestones = match &self.decay {
            Decay::MultiStep { milestones, .. } => milestones.iter().map(|m| m.to_steps(&length)).collect(),
            Decay::Constant | Decay::Cosine { .. } | Decay::Linear { .. } => Vec::new(),
        };
        LearningRate { schedule: self.clone(), base, length, warmup, milestones }
    }
}

/// A [`Schedule`] laid over a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    schedule: Schedule,
    base: f64,
    length: StepCount,
    /// Steps.
    warmup: u64,
    /// Steps.
    milestones: Vec<u64>,
}

impl LearningRate {
    /// The learning rate of optimizer step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            let rising = (step + 1) as f64 / self.warmup as f64;
            return self.base * self.schedule.warmup.and_then(|w| w.factor).unwrap_or(rising);
        }
        self.base
            * match self.schedule.decay {
                Decay::Constant => 1.0,
                Decay::MultiStep { gamma, .. } => {
                    gamma.powi(self.milestones.iter().filter(|&&milestone| milestone <= step).count() as i32)
                }
                Decay::Cosine { every } => 0.5 * (1.0 + (PI * self.share_since_warmup(step, every)).cos()),
                Decay::Linear { every } => 1.0 - self.share_since_warmup(step, every),
            }
    }

    /// How much of the run behind the warm-up has passed when the interval of `step` begins, 0 to 1.
    fn share_since_warmup(&self, step: u64, every: Every) -> f64 {
        let interval = if every == Every::Epoch { self.length.steps_per_epoch.max(1) } else { 1 };
        let elapsed = (step - self.warmup) / interval * interval;
        let rest = self.length.total_steps.saturating_sub(self.warmup).max(1);
        elapsed.min(rest) as f64 / rest as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const COSINE: Decay = Decay::Cosine { every: Every::Epoch };
    const LINEAR: Decay = Decay::Linear { every: Every::Step };

    fn rising(steps: u64) -> Option<Warmup> {
        Some(Warmup { length: When::Step(steps), factor: None })
    }

    fn rates(schedule: &Schedule, base: f64, steps_per_epoch: u64, total_steps: u64) -> Vec<f64> {
        let lr = schedule.over(base, StepCount { steps_per_epoch, total_steps });
        (0..total_steps).map(|step| lr.at(step)).collect()
    }

    /// PyTorch's schedulers advance once an epoch: epochs of one step here.
    #[test]
    fn rates_are_those_of_pytorch() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/optim.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for case in golden["schedules"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let want: Vec<f64> = serde_json::from_value(case["lr"].clone()).unwrap();
            let decay = match name {
                _ if name.contains("multi_step") => {
                    let epochs: Vec<f64> = serde_json::from_value(case["milestones"].clone()).unwrap();
                    let milestones = epochs.into_iter().map(When::Epoch).collect();
                    Decay::MultiStep { milestones, gamma: case["gamma"].as_f64().unwrap() }
                }
                _ if name.contains("cosine") => COSINE,
                _ => Decay::Constant,
            };
            let schedule = Schedule { decay, warmup: case["warmup"].as_u64().and_then(rising) };
            let extent = StepCount { steps_per_epoch: 1, total_steps: want.len() as u64 };
            let mut lr = schedule.over(case["base"].as_f64().unwrap(), extent);
            // These runs are so short that the cap would cut their warm-up.
            lr.warmup = case["warmup"].as_u64().unwrap_or(0);
            for (step, want) in want.iter().enumerate() {
                let got = lr.at(step as u64);
                assert!((got - want).abs() < 1e-15, "{name}, epoch {step}: {got} against {want}");
            }
        }
    }

    #[test]
    fn a_cosine_by_epoch_is_a_staircase_of_the_one_by_step() {
        let by_epoch = rates(&Schedule { decay: COSINE, warmup: None }, 0.1, 4, 20);
        let by_step = rates(&Schedule { decay: Decay::Cosine { every: Every::Step }, warmup: None }, 0.1, 4, 20);
        for step in 0..20 {
            assert_eq!(by_epoch[step], by_step[step / 4 * 4], "step {step}");
        }
        assert!(by_step.windows(2).all(|pair| pair[1] < pair[0]) && by_step[19] > 0.0);
    }

    #[test]
    fn a_line_falls_evenly_behind_the_warmup() {
        let rates = rates(&Schedule { decay: LINEAR, warmup: rising(2) }, 1.0, 5, 20);
        assert_eq!(rates[..3], [0.5, 1.0, 1.0]);
        assert!(rates[2..].windows(2).all(|pair| (pair[0] - pair[1] - 1.0 / 18.0).abs() < 1e-12));
        assert!(rates[19] > 0.0);
    }

    #[test]
    fn milestones_by_fraction_move_with_the_run() {
        let milestones = vec![When::Fraction(0.5), When::Fraction(0.75)];
        let schedule = Schedule { decay: Decay::MultiStep { milestones, gamma: 0.1 }, warmup: None };
        for total in [64, 12] {
            let got = rates(&schedule, 1.0, 3, total);
            let drops: Vec<usize> = (1..got.len()).filter(|&i| got[i] < got[i - 1]).collect();
            assert_eq!(drops, [total as usize / 2, total as usize * 3 / 4]);
        }
        let fixed = |milestones| Schedule { decay: Decay::MultiStep { milestones, gamma: 0.5 }, warmup: None };
        assert_eq!(rates(&fixed(vec![When::Step(2)]), 1.0, 3, 6), [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]);
        assert_eq!(rates(&fixed(vec![When::Epoch(1.0)]), 1.0, 3, 6), [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]);
    }

    #[test]
    fn warmup_rises_or_stays_and_takes_a_tenth_at_most() {
        let got = rates(&Schedule { decay: Decay::Constant, warmup: rising(4) }, 1.0, 10, 100);
        assert_eq!(got[..6], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        let flat = Some(Warmup { length: When::Step(3), factor: Some(0.1) });
        let got = rates(&Schedule { decay: Decay::Constant, warmup: flat }, 1.0, 10, 100);
        assert_eq!(got[..5], [0.1, 0.1, 0.1, 1.0, 1.0]);
        let got = rates(&Schedule { decay: Decay::Constant, warmup: rising(4) }, 1.0, 10, 20);
        assert_eq!(got[..3], [0.5, 1.0, 1.0]);
    }

    #[test]
    fn every_step_of_the_shortest_runs_is_finite_and_within_the_base_rate() {
        for total in 0..5 {
            for decay in [COSINE, Decay::Constant, Decay::Cosine { every: Every::Step }, LINEAR] {
                let lr = Schedule { decay, warmup: rising(3) }
                    .over(0.1, StepCount { steps_per_epoch: 0, total_steps: total });
                // Beyond the end too: a run that was resumed with fewer epochs must not see the rate rise again.
                for step in 0..20 {
                    assert!((0.0..=0.1).contains(&lr.at(step)), "{lr:?} at {step}");
                }
            }
        }
    }

    #[test]
    fn a_schedule_survives_json() {
        let milestones = vec![When::Fraction(0.5), When::Step(7), When::Epoch(1.5)];
        for decay in [Decay::MultiStep { milestones, gamma: 0.1 }, COSINE, LINEAR, Decay::Constant] {
            let schedule = Schedule { decay, warmup: rising(3) };
            let json = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule, "{json}");
        }
    }
}
