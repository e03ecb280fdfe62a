//! Settings of the recipe that have a flag of their own. Each is what `--set` can say too.

use anyhow::{Context, Result, bail};
use zoo_train::recipe::{ClassWeights, Recipe};

/// Flags that change single settings of the recipe.
#[derive(clap::Args)]
pub struct Settings {
    /// Epochs to train: passes over all training images. Default: the recipe's
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// Batch size: images of one pass. Default: the recipe's
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Learning rate at its highest; its course is the recipe's. Default: the recipe's
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,
    /// Optimizer, with its usual constants: sgd, adam, adamw, rmsprop, lamb, lion or muon. Default: the recipe's
    #[arg(long, value_name = "NAME")]
    optimizer: Option<String>,
    /// Weight decay. Default: the recipe's
    #[arg(long, value_name = "X")]
    weight_decay: Option<f64>,
    /// Course of the learning rate behind the warm-up: constant, cosine or linear, step by step. Default: the recipe's
    #[arg(long, value_name = "NAME")]
    schedule: Option<Course>,
    /// Epochs in which the learning rate rises from nothing; 0 for none. Default: the recipe's
    #[arg(long, value_name = "EPOCHS")]
    warmup: Option<f64>,
    /// Share of the target that is spread over all classes. Default: the recipe's
    #[arg(long, value_name = "X")]
    label_smoothing: Option<f64>,
    /// Largest norm of all gradients together. Default: the recipe's
    #[arg(long, value_name = "NORM")]
    clip_norm: Option<f64>,
    /// Which epoch's weights model.safetensors holds: the last one's, the best one's by the images that every epoch is measured
    /// on, or the best one's with the last one's beside them in last.safetensors. Default: best, where epochs are measured
    /// on validation images, else last
    #[arg(long, value_name = "best|last|both")]
    pub keep: Option<KeepFlag>,
    /// End when so many epochs in a row were no better than the best one before them
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// Train all but these parts: a part's name (`layer1`) or a glob on the names of parameters (`features.[0-4].*`). Frozen parts
    /// run as in evaluation and keep every bit; as often as wanted
    #[arg(long, value_name = "GLOB")]
    freeze: Vec<String>,
    /// Train the classifier alone
    #[arg(long)]
    freeze_all_but_head: bool,
    /// Learning rate of each layer over that of the layer above, from the classifier down: 0.65 to 0.9 for a ViT
    #[arg(long, value_name = "X")]
    layer_decay: Option<f64>,
    /// What the classifier's learning rate is multiplied with
    #[arg(long, value_name = "X")]
    head_lr: Option<f64>,
    /// Measure and keep an exponential moving average of the weights with this decay: 0.99 to 0.9999. It follows faster at first
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
    /// Measure and keep the mean of the weights over this share of the epochs, the last ones (SWA): 0.25
    #[arg(long, value_name = "SHARE", conflicts_with = "ema")]
    swa: Option<f64>,
    /// What training makes small: cross_entropy, or bce for the binary cross-entropy of each class. Default: the recipe's
    #[arg(long, value_name = "NAME")]
    loss: Option<LossFlag>,
    /// Batches whose gradients are added up for one step of the optimizer
    #[arg(long, value_name = "N")]
    accumulate: Option<usize>,
    /// What each class counts in the loss: `balanced`, or a number a class with commas between them
    #[arg(long, value_name = "balanced|LIST")]
    class_weights: Option<ClassWeights>,
    /// Change any setting of the recipe, as often as wanted: `optimizer.nesterov=true`, `augment.mixup=0.2`,
    /// `augment.policy=trivial-augment-wide`, `clip_norm=none`; `zoo recipe show NAME --toml` shows them all
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// The course of the learning rate, by name.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Course {
    Constant,
    Cosine,
    Linear,
}

/// [`LossFunction`](zoo_train::recipe::LossFunction) as a flag.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum LossFlag {
    CrossEntropy,
    Bce,
}

/// [`Keep`](zoo_train::recipe::Keep) as a flag.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum KeepFlag {
    Best,
    Last,
    Both,
}

impl Settings {
    /// The flags but --set as `KEY=VALUE`. Epochs, batch and rate are not among them: a record has fields of
    /// their own for those.
    fn listed(&self) -> Vec<String> {
        let text = |key: &str, value: Option<String>| value.map(|value| format!("{key}={value}"));
        let number = |key: &str, value: Option<f64>| text(key, value.map(toml_number));
        let count = |key: &str, value: Option<usize>| text(key, value.map(|value| value.to_string()));
        let schedule = self.schedule.map(|course| match course {
            Course::Constant => "constant".to_owned(),
            Course::Cosine => r#"{cosine={every="step"}}"#.into(),
            Course::Linear => r#"{linear={every="step"}}"#.into(),
        });
        let warmup = self.warmup.map(|epochs| match epochs {
            0.0 => "none".to_owned(),
            epochs => format!("{{length={{epoch={}}}}}", toml_number(epochs)),
        });
        let keep = self.keep.map(|keep| match keep {
            KeepFlag::Best => "best".to_owned(),
            KeepFlag::Last => "last".into(),
            KeepFlag::Both => "both".into(),
        });
        let loss = self.loss.map(|loss| match loss {
            LossFlag::CrossEntropy => "cross_entropy".to_owned(),
            LossFlag::Bce => "bce".into(),
        });
        let freeze = (!self.freeze.is_empty()).then(|| format!("{:?}", self.freeze));
        let weights = self.class_weights.as_ref().map(|weights| match weights {
            ClassWeights::Equal => "equal".to_owned(),
            ClassWeights::Balanced => "balanced".into(),
            ClassWeights::Given(weights) => {
                let weights: Vec<String> = weights.iter().map(|&weight| toml_number(f64::from(weight))).collect();
                format!("{{given=[{}]}}", weights.join(","))
            }
        });
        let flags = [
            text("optimizer.kind", self.optimizer.clone()),
            number("optimizer.weight_decay", self.weight_decay),
            text("schedule.decay", schedule),
            text("schedule.warmup", warmup),
            number("label_smoothing", self.label_smoothing),
            number("clip_norm", self.clip_norm),
            text("keep", keep),
            count("patience", self.patience),
            text("freeze", freeze),
            text("freeze_all_but_head", self.freeze_all_but_head.then(|| "true".into())),
            number("layer_decay", self.layer_decay),
            number("head_lr", self.head_lr),
            number("ema", self.ema),
            number("swa", self.swa),
            text("loss", loss),
            count("accumulate", self.accumulate),
            text("class_weights", weights),
        ];
        flags.into_iter().flatten().collect()
    }

    /// Puts the flags over the recipe: those of the settings that change it.
    pub fn put_over(&self, recipe: &mut Recipe, others: &[(&str, &str, bool)]) -> Result<Vec<String>> {
        let own = [
            ("length", "--epochs", self.epochs.is_some()),
            ("batch", "--batch", self.batch.is_some()),
            ("lr", "--lr", self.lr.is_some()),
            ("keep", "--keep", self.keep.is_some()),
            ("patience", "--patience", self.patience.is_some()),
            ("freeze", "--freeze", !self.freeze.is_empty()),
            ("layer_decay", "--layer-decay", self.layer_decay.is_some()),
            ("head_lr", "--head-lr", self.head_lr.is_some()),
            ("ema", "--ema", self.ema.is_some()),
            ("swa", "--swa", self.swa.is_some()),
            ("loss", "--loss", self.loss.is_some()),
            ("accumulate", "--accumulate", self.accumulate.is_some()),
            ("class_weights", "--class-weights", self.class_weights.is_some()),
            ("label_smoothing", "--label-smoothing", self.label_smoothing.is_some()),
            ("clip_norm", "--clip-norm", self.clip_norm.is_some()),
        ];
        for (part, flag, _) in own.iter().chain(others).filter(|(.., is_given)| *is_given) {
            if let Some(setting) = self.set.iter().find(|setting| is_of(setting, part)) {
                bail!("--set {setting} and {flag} say the same setting twice: leave one out");
            }
        }
        let mut changed = recipe.set_all(&self.listed())?;
        changed.extend(recipe.set_all(&self.set).context("--set")?);
        Ok(changed)
    }

    /// Whether --set says something of the recipe's part `part`.
    pub fn sets(&self, part: &str) -> bool {
        self.set.iter().any(|setting| is_of(setting, part))
    }
}

/// Whether `KEY=VALUE` sets something of the recipe's part `part`.
fn is_of(setting: &str, part: &str) -> bool {
    setting.split(['=', '.']).next().is_some_and(|key| key.trim() == part)
}

/// A number as TOML wants one that is no whole number.
fn toml_number(value: f64) -> String {
    format!("{value:?}")
}
