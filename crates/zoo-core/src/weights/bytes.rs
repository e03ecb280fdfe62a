//! Reading bytes that nobody vouches for: every read is checked, every complaint carries its place in the file.

/// What is wrong with a file, and where; [`super::Weights`] adds the file's name.
#[derive(Debug)]
pub(super) struct Fault {
    /// Offset in the file.
    pub at: usize,
    pub what: String,
}

pub(super) type Parsed<T> = std::result::Result<T, Fault>;

pub(super) fn fail<T>(at: usize, what: impl Into<String>) -> Parsed<T> {
    Err(Fault { at, what: what.into() })
}

/// Text from a file as a message shows it: printable, and short even if the file says otherwise.
///
/// ```
/// use zoo_core::weights::shown;
/// assert_eq!(shown("conv1.weight"), "conv1.weight");
/// assert_eq!(shown("two\nlines"), "two\u{FFFD}lines");
/// assert!(shown("a".repeat(100_000)).len() < 90);
/// ```
pub fn shown(text: impl AsRef<[u8]>) -> String {
    /// Longer than any network's key; two or three of them make a message.
    const LONGEST: usize = 80;
    let bytes = text.as_ref();
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]);
    // Control characters, and those that turn the direction of writing or show nothing.
    let hides = |c: char| {
        c.is_control() || matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
    };
    let head: String = head.chars().map(|c| if hides(c) { '\u{FFFD}' } else { c }).collect();
    if bytes.len() > LONGEST { format!("{head}…") } else { head }
}

/// A cursor over a part of a file.
pub(super) struct Reader<'a> {
    data: &'a [u8],
    /// Where `data` begins in the file.
    base: usize,
    pos: usize,
}

impl<'a> Reader<'a> {
    /// Over the bytes `start..end` of `file`, both clamped to it.
    pub fn new(file: &'a [u8], start: usize, end: usize) -> Self {
        let end = end.min(file.len());
        let base = start.min(end);
        Self { data: &file[base..end], base, pos: 0 }
    }

    /// Over `n` bytes of what `outer` covers, from the file's offset `at`, clamped to it.
    pub fn new_inside(outer: &Self, at: usize, n: usize) -> Self {
        let start = at.saturating_sub(outer.base).min(outer.data.len());
        let end = start.saturating_add(n).min(outer.data.len());
        Self { data: &outer.data[start..end], base: outer.base + start, pos: 0 }
    }

    /// The next byte's offset in the file.
    pub fn at(&self) -> usize {
        self.base + self.pos
    }

    pub fn remaining(&self) -> usize {
        self.data.len() - self.pos
    }

    pub fn take(&mut self, n: usize) -> Parsed<&'a [u8]> {
        if n > self.remaining() {
            return fail(self.at(), format!("{n} bytes are announced here, but only {} follow", self.remaining()));
        }
        let bytes = &self.data[self.pos..self.pos + n];
        self.pos += n;
        Ok(bytes)
    }

    /// [`Reader::take`] for a length that the file states in 64 bits.
    pub fn take_u64(&mut self, n: u64) -> Parsed<&'a [u8]> {
        // A length that usize cannot hold is beyond any file that could be mapped.
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// The text up to the next line feed, which is consumed and not returned.
    pub fn line(&mut self) -> Parsed<&'a [u8]> {
        match self.data[self.pos..].iter().position(|&b| b == b'\n') {
            Some(n) => {
                let line = self.take(n)?;
                self.pos += 1;
                Ok(line)
            }
            None => fail(self.at(), "a line begins here and never ends"),
        }
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn u8(&mut self) -> Parsed<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Parsed<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
