//! Numbers as a reader wants them: grouped, shortened, with a unit or a noun.

/// `text` on one line, and at most `length` characters of it: a name or a message may be of any length.
pub(crate) fn shortened(text: &str, length: usize) -> String {
    let mut letters = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let mut short: String = letters.by_ref().take(length).collect();
    if letters.next().is_some() {
        short.pop();
        short.push('…');
    }
    short
}

/// A count with a comma between groups of three digits: `61,100,840`.
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and its noun: `1 run`, `2 runs`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number as u64), if number == 1 { "" } else { "s" })
}

/// A number of percent to two decimals: `91.25 %`.
pub fn percent(percent: f64) -> String {
    format!("{percent:.2} %")
}

/// Three significant digits and a unit: `40.8 M`.
pub(crate) fn compact(value: f64) -> String {
    let units = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, "")];
    let (unit, name) = units.into_iter().find(|(unit, _)| value >= unit * 0.9995).unwrap_or((1.0, ""));
    let scaled = value / unit;
    let decimals = if name.is_empty() || scaled >= 99.95 { 0 } else { if scaled >= 9.995 { 1 } else { 2 } };
    let digits = format!("{scaled:.decimals$}");
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    format!("{digits}{name}")
}

/// Thousands of millions, to three significant digits: `0.0408`.
pub(crate) fn giga(value: f64) -> String {
    if value <= 0.0 {
        return "0".into();
    }
    let giga = value / 1e9;
    let decimals = (2 - giga.log10().floor() as i32).clamp(0, 9) as usize;
    format!("{giga:.decimals$}")
}

/// The value to three significant digits: 6.853132 is 6.85.
pub(crate) fn significant(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    format!("{value:.2e}").parse().unwrap_or(value)
}

/// A length of time: `42.1 s`, `2 min 5 s`, `12 min`, `3 h 20 min`.
pub fn duration(seconds: f64) -> String {
    let (whole, minutes) = (seconds.round() as u64, (seconds / 60.0).round() as u64);
    match whole {
        0..60 if seconds < 59.95 => format!("{seconds:.1} s"),
        0..600 => format!("{} min {} s", whole / 60, whole % 60),
        _ if minutes < 60 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_and_stays_on_its_line() {
        assert_eq!(shortened("two\nlines\t", 20), "two lines ");
        assert_eq!(shortened("äöüß", 4), "äöüß");
        assert_eq!(shortened("äöüßx", 4), "äöü…");
        assert_eq!(shortened(&"x".repeat(10_000), 40).chars().count(), 40);
    }

    #[test]
    fn thousands_are_grouped() {
        let counts = [0, 12, 999, 1_000, 269_722, 61_100_840];
        assert_eq!(counts.map(thousands), ["0", "12", "999", "1,000", "269,722", "61,100,840"]);
    }

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!([0, 1, 2000].map(|number| count(number, "run")), ["0 runs", "1 run", "2,000 runs"]);
        assert_eq!(percent(91.254), "91.25 %");
    }

    #[test]
    fn large_numbers_get_a_unit() {
        let values = [0.0, 10.0, 999.0, 1000.0, 269_722.0, 999_999.0, 40_813_184.0, 200_000_000.0, 1_820_000_000.0];
        assert_eq!(values.map(compact), ["0", "10", "999", "1 k", "270 k", "1 M", "40.8 M", "200 M", "1.82 G"]);
    }

    #[test]
    fn multiply_adds_are_said_in_thousands_of_millions() {
        let values = [0.0, 394.0, 1_300_000.0, 40_813_184.0, 555_000_000.0, 1_820_000_000.0, 15_470_000_000.0, 1e12];
        assert_eq!(values.map(giga), ["0", "0.000000394", "0.00130", "0.0408", "0.555", "1.82", "15.5", "1000"]);
    }

    #[test]
    fn three_digits_are_significant() {
        let values = [0.0, 6.853132, -4.269748, 0.000123456, 999.6, 1_734_000.0, f64::INFINITY];
        assert_eq!(values.map(significant), [0.0, 6.85, -4.27, 0.000123, 1000.0, 1_730_000.0, f64::INFINITY]);
    }

    #[test]
    fn durations_are_said_in_their_unit() {
        let seconds = [0.04, 42.13, 59.97, 125.0, 725.0, 3599.6, 12_000.0];
        assert_eq!(
            seconds.map(duration),
            ["0.0 s", "42.1 s", "1 min 0 s", "2 min 5 s", "12 min", "1 h 0 min", "3 h 20 min"]
        );
    }
}
