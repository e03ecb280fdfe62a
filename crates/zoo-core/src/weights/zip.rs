//! The part of the zip format that `torch.save` writes: stored entries and a central directory, zip64 included.
//!
//! Why not the `zip` crate: a checkpoint's tensors are read in place from the mapped file, so all that is needed is
//! where each entry's bytes begin and end, and for that every size in the file has to be doubted with its offset at
//! hand. Nothing here decompresses, so there is no bomb to defuse.

use super::bytes::{Parsed, Reader, fail, shown};
use std::collections::BTreeMap;
use std::ops::Range;

const LOCAL: u32 = 0x0403_4B50;
const CENTRAL: u32 = 0x0201_4B50;
const END: u32 = 0x0605_4B50;
const END64: u32 = 0x0606_4B50;
const END64_LOCATOR: u32 = 0x0706_4B50;
const END_SIZE: usize = 22;
const LOCATOR_SIZE: usize = 20;
/// The extra field that holds 64-bit sizes.
const ZIP64_EXTRA: u16 = 1;

/// An entry of an archive.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Where its bytes are in the file.
    pub range: Range<usize>,
    /// Whether they would have to be unpacked, which nothing here does.
    pub compressed: bool,
}

/// The entries of an archive by name.
pub(super) fn entries(file: &[u8]) -> Parsed<BTreeMap<&str, Member>> {
    let directory = find_directory(file)?;
    let mut headers = Reader::new(file, directory.range.start, directory.range.end);
    let mut entries = BTreeMap::new();
    // Each entry's whole extent, local header included: no two may share a byte.
    let mut extents = Vec::new();
    while headers.remaining() > 0 {
        let at = headers.at();
        let header = central_header(&mut headers)?;
        let data = local_data(file, &header, directory.range.start)?;
        extents.push(header.offset..data.end);
        if entries.insert(header.name, Member { range: data, compressed: header.compressed }).is_some() {
            return fail(at, format!("the archive holds two entries called `{}`", shown(header.name)));
        }
    }
    if entries.len() as u64 != directory.count {
        let what = format!("the archive announces {} entries and lists {}", directory.count, entries.len());
        return fail(directory.range.start, what);
    }
    extents.sort_by_key(|extent| extent.start);
    if let Some(pair) = extents.windows(2).find(|pair| pair[1].start < pair[0].end) {
        return fail(pair[1].start, "two entries of the archive overlap");
    }
    Ok(entries)
}

struct Directory {
    range: Range<usize>,
    count: u64,
}

fn find_directory(file: &[u8]) -> Parsed<Directory> {
    // The end record is followed by a comment of up to 64 kB and nothing else.
    let Some(last) = file.len().checked_sub(END_SIZE) else {
        return fail(0, "the file is cut off: a zip archive ends with a directory");
    };
    let first = last.saturating_sub(usize::from(u16::MAX));
    let is_end = |&at: &usize| {
        let comment = usize::from(u16::from_le_bytes([file[at + 20], file[at + 21]]));
        file[at..at + 4] == END.to_le_bytes() && at + END_SIZE + comment == file.len()
    };
    let Some(end) = (first..=last).rev().find(is_end) else {
        return fail(file.len(), "the file is cut off: no zip directory at its end");
    };
    let mut r = Reader::new(file, end + 4, file.len());
    let (disk, directory_disk, _, count) = (r.u16()?, r.u16()?, r.u16()?, r.u16()?);
    let (size, offset) = (r.u32()?, r.u32()?);
    if disk != 0 || directory_disk != 0 {
        return fail(end, "the archive is one part of several");
    }
    let (count, size, offset, limit) = match find_end64(file, end)? {
        Some(end64) => end64,
        None => (u64::from(count), u64::from(size), u64::from(offset), end),
    };
    let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
    match range.and_then(|(offset, size)| Some(offset..offset.checked_add(size)?)) {
        Some(range) if range.end <= limit => Ok(Directory { range, count }),
        _ => fail(end, format!("the directory is said to be {size} bytes at {offset}: outside the file")),
    }
}

/// The zip64 end record, if there is one: (entries, directory size, directory offset, own offset).
fn find_end64(file: &[u8], end: usize) -> Parsed<Option<(u64, u64, u64, usize)>> {
    let Some(locator) = end.checked_sub(LOCATOR_SIZE) else { return Ok(None) };
    let mut r = Reader::new(file, locator, end);
    if r.u32()? != END64_LOCATOR {
        return Ok(None);
    }
    r.take(4)?; // the disk with the record
    let offset = r.u64()?;
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut r = Reader::new(file, at, locator);
    if at >= locator || r.u32()? != END64 {
        return fail(locator, format!("no zip64 directory record at {offset}, where one is said to be"));
    }
    r.take(8 + 2 + 2 + 4 + 4 + 8)?; // record size, versions, disks, entries on this disk
    Ok(Some((r.u64()?, r.u64()?, r.u64()?, at)))
}

struct Header<'a> {
    name: &'a str,
    /// As it is stored.
    size: usize,
    offset: usize,
    compressed: bool,
}

fn central_header<'a>(r: &mut Reader<'a>) -> Parsed<Header<'a>> {
    let at = r.at();
    if r.u32()? != CENTRAL {
        return fail(at, "an entry of the zip directory does not begin as one should");
    }
    r.take(4)?; // versions
    let (flags, method) = (r.u16()?, r.u16()?);
    r.take(2 + 2 + 4)?; // time, date, checksum
    let (packed, size) = (r.u32()?, r.u32()?);
    let (name_len, extra_len, comment_len) = (r.u16()?, r.u16()?, r.u16()?);
    r.take(2 + 2 + 4)?; // disk, attributes
    let offset = r.u32()?;
    let name = r.take(name_len.into())?;
    let extra_at = r.at();
    r.take(extra_len.into())?;
    let Ok(name) = std::str::from_utf8(name) else {
        return fail(at, format!("the entry's name `{}` is not UTF-8", shown(name)));
    };
    let mut extra = Reader::new_inside(r, extra_at, extra_len.into());
    let (size, packed, offset) = widen(&mut extra, size, packed, offset)?;
    r.take(comment_len.into())?;
    if flags & 1 != 0 {
        return fail(at, format!("the entry `{}` is encrypted", shown(name)));
    }
    match (usize::try_from(packed), usize::try_from(offset)) {
        (Ok(stored), Ok(offset)) => {
            Ok(Header { name, size: stored, offset, compressed: method != 0 || size != packed })
        }
        _ => fail(at, format!("the entry `{}` is said to be {packed} bytes at {offset}", shown(name))),
    }
}

/// Fields that are all ones continue in the zip64 extra field, in this order.
fn widen(extra: &mut Reader, size: u32, packed: u32, offset: u32) -> Parsed<(u64, u64, u64)> {
    let mut wide = None;
    while wide.is_none() && extra.remaining() >= 4 {
        let (id, len) = (extra.u16()?, extra.u16()?);
        let at = extra.at();
        extra.take(len.into())?;
        if id == ZIP64_EXTRA {
            wide = Some(Reader::new_inside(extra, at, len.into()));
        }
    }
    let mut field = |value: u32| match &mut wide {
        Some(wide) if value == u32::MAX => wide.u64(),
        _ => Ok(u64::from(value)),
    };
    Ok((field(size)?, field(packed)?, field(offset)?))
}

/// Where the entry's bytes lie: behind a local header, whose name must agree with the directory's.
fn local_data(file: &[u8], header: &Header, limit: usize) -> Parsed<Range<usize>> {
    let mut r = Reader::new(file, header.offset, limit);
    let at = header.offset;
    let wrong = |what: &str| fail(at, format!("the entry `{}` {what}", shown(header.name)));
    if at >= limit || r.u32()? != LOCAL {
        return wrong("is not where the zip directory says");
    }
    r.take(2 + 2)?; // version, flags
    let method = r.u16()?;
    // Time, date, checksum and sizes: the directory's sizes hold, these may be left out by a writer that streams.
    r.take(2 + 2 + 4 + 4 + 4)?;
    let (name_len, extra_len) = (r.u16()?, r.u16()?);
    if r.take(name_len.into())? != header.name.as_bytes() || (method != 0 && !header.compressed) {
        return wrong("is described differently by the zip directory");
    }
    r.take(extra_len.into())?;
    let start = r.at();
    r.take(header.size)?;
    Ok(start..r.at())
}
