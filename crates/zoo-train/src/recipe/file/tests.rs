use super::*;
use crate::recipe::{Augment, Length, Normalize, Precision};
use crate::schedule::{Decay, Every, Warmup, When};

/// A file `mine.toml` with this text, read; messages without the folder's name.
fn read(text: &str) -> Result<Recipe, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, text).unwrap();
    let said = |error: Error| format!("{error:#}").replace(folder.path().to_str().unwrap(), "DIR");
    Recipe::read(&path).map_err(said)
}

fn set(base: &str, setting: &str) -> Result<Recipe, String> {
    let mut recipe = Recipe::named(base).unwrap();
    recipe.set(setting).map_err(|error| format!("{error:#}"))?;
    Ok(recipe)
}

#[test]
fn a_file_states_what_differs_from_its_base() {
    let finetune = Recipe::named("finetune").unwrap();
    assert_eq!(read("base = 'finetune'").unwrap(), Recipe { name: "mine".into(), ..finetune.clone() });
    let text = r#"
            base = "finetune"
            name = "slow and gentle"
            lr = 1
            clip_norm = "none"
            length.steps = 500
            precision = "bf16"
            normalize = "pixel_mean"
            [optimizer]
            weight_decay = 0.05
            [augment]
            flip = false
            [schedule.warmup]
            length.epoch = 2
            [schedule.decay.multi_step]
            milestones = [{ fraction = 0.5 }, { step = 400 }]
            gamma = 0.2
            [batch_norm]
            momentum = 0.01
        "#;
    let expected = Recipe {
        name: "slow and gentle".into(),
        lr: 1.0,
        clip_norm: None,
        length: Length::Steps(500),
        precision: Precision::Bf16,
        normalize: Normalize::PixelMean,
        optimizer: OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.05 },
        augment: Augment { flip: false, ..finetune.augment },
        ..finetune
    };
    let recipe = read(text).unwrap();
    let milestones = vec![When::Fraction(0.5), When::Step(400)];
    assert_eq!(recipe.schedule.decay, Decay::MultiStep { milestones, gamma: 0.2 });
    assert_eq!(recipe.schedule.warmup, Some(Warmup { length: When::Epoch(2.0), factor: None }));
    assert_eq!((recipe.batch_norm.momentum, recipe.batch_norm.eps), (Some(0.01), None));
    let rest = Recipe { schedule: expected.schedule.clone(), batch_norm: expected.batch_norm, ..recipe };
    assert_eq!(rest, expected);
}

#[test]
fn every_recipe_is_a_file_that_reads_back() {
    for &name in Recipe::NAMES {
        for model in ["cifar_resnet110", "mlp"] {
            let recipe = Recipe::named(name).unwrap().adapted_to(model).for_side(224);
            let text = recipe.to_toml().unwrap();
            assert_eq!(read(&text).unwrap(), recipe, "{text}");
        }
    }
    let changes = ["batch_norm.eps=1e-3", "init=torch", "precision=bf16", "schedule.warmup.factor=0.1"];
    let mut recipe = Recipe::named("fast").unwrap();
    assert_eq!(recipe.set_all(&changes.map(String::from)).unwrap(), changes);
    assert_eq!(read(&recipe.to_toml().unwrap()).unwrap(), recipe);
}

#[test]
fn what_is_wrong_in_a_file_is_said_with_its_place() {
    let mut others = Vec::new();
    for (text, told) in [
        ("base = 'finetune'\nlr_rate = 1", "there is no setting `lr_rate`: did you mean `lr`? There are `name`, "),
        ("base = 'finetune'\nweight_decay = 1", "no setting `weight_decay`: did you mean `optimizer.weight_decay`?"),
        (
            "base = 'finetune'\noptimizer.momentun = 1",
            "there is no setting `optimizer.momentun`: did you mean `optimizer.momentum`?",
        ),
        ("base = 'finetune'\n[augment]\nflop = 1", "there is no setting `augment.flop`: did you mean `augment.flip`?"),
        ("base = 'finetune'\nlr = 'fast'", "`lr`: expected a number, got string \"fast\""),
        ("base = 'finetune'\nlr = nan", "`lr`: expected a number, got string \"NaN\""),
        ("base = 'finetune'\nbatch = 1.5", "`batch`: expected a whole number from 0 on, got 1.5"),
        ("base = 'finetune'\nbatch = -1", "`batch`: expected a whole number from 0 on, got -1"),
        ("base = 'finetune'\naugment = true", "`augment`: expected a table of settings, got true"),
        ("base = 'finetune'\n[augment]\nflip = 1", "`augment.flip`: expected true or false, got 1"),
        ("base = 'finetune'\noptimizer.momentum = 'x'", "`optimizer.momentum`: expected a number, got string \"x\""),
        (
            "base = 'finetune'\noptimizer.kind = 'adamm'",
            "`optimizer.kind`: expected one of `sgd`, `adam`, `adamw`, `rmsprop`, `lamb`, `lion`, `muon`, got `adamm`: did you mean `adam",
        ),
        ("base = 'finetune'\nlength.hours = 3", "`length`: expected one of `epochs`, `steps`, got `hours`"),
        ("base = 'finetune'\n[length]\nepochs = 1\nsteps = 2", "`length`: expected one of `epochs`, `steps`"),
        ("base = 'finetune'\nlength.epochs = 'x'", "`length.epochs`: expected a whole number from 0 on"),
        ("base = 'finetune'\nschedule.decay = 'multi_step'", "`schedule.decay`: `multi_step` alone says too little"),
        ("base = 'finetune'\nlabel_smoothing = 2", "label_smoothing must lie in 0..=1, got 2"),
        ("base = 'finetun'", "`base`: there is no recipe `finetun` (did you mean `finetune`?)"),
        ("base = 3", "`base`: expected the name of a recipe, in quotes"),
        ("lr = 1", "`optimizer` is missing: state every setting, or a `base = \"NAME\"`"),
        ("base = 'finetune'\nlr = = 1", "line 2: not TOML: "),
        ("\u{0}", "line 1: not TOML: "),
    ] {
        let error = read(text).unwrap_err();
        if !error.starts_with("DIR/mine.toml: ") || !error.contains(told) || error.lines().count() != 1 {
            others.push((told, error));
        }
    }
    assert!(others.is_empty(), "{others:#?}");
    let absent = format!("{:#}", Recipe::read(Path::new("/no/such.toml")).unwrap_err());
    assert!(absent.starts_with("/no/such.toml: "), "{absent}");
    assert!(read(&"#".repeat(2 << 20)).unwrap_err().contains("are no recipe"));
}

#[test]
fn single_settings_are_put_over() {
    let decayed = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.05 };
    assert_eq!(set("modern-200", "optimizer.weight_decay=0.05").unwrap().optimizer, decayed);
    for adamw in
        ["optimizer=adamw", "optimizer.kind=adamw", "optimizer = {kind = 'adamw'}", " optimizer.kind = \"adamw\" "]
    {
        let recipe = set("modern-200", adamw).unwrap();
        assert_eq!(Some(recipe.optimizer), OptimizerConfig::of_kind("adamw"), "{adamw}");
    }
    // Of the same kind, what is not stated stays.
    let fast = Recipe::named("fast").unwrap().adapted_to("mlp");
    let mut same = fast.clone();
    same.set("optimizer.kind=adamw").unwrap();
    assert_eq!(same, fast);
    let linear = Decay::Linear { every: Every::Step };
    assert_eq!(set("modern-200", "schedule.decay.linear.every=step").unwrap().schedule.decay, linear);
    assert_eq!(
        set("modern-200", "schedule.decay.cosine.every=step").unwrap().schedule.decay,
        Decay::Cosine { every: Every::Step }
    );
    assert_eq!(set("modern-200", "schedule.decay=constant").unwrap().schedule.decay, Decay::Constant);
    assert_eq!(set("finetune", "schedule.warmup=none").unwrap().schedule.warmup, None);
    assert_eq!(set("finetune", "clip_norm=none").unwrap().clip_norm, None);
    assert_eq!(set("modern-200", "clip_norm=2").unwrap().clip_norm, Some(2.0));
    for (setting, told) in [
        ("lr_rate=0.05", "`lr_rate=0.05`: there is no setting `lr_rate`: did you mean `lr`?"),
        ("lr", "`lr`: expected KEY=VALUE, such as lr=0.05"),
        ("lr=", "expected KEY=VALUE"),
        (".lr=1", "expected KEY=VALUE"),
        ("lr.x=1", "`lr`: expected a number, got a table"),
        ("lr=0.1.2", "`lr`: expected a number, got string \"0.1.2\""),
        ("normalize=[1,", "the value is not TOML: "),
        ("lr=1\nbatch=2", "the value is not TOML: "),
        ("base=quick", "there is no setting `base`"),
    ] {
        let error = set("modern-200", setting).unwrap_err();
        assert!(error.contains(told) && !error.contains('\n') || setting.contains('\n'), "{setting}: {error}");
    }
    // What changes nothing is no change, and of two the last counts.
    let settings = ["lr=0.1", "batch=64", "optimizer.momentum=0.8", "batch=32"].map(String::from);
    let mut recipe = Recipe::named("modern-200").unwrap();
    assert_eq!(recipe.set_all(&settings).unwrap(), ["optimizer.momentum=0.8", "batch=32"]);
    assert_eq!(recipe.batch, 32);
    assert!(recipe.set("batch=0").is_err() && recipe.batch == 32);
}

/// All that serde knows: a kind without defaults could not be changed to.
#[test]
fn every_optimizer_has_defaults() {
    let error = set("modern-200", "optimizer.kind=x").unwrap_err();
    let known = error.split("one of ").nth(1).unwrap().split(", got").next().unwrap();
    for kind in known.split(", ").map(|kind| kind.trim_matches('`')) {
        let recipe = set("modern-200", &format!("optimizer.kind={kind}")).unwrap();
        assert_eq!(serde_json::to_value(&recipe.optimizer).unwrap()["kind"], kind);
    }
}

#[test]
fn a_base_is_adapted_before_the_file_goes_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = |text: &str| {
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, text).unwrap();
        RecipeSource::open(path.to_str().unwrap())
    };
    let mine = source("base = 'finetune'\nlr = 0.5\n[augment]\nflip = false").unwrap();
    let large = mine.adapted("resnet18", 224).unwrap();
    assert_eq!((large.lr, large.augment), (0.5, Augment { crop_padding: 28, ..Augment::NONE }));
    assert_eq!(mine.recipe().unwrap().augment.crop_padding, 4);
    assert!(mine.states("augment") && !mine.states("normalize"));
    // The name of one of the zoo's, for the same and for another.
    let own = Recipe::named("fast").unwrap().adapted_to("mlp").for_side(32);
    let same = source(&own.to_toml().unwrap()).unwrap();
    assert_eq!(same.adapted("mlp", 32).unwrap(), own);
    let error = same.adapted("cifar_resnet20", 32).unwrap_err().to_string();
    assert!(error.contains("called `fast`") && error.contains("a `name` of its own"), "{error}");
    let named = RecipeSource::open("finetune").unwrap();
    assert_eq!(named.adapted("resnet18", 224).unwrap().augment.crop_padding, 28);
    let error = RecipeSource::open("modern").unwrap_err().to_string();
    assert!(error.contains("no recipe `modern` (did you mean `modern-200`?)"), "{error}");
    assert!(RecipeSource::open("modern.toml").is_err());
}
