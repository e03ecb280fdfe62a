//! Recipes of one's own: files of settings, and single settings put over a recipe.

use super::over::{Over, What, Wrong, nearest};
use super::{OptimizerConfig, Recipe};
use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::io::Read;
use std::path::{Path, PathBuf};
use zoo_core::weights::open_regular;

/// The largest file that is read, in bytes: some hundred times a recipe.
const MOST_BYTES: u64 = 1 << 20;

impl Recipe {
    /// Reads a recipe from a TOML file: `base = "finetune"` and what is put over it, or every setting.
    ///
    /// ```
    /// use zoo_train::recipe::Recipe;
    /// let path = std::env::temp_dir().join(format!("gentle-{}.toml", std::process::id()));
    /// std::fs::write(&path, "name = 'gentle'\nbase = 'finetune'\nlr = 0.001\n[optimizer]\nkind = 'adamw'\n")?;
    /// let recipe = Recipe::read(&path)?;
    /// assert_eq!((recipe.name.as_str(), recipe.lr, recipe.batch), ("gentle", 0.001, 16));
    /// # std::fs::remove_file(&path)?;
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`RecipeFile::read`].
    pub fn read(path: &Path) -> Result<Self> {
        RecipeFile::read(path)?.recipe()
    }

    /// Changes one setting: `lr=0.05`, `optimizer.weight_decay=0.05`, `schedule.decay.cosine.every=step`. Values are
    /// TOML's, a bare word is a text, and `none` unsets what is optional. Another `optimizer.kind` takes that kind's
    /// defaults.
    ///
    /// ```
    /// use zoo_train::recipe::Recipe;
    /// let mut recipe = Recipe::named("modern-200")?;
    /// recipe.set("label_smoothing=0.1")?;
    /// assert_eq!(recipe.label_smoothing, 0.1);
    /// let error = recipe.set("lr_rate=0.1").unwrap_err().to_string();
    /// assert!(error.contains("did you mean `lr`?"), "{error}");
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    ///
    /// # Errors
    /// What is no `KEY=VALUE`, a setting that a recipe does not have (with the nearest that it has), a value of another
    /// type, and what [`Recipe::check`] refuses. The recipe is left as it was.
    pub fn set(&mut self, setting: &str) -> Result<()> {
        let (key, value) = parted(setting)?;
        let own = key.rsplit('.').fold(value, |value, part| Value::Object(Map::from_iter([(part.to_owned(), value)])));
        *self = put_over(own, Some(self)).map_err(|error| anyhow!("`{setting}`: {error}"))?;
        Ok(())
    }

    /// [`set`](Self::set) for several, in their order: those that changed something, as a record lists them.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_all(&mut self, settings: &[String]) -> Result<Vec<String>> {
        let mut changed: Vec<(String, String)> = Vec::new();
        for setting in settings {
            let before = self.clone();
            self.set(setting)?;
            if *self != before {
                let key = parted(setting)?.0;
                // Of two for the same setting the last counts.
                changed.retain(|(other, _)| *other != key);
                changed.push((key, setting.trim().to_owned()));
            }
        }
        Ok(changed.into_iter().map(|(_, setting)| setting).collect())
    }

    /// The recipe as a file that [`Recipe::read`] reads to the same one: every setting, without a base.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).with_context(|| format!("cannot write the recipe {} as TOML", self.name))
    }
}

/// A file of settings, read and checked. Those that it puts over a base go over what the base is for a network, too:
/// `finetune` moves larger images further, `fast` trains each network as long as it takes.
#[derive(Debug, Clone)]
pub struct RecipeFile {
    path: PathBuf,
    base: Option<Recipe>,
    own: Value,
}

impl RecipeFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML, a base that is no recipe, an unknown key (with the nearest that there
    /// is), a value of another type, a key that is missing where there is no base, and what [`Recipe::check`] refuses:
    /// each names the file.
    pub fn read(path: &Path) -> Result<Self> {
        let (mut own, base) = Self::parse(path).with_context(|| path.display().to_string())?;
        if !own.contains_key("name") {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            own.insert("name".into(), stem.into());
        }
        let file = Self { path: path.into(), base, own: own.into() };
        file.recipe()?;
        Ok(file)
    }

    fn parse(path: &Path) -> Result<(Map<String, Value>, Option<Recipe>)> {
        let file = open_regular(path)?;
        let mut text = String::new();
        // One byte more tells a file that is too long from one that just fits.
        file.take(MOST_BYTES + 1).read_to_string(&mut text)?;
        ensure!(text.len() as u64 <= MOST_BYTES, "more than {MOST_BYTES} bytes are no recipe");
        let table: toml::Table = text.parse().map_err(|error| not_toml(&text, &error))?;
        let mut own = object(table);
        let base = match own.remove("base") {
            None => None,
            Some(Value::String(name)) => Some(named(&name).context("`base`")?),
            Some(_) => bail!("`base`: expected the name of a recipe, in quotes"),
        };
        Ok((own, base))
    }

    /// The recipe, its base as for cifar_resnet20.
    ///
    /// # Errors
    /// None for a file that was read; it is checked then.
    pub fn recipe(&self) -> Result<Recipe> {
        self.over(self.base.as_ref())
    }

    /// The recipe for the network `model` on images of `side` pixels: its base is adapted first.
    ///
    /// # Errors
    /// The name of one of the zoo's recipes for another one: reports would set it beside that one's published figures.
    pub fn adapted(&self, model: &str, side: usize) -> Result<Recipe> {
        let adapted = |recipe: Recipe| recipe.adapted_to(model).for_side(side);
        let recipe = self.over(self.base.clone().map(adapted).as_ref())?;
        let namesake = Recipe::NAMES.contains(&recipe.name.as_str()).then(|| Recipe::named(&recipe.name));
        let is_other = namesake.transpose()?.is_some_and(|namesake| adapted(namesake) != recipe);
        ensure!(
            !is_other,
            "{}: it is called `{}` as one of the zoo's recipes, but is not the same for {model}: give it a `name` of its own",
            self.path.display(),
            recipe.name
        );
        Ok(recipe)
    }

    /// Whether the file itself states the setting `key`.
    pub fn states(&self, key: &str) -> bool {
        self.own.get(key).is_some()
    }

    fn over(&self, base: Option<&Recipe>) -> Result<Recipe> {
        put_over(self.own.clone(), base).with_context(|| self.path.display().to_string())
    }
}

/// A recipe by its name or its file: the argument of `--recipe`.
#[derive(Debug, Clone)]
pub enum RecipeSource {
    /// One of the zoo's.
    Named(Box<Recipe>),
    /// One of the user's.
    File(Box<RecipeFile>),
}

impl RecipeSource {
    /// Whether a text is a file's and no recipe's name: it ends in `.toml`, has a folder before it, or lies in this
    /// folder.
    pub fn is_file(text: &str) -> bool {
        let path = Path::new(text);
        let is_path = path.components().count() > 1 || path.extension().is_some_and(|end| end == "toml");
        !Recipe::NAMES.contains(&text) && (is_path || path.is_file())
    }

    /// The recipe of this name, or the file, see [`is_file`](Self::is_file).
    ///
    /// # Errors
    /// Neither, with the nearest name; what [`RecipeFile::read`] refuses.
    pub fn open(text: &str) -> Result<Self> {
        match Self::is_file(text) {
            true => Ok(Self::File(RecipeFile::read(Path::new(text))?.into())),
            false => Ok(Self::Named(named(text)?.into())),
        }
    }

    /// The recipe as for cifar_resnet20.
    ///
    /// # Errors
    /// As [`RecipeFile::recipe`].
    pub fn recipe(&self) -> Result<Recipe> {
        match self {
            Self::Named(recipe) => Ok(Recipe::clone(recipe)),
            Self::File(file) => file.recipe(),
        }
    }

    /// The recipe for the network `model` on images of `side` pixels.
    ///
    /// # Errors
    /// As [`RecipeFile::adapted`].
    pub fn adapted(&self, model: &str, side: usize) -> Result<Recipe> {
        match self {
            Self::Named(recipe) => Ok(Recipe::clone(recipe).adapted_to(model).for_side(side)),
            Self::File(file) => file.adapted(model, side),
        }
    }

    /// Whether the user's own file states the setting `key`.
    pub fn states(&self, key: &str) -> bool {
        matches!(self, Self::File(file) if file.states(key))
    }
}

fn named(name: &str) -> Result<Recipe> {
    Recipe::named(name).map_err(|_| {
        let near = nearest(name, Recipe::NAMES).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
        anyhow!(
            "there is no recipe `{name}`{near}; the recipes are {}, or a file of one's own",
            Recipe::NAMES.join(", ")
        )
    })
}

/// `KEY=VALUE` as the key and its value.
fn parted(setting: &str) -> Result<(String, Value)> {
    let parts = setting.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
    let is_key = |key: &str| !key.split('.').any(str::is_empty);
    let Some((key, text)) = parts.filter(|(key, value)| is_key(key) && !value.is_empty()) else {
        bail!("`{setting}`: expected KEY=VALUE, such as lr=0.05 or optimizer.weight_decay=0.05");
    };
    let value = match text.parse::<toml::Value>() {
        Ok(value) => json(value),
        Err(_) if text.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)) => text.into(),
        Err(error) => bail!("`{setting}`: the value is not TOML: {}", line(error.message())),
    };
    Ok((key.to_owned(), value))
}

/// The recipe that `own` makes over `base`.
fn put_over(mut own: Value, base: Option<&Recipe>) -> Result<Recipe> {
    // The kind alone is said by its name.
    if let Some(optimizer) = own.get_mut("optimizer").filter(|optimizer| optimizer.is_string()) {
        *optimizer = Value::Object(Map::from_iter([("kind".to_owned(), optimizer.take())]));
    }
    let mut below = base.map(serde_json::to_value).transpose()?;
    let kind = own.pointer("/optimizer/kind").and_then(Value::as_str);
    if let Some(defaults) = kind.and_then(OptimizerConfig::of_kind) {
        let is_same = |below: &Value| below.pointer("/optimizer/kind").and_then(Value::as_str) == kind;
        if let Some(below) = below.as_mut().filter(|below| !is_same(below)) {
            below["optimizer"] = serde_json::to_value(defaults)?;
        }
    }
    let recipe = Recipe::deserialize(Over::new(&own, below.as_ref()))
        .map_err(|wrong| in_words(narrowed(wrong, &own, below.as_ref()), below.as_ref()))?;
    recipe.check()?;
    Ok(recipe)
}

/// The error at the key that it is of, where serde reads a table as a whole and knows no more than the table: the one
/// without which the error would be another.
fn narrowed(wrong: Wrong, own: &Value, below: Option<&Value>) -> Wrong {
    let pointer = format!("/{}", wrong.key.replace('.', "/"));
    let Some(Value::Object(table)) = own.pointer(&pointer).filter(|_| matches!(wrong.what, What::Value(_))) else {
        return wrong;
    };
    // The kind decides what all others are.
    let mut keys: Vec<&String> = table.keys().collect();
    keys.sort_by_key(|key| *key == "kind");
    for key in keys {
        let mut without = own.clone();
        without.pointer_mut(&pointer).and_then(Value::as_object_mut).map(|table| table.remove(key));
        let is_other = Recipe::deserialize(Over::new(&without, below)).map_or_else(|other| other != wrong, |_| true);
        if is_other {
            return Wrong { key: format!("{}.{key}", wrong.key), what: wrong.what };
        }
    }
    wrong
}

/// The error, with the setting that is called so elsewhere in a recipe.
fn in_words(wrong: Wrong, below: Option<&Value>) -> Error {
    fn places(value: &Value, key: &str, path: &str, found: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            places(value, key, &path, found);
            if name == key {
                found.push(path);
            }
        }
    }
    match &wrong.what {
        What::Unknown { key, .. } => {
            let mut found = Vec::new();
            below.iter().for_each(|below| places(below, key, "", &mut found));
            let dot = if wrong.key.is_empty() { "" } else { "." };
            match found.first() {
                Some(place) => anyhow!("there is no setting `{}{dot}{key}`: did you mean `{place}`?", wrong.key),
                None => wrong.into(),
            }
        }
        What::Missing(_) if below.is_none() => {
            anyhow!("{wrong}: state every setting, or a `base = \"NAME\"` that has the others")
        }
        _ => wrong.into(),
    }
}

/// TOML's values as JSON's, which recipes are written in.
fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        // JSON knows no `nan` and no `inf`: as a text it is refused wherever a number is wanted.
        toml::Value::Float(number) if !number.is_finite() => number.to_string().into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(value) => value.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(json).collect(),
        toml::Value::Table(table) => object(table).into(),
    }
}

fn object(table: toml::Table) -> Map<String, Value> {
    table.into_iter().map(|(key, value)| (key, json(value))).collect()
}

fn not_toml(text: &str, error: &toml::de::Error) -> Error {
    let place = error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    let place = place.map_or(String::new(), |number| format!("line {number}: "));
    anyhow!("{place}not TOML: {}", line(error.message()))
}

/// A message on one line.
fn line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
