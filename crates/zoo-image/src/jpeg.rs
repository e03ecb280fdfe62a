//! Markers of a JPEG, read before a pixel is decoded: its size, and whether all of it is there.
//!
//! Decoders fill what is missing with grey and report nothing. A file without its last marker is refused here. Pillow
//! refuses it too, but for a few files that are not progressive and happen to be read ahead far enough.

use std::io::{self, BufRead, ErrorKind};

/// A JPEG's frame, and where its data ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub width: u32,
    pub height: u32,
    /// Bytes up to the end of its last marker. What follows, such as a phone's video, is no part of the picture.
    pub length: u64,
}

const EOI: u8 = 0xD9;
const DHT: u8 = 0xC4;

/// Whether a marker opens a frame: C0 to CF, but for DHT, JPG and DAC.
fn opens_frame(marker: u8) -> bool {
    (0xC0..=0xCF).contains(&marker) && ![DHT, 0xC8, 0xCC].contains(&marker)
}

/// Whether a marker stands alone, without a length.
fn stands_alone(marker: u8) -> bool {
    matches!(marker, 0x01 | 0xD0..=EOI)
}

/// Follows the markers of a JPEG up to its last. `None` if the file ends before it, or tells no frame.
pub(super) fn extent(mut source: impl BufRead) -> io::Result<Option<Extent>> {
    let (mut length, mut frame) = (0, None);
    loop {
        match next_segment(&mut source, &mut length, &mut frame) {
            Ok(EOI) => return Ok(frame.map(|(width, height)| Extent { width, height, length })),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Reads past the next marker and its segment, keeps the size if it opens a frame, and returns the marker.
fn next_segment(source: &mut impl BufRead, length: &mut u64, frame: &mut Option<(u32, u32)>) -> io::Result<u8> {
    // Coded data up to the marker, in which FF is written FF 00.
    let marker = loop {
        let passed = source.skip_until(0xFF)? as u64;
        *length += passed;
        let mut byte = take(source, length)?;
        while byte == 0xFF {
            byte = take(source, length)?;
        }
        if byte != 0 {
            break byte;
        }
    };
    if stands_alone(marker) {
        return Ok(marker);
    }
    let size = u16::from_be_bytes([take(source, length)?, take(source, length)?]);
    let mut rest = u64::from(size.saturating_sub(2));
    if opens_frame(marker) && frame.is_none() && rest >= 5 {
        let mut bytes = [0; 5];
        for byte in &mut bytes {
            *byte = take(source, length)?;
        }
        let [_, h, i, w, j] = bytes;
        *frame = Some((u16::from_be_bytes([w, j]).into(), u16::from_be_bytes([h, i]).into()));
        rest -= 5;
    }
    while rest > 0 {
        let there = source.fill_buf()?.len().min(rest as usize);
        if there == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        source.consume(there);
        *length += there as u64;
        rest -= there as u64;
    }
    Ok(marker)
}

fn take(source: &mut impl BufRead, length: &mut u64) -> io::Result<u8> {
    let mut byte = [0];
    source.read_exact(&mut byte)?;
    *length += 1;
    Ok(byte[0])
}
