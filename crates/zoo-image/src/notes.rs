//! Notes on what of a file of weights was taken and what was left, a line each.

use crate::metadata::Origin;
use zoo_core::weights::{LoadReport, Weights, shown};

/// Notes on what of a file is taken.
pub(crate) fn of_file(weights: &Weights, origin: Origin) -> Vec<String> {
    let mut notes = taken(weights);
    if origin == Origin::Foreign {
        notes.push("its metadata is not the zoo's: nothing is taken from it".into());
    }
    notes
}

/// Notes on what of its tensors was taken, adapted and left.
pub(crate) fn of_load(report: &LoadReport) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(report.prefix.as_ref().map(|prefix| format!("keys behind `{}`", shown(prefix))));
    if !report.passed_over.is_empty() {
        let first: Vec<String> = report.passed_over.iter().take(4).map(|key| format!("`{}`", shown(key))).collect();
        let more = if report.passed_over.len() > first.len() { ", …" } else { "" };
        notes.push(format!("{} tensors passed over: {}{more}", report.passed_over.len(), first.join(", ")));
    }
    notes.extend(report.adapted.iter().map(|(key, how)| format!("`{}` adapted: {how}", shown(key))));
    notes
}

/// Notes on which entry of a training state was taken, where there are others.
pub fn taken(weights: &Weights) -> Vec<String> {
    let others = weights.other_entries();
    if others.is_empty() {
        return Vec::new();
    }
    let listed: Vec<String> = others.iter().take(4).map(|entry| format!("`{}`", shown(entry))).collect();
    let from = weights.entry().map_or("the top of the file".into(), |entry| format!("its entry `{}`", shown(entry)));
    vec![format!("tensors from {from}; {} holds some too (--entry)", listed.join(", "))]
}
