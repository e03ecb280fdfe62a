//! What a comparison of keys found, and what loading did, in words.

use super::shown;
use candle_core::Shape;
use std::fmt;

/// A tensor whose shape in the file is not the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MisShaped {
    /// The network's key.
    pub key: String,
    /// The shape in the file.
    pub file: Shape,
    /// The shape in the network.
    pub network: Shape,
}

/// How a file's keys stand to a network's; every list is sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyReport {
    /// In both, with one shape, or one that the file's is adapted to.
    pub matching: Vec<String>,
    /// Of those the ones that are adapted, and how, in words.
    pub adapted: Vec<(String, String)>,
    /// In the network only, with the shape it has there.
    pub missing: Vec<(String, Shape)>,
    /// In the file only, with the shape it has there; by the name that the network would know it under.
    pub unexpected: Vec<(String, Shape)>,
    /// In both, with two shapes.
    pub mis_shaped: Vec<MisShaped>,
    /// In the file only, and left out by a rename that says so, by an option, or because it stands beside the prefix;
    /// no mismatch.
    pub left_out: Vec<String>,
    /// What stood before the file's keys and was dropped.
    pub prefix: Option<String>,
    /// Whose names the file has, by [`Layout::name`](super::Layout::name); `None` for the network's own.
    pub layout: Option<&'static str>,
}

impl KeyReport {
    /// Whether all keys match, but for those that are left out knowingly.
    pub fn is_exact(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mis_shaped.is_empty()
    }

    /// The layer that alone differs, and only in its number of outputs, with that number in the file and in the
    /// network: a classifier of other classes.
    pub fn other_outputs(&self) -> Option<(&str, usize, usize)> {
        let layer = |m: &'_ MisShaped| m.key.rsplit_once('.').map_or("", |(layer, _)| layer).len();
        let first = self.mis_shaped.first().filter(|_| self.missing.is_empty() && self.unexpected.is_empty())?;
        let place = &first.key[..layer(first)];
        let outputs = |m: &MisShaped| match (m.file.dims(), m.network.dims()) {
            ([file, rest @ ..], [network, same @ ..]) if rest == same => Some((*file, *network)),
            _ => None,
        };
        let (file, network) = outputs(first)?;
        let alike = |m: &MisShaped| &m.key[..layer(m)] == place && outputs(m) == Some((file, network));
        self.mis_shaped.iter().all(alike).then_some((place, file, network))
    }

    /// The convolution that alone differs, and only in its number of input channels, with that number in the file and
    /// in the network.
    pub fn other_channels(&self) -> Option<(&str, usize, usize)> {
        let alone = self.missing.is_empty() && self.unexpected.is_empty();
        match &self.mis_shaped[..] {
            [MisShaped { key, file, network }] if alone => match (file.dims(), network.dims()) {
                (&[out, file, h, w], &[same, network, height, width]) => {
                    ((out, h, w) == (same, height, width)).then_some((key.as_str(), file, network))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// The first line of its text: the counts, whose names the file has, and what helps where only the classes differ.
    pub fn summary(&self) -> String {
        let Self { matching, missing, unexpected, mis_shaped, .. } = self;
        let counts = [(missing.len(), "missing"), (unexpected.len(), "unexpected"), (mis_shaped.len(), "mis-shaped")];
        let mut text = format!("{} keys match", matching.len());
        counts.iter().for_each(|(count, what)| text += &format!(", {count} {what}"));
        text += &read_as(self.layout, self.prefix.as_deref());
        let differs = |key: &str, verb: &str, file: usize, network: usize, what: &str| {
            let key = shown(key);
            format!("; only `{key}` differs, which {verb} {file} {what} in the file and {network} in the network: ")
        };
        if let Some((layer, file, network)) = self.other_outputs() {
            text += &differs(layer, "has", file, network, "classes");
            text += &format!(
                "ask for {file} classes (--classes {file}), or train it (`zoo train --weights`): that gives a new head"
            );
        }
        if let Some((key, file, network)) = self.other_channels() {
            text += &differs(key, "reads", file, network, "channels");
            text += &format!("ask for images of {file} (--in-chans {file})");
        }
        text
    }
}

/// How a file's names were understood, in brackets, if there is anything to say.
fn read_as(layout: Option<&str>, prefix: Option<&str>) -> String {
    let names = layout.map(|name| format!("{name}'s names"));
    let behind = prefix.map(|prefix| format!("behind `{}`", shown(prefix)));
    let said: Vec<String> = names.into_iter().chain(behind).collect();
    if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) }
}

/// [`KeyReport::summary`], then the first keys of each list under a heading.
impl fmt::Display for KeyReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.summary())?;
        let with_shape = |(key, shape): &(String, Shape)| format!("{} {shape:?}", shown(key));
        write_list(f, "missing (in the network only)", &self.missing, with_shape)?;
        write_list(f, "unexpected (in the file only)", &self.unexpected, with_shape)?;
        write_list(f, "mis-shaped", &self.mis_shaped, |m| {
            format!("{}: {:?} in the file, {:?} in the network", shown(&m.key), m.file, m.network)
        })?;
        write_list(f, "adapted", &self.adapted, |(key, how)| format!("{}: {how}", shown(key)))?;
        write_list(f, "left out of the file", &self.left_out, |key| shown(key))
    }
}

fn write_list<T>(f: &mut fmt::Formatter, title: &str, list: &[T], line: impl Fn(&T) -> String) -> fmt::Result {
    /// A whole network may be missing; the first keys show which.
    const SHOWN: usize = 5;
    if list.is_empty() {
        return Ok(());
    }
    write!(f, "\n{title}:")?;
    for item in list.iter().take(SHOWN) {
        write!(f, "\n  {}", line(item))?;
    }
    if list.len() > SHOWN {
        write!(f, "\n  … and {} more, which `zoo check` lists", list.len() - SHOWN)?;
    }
    Ok(())
}

/// What [`load`](super::load()) did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadReport {
    /// The network's keys that got the file's values.
    pub loaded: Vec<String>,
    /// Of those the ones whose values were adapted to another image, and how, in words.
    pub adapted: Vec<(String, String)>,
    /// The network's keys that kept their initial values.
    pub initial: Vec<String>,
    /// The file's tensors that were passed over, by the name that the network would know them under.
    pub passed_over: Vec<String>,
    /// What stood before the file's keys and was dropped.
    pub prefix: Option<String>,
    /// Whose names the file has, by [`Layout::name`](super::Layout::name); `None` for the network's own.
    pub layout: Option<&'static str>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} tensors loaded{}", self.loaded.len(), read_as(self.layout, self.prefix.as_deref()))?;
        write_list(f, "adapted", &self.adapted, |(key, how)| format!("{}: {how}", shown(key)))?;
        write_list(f, "left at their initial values", &self.initial, |key| shown(key))?;
        write_list(f, "passed over in the file", &self.passed_over, |key| shown(key))
    }
}
