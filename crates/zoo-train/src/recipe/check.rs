//! What a recipe's values must be, wherever they come from: a file, the command line or a program.

use super::{BatchNormOverride, ClassWeights, Length, LossFunction, Normalize, Recipe};
use crate::schedule::{Decay, When};
use anyhow::{Result, anyhow, ensure};
use serde_json::Value;

// Beyond all that anybody trains, and what is computed from them does not overflow.
const MOST_EPOCHS: usize = 1_000_000;
const MOST_STEPS: u64 = 1_000_000_000_000;
const MOST_IMAGES: usize = 1_000_000_000;

impl Recipe {
    /// Checks that every value is one that can be trained by.
    ///
    /// # Errors
    /// The first that is not: no epochs or more than a million, no batch or one of more than a billion images, a
    /// learning rate, an ε or a norm that is not a positive number, a share outside 0..=1, and the like.
    pub fn check(&self) -> Result<()> {
        let named = !self.name.trim().is_empty() && !self.name.contains(char::is_control);
        ensure!(named, "the recipe's name must be a line of text, got {:?}", self.name);
        match self.length {
            Length::Epochs(epochs) => {
                ensure!((1..=MOST_EPOCHS).contains(&epochs), "epochs must be from 1 to {MOST_EPOCHS}, got {epochs}");
            }
            Length::Steps(steps) => {
                ensure!((1..=MOST_STEPS).contains(&steps), "steps must be from 1 to {MOST_STEPS}, got {steps}");
            }
        }
        let batch = self.batch;
        ensure!((1..=MOST_IMAGES).contains(&batch), "batch must be from 1 to {MOST_IMAGES}, got {batch}");
        positive("the learning rate", self.lr)?;
        share("label_smoothing", self.label_smoothing)?;
        self.clip_norm.map_or(Ok(()), |norm| positive("clip_norm", norm))?;
        share("hold_out", self.hold_out)?;
        ensure!(self.hold_out < 1.0, "hold_out must be less than 1, or nothing is left to train on");
        let BatchNormOverride { momentum, eps, .. } = self.batch_norm;
        momentum.map_or(Ok(()), |momentum| share("the momentum of BatchNorm", momentum))?;
        eps.map_or(Ok(()), |eps| positive("the ε of BatchNorm", eps))?;
        if let Normalize::Channels { mean, std } = &self.normalize {
            ensure!(mean.iter().all(|mean| mean.is_finite()), "normalize: the mean must be numbers, got {mean:?}");
            std.iter().try_for_each(|&std| positive("normalize: the deviation", f64::from(std)))?;
        }
        self.check_schedule()?;
        self.check_control()?;
        self.augment.check().map_err(|problem| anyhow!("augment: {problem}"))?;
        self.check_optimizer()
    }

    fn check_control(&self) -> Result<()> {
        ensure!(self.accumulate >= 1, "accumulate must be at least 1");
        ensure!(self.patience != Some(0), "patience must be at least 1");
        if let Some(decay) = self.ema {
            ensure!((0.0..1.0).contains(&decay), "ema must lie in 0..1, got {decay}");
        }
        if let Some(part) = self.swa {
            share("swa", part)?;
            ensure!(part > 0.0, "swa must be more than 0: it is the share of the run that is averaged");
            ensure!(self.ema.is_none(), "swa and ema are two averages of the same weights: leave one out");
        }
        self.bce_target_thresh.map_or(Ok(()), |share_of_class| share("bce_target_thresh", share_of_class))?;
        match self.loss {
            LossFunction::CrossEntropy => {
                ensure!(self.bce_target_thresh.is_none(), "bce_target_thresh is of the loss `bce`: set loss=bce")
            }
            LossFunction::Bce => {
                let equal = self.class_weights == ClassWeights::Equal;
                ensure!(equal, "class_weights are of the loss `cross_entropy`: `bce` asks each class by itself");
            }
        }
        self.layer_decay.map_or(Ok(()), |decay| positive("layer_decay", decay))?;
        self.head_lr.map_or(Ok(()), |factor| positive("head_lr", factor))?;
        if let ClassWeights::Given(weights) = &self.class_weights {
            weights.iter().try_for_each(|&weight| at_least_0("a class weight", f64::from(weight)))?;
        }
        Ok(())
    }

    fn check_schedule(&self) -> Result<()> {
        let moment = |what: &str, when: When| match when {
            When::Fraction(part) => share(what, part),
            When::Epoch(epochs) => at_least_0(what, epochs),
            When::Step(_) => Ok(()),
        };
        if let Decay::MultiStep { milestones, gamma } = &self.schedule.decay {
            milestones.iter().try_for_each(|&when| moment("a milestone of the schedule", when))?;
            at_least_0("the schedule's gamma", *gamma)?;
        }
        if let Some(warmup) = self.schedule.warmup {
            moment("the length of the warm-up", warmup.length)?;
            warmup.factor.map_or(Ok(()), |factor| at_least_0("the factor of the warm-up", factor))?;
        }
        Ok(())
    }

    /// By the names of its constants, which mean the same in every optimizer.
    fn check_optimizer(&self) -> Result<()> {
        let optimizer = serde_json::to_value(&self.optimizer)?;
        for (name, value) in optimizer.as_object().into_iter().flatten() {
            let what = format!("optimizer.{name}");
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for value in values {
                match value {
                    // LAMB may clip at nothing.
                    Value::Null if name == "max_grad_norm" => {}
                    // What is no number is not written as one.
                    Value::Null | Value::Number(_) => {
                        let number = value.as_f64().unwrap_or(f64::NAN);
                        match name.as_str() {
                            "eps" => positive(&what, number)?,
                            "momentum" | "betas" | "alpha" => {
                                ensure!((0.0..1.0).contains(&number), "{what} must lie in 0..1, got {number}");
                            }
                            _ => at_least_0(&what, number)?,
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn positive(what: &str, value: f64) -> Result<()> {
    ensure!(value > 0.0 && value.is_finite(), "{what} must be a positive number, got {value}");
    Ok(())
}

fn at_least_0(what: &str, value: f64) -> Result<()> {
    ensure!(value >= 0.0 && value.is_finite(), "{what} must be a number from 0 on, got {value}");
    Ok(())
}

fn share(what: &str, value: f64) -> Result<()> {
    ensure!((0.0..=1.0).contains(&value), "{what} must lie in 0..=1, got {value}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Precision;

    #[test]
    fn every_named_recipe_passes() {
        for &name in Recipe::NAMES {
            Recipe::named(name).unwrap().check().unwrap();
        }
    }

    #[test]
    fn what_cannot_be_trained_by_is_said() {
        let refused = |setting: &str| {
            let mut recipe = Recipe::named("resnet-paper").unwrap();
            recipe.set(setting).unwrap_err().to_string()
        };
        let mut others = Vec::new();
        for (setting, told) in [
            ("lr=0", "the learning rate must be a positive number, got 0"),
            ("lr=-1e-3", "the learning rate must be a positive number, got -0.001"),
            ("batch=0", "batch must be from 1 to 1000000000, got 0"),
            ("length.epochs=0", "epochs must be from 1 to 1000000, got 0"),
            ("length.steps=0", "steps must be from 1 to 1000000000000, got 0"),
            ("label_smoothing=1.5", "label_smoothing must lie in 0..=1, got 1.5"),
            ("hold_out=1", "hold_out must be less than 1"),
            ("clip_norm=0", "clip_norm must be a positive number"),
            ("batch_norm.momentum=2", "the momentum of BatchNorm must lie in 0..=1, got 2"),
            ("batch_norm.eps=0", "the ε of BatchNorm must be a positive number, got 0"),
            ("normalize={channels={mean=[0,0,0],std=[1,0,1]}}", "the deviation must be a positive number, got 0"),
            ("optimizer.momentum=1", "optimizer.momentum must lie in 0..1, got 1"),
            ("optimizer.weight_decay=-1", "optimizer.weight_decay must be a number from 0 on, got -1"),
            ("optimizer={kind='adam',betas=[0.9,1.0]}", "optimizer.betas must lie in 0..1, got 1"),
            ("optimizer={kind='adamw',eps=0}", "optimizer.eps must be a positive number, got 0"),
            ("schedule.decay.multi_step.milestones=[{fraction=1.1}]", "a milestone of the schedule must lie in 0..=1"),
            ("schedule.decay.multi_step.gamma=-1", "the schedule's gamma must be a number from 0 on, got -1"),
            ("schedule.warmup={length={epoch=-1}}", "the length of the warm-up must be a number from 0 on, got -1"),
            ("name=''", "the recipe's name must be a line of text, got \"\""),
        ] {
            let error = refused(setting);
            if !error.contains(told) {
                others.push(error);
            }
        }
        assert!(others.is_empty(), "{others:#?}");
        let mut recipe = Recipe { precision: Precision::F32, ..Recipe::named("quick").unwrap() };
        recipe.lr = f64::NAN;
        assert!(recipe.check().is_err());
    }
}
