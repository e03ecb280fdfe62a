//! Picture files as people have them, decoded to RGB.
//!
//! Whatever Pillow's `convert("RGB")` makes of a file is made of it here, and what Pillow refuses is refused: a file
//! that ends inside its pixels, and one of more pixels than a limit. Alpha is dropped and palettes are looked up, as
//! there.

use crate::error::{Error, Result};
use crate::jpeg;
use gif::{ColorOutput, DecodeOptions};
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use zoo_core::weights::open_regular;

/// The kinds of pictures that are read, for messages.
pub const KINDS: &str = "JPEG, PNG, WebP, BMP, GIF or TIFF";

/// Bytes that a decoder may take besides the pixels: rows, tables, an embedded profile.
const WORK: u64 = 32 << 20;

/// What a picture may cost, decided before it is decoded.
///
/// ```
/// use zoo_image::Limits;
/// assert_eq!(Limits::default().pixels, 178_956_970);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pixels of one picture.
    pub pixels: u64,
}

impl Default for Limits {
    /// What Pillow takes for a decompression bomb: more than twice a quarter of a GiB of RGB.
    fn default() -> Self {
        Self { pixels: 2 * (1 << 28) / 3 }
    }
}

impl Limits {
    /// Bytes of a file: none holds more than its pixels in their widest form, and what is said about them.
    fn bytes(&self) -> u64 {
        self.pixels.saturating_mul(8).saturating_add(2 * WORK)
    }

    fn check(&self, width: u32, height: u32) -> Result<(), Problem> {
        match u64::from(width) * u64::from(height) {
            0 => Err(Problem::Fault(format!("{width}x{height} pixels: there is nothing to see"))),
            pixels if pixels <= self.pixels => Ok(()),
            _ => Err(Problem::TooLarge(format!(
                "{width}x{height} pixels, and more than {} are not decoded",
                self.pixels
            ))),
        }
    }
}

/// A decoded picture, not yet turned upright.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Red, green, blue of every pixel, row by row.
    pub rgb: Vec<u8>,
    /// What brings it upright: a camera notes how it was held.
    pub orientation: Orientation,
}

impl Picture {
    /// Decodes a regular file. Its kind is told by its first bytes, not by its name.
    ///
    /// # Errors
    /// A file that cannot be read, is no picture of the known kinds, ends too early or is larger than `limits`; the
    /// error names it.
    pub fn open(path: &Path, limits: Limits) -> Result<Self> {
        let file = open_regular(path).map_err(Error::io(path))?;
        decode(BufReader::new(file), limits).map_err(|problem| problem.of(path))
    }

    /// Decodes what `source` gives, which need not be a file: a pipe. `name` is for messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_reader(source: impl Read, name: &Path, limits: Limits) -> Result<Self> {
        Self::from_bytes(&read_whole(source, name, limits)?, name, limits)
    }

    /// Decodes the bytes of a file, such as a request's body. `name` is for messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: &[u8], name: &Path, limits: Limits) -> Result<Self> {
        decode(Cursor::new(bytes), limits).map_err(|problem| problem.of(name))
    }
}

impl From<&image::RgbImage> for Picture {
    fn from(image: &image::RgbImage) -> Self {
        let orientation = Orientation::NoTransforms;
        Self { width: image.width(), height: image.height(), rgb: image.as_raw().clone(), orientation }
    }
}

impl From<&image::DynamicImage> for Picture {
    /// As `image` converts its kinds of pixels to eight bits of red, green and blue.
    fn from(image: &image::DynamicImage) -> Self {
        Self::from(&image.to_rgb8())
    }
}

/// All that `source` gives, up to a byte more than a picture within `limits` has; decoding refuses that. `name` is for
/// messages.
///
/// # Errors
/// What reading refuses.
pub fn read_whole(source: impl Read, name: &Path, limits: Limits) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limits.bytes() + 1).read_to_end(&mut bytes).map_err(Error::io(name))?;
    Ok(bytes)
}

/// Whether bytes begin as a picture does.
///
/// # Errors
/// Why they do not: a reason without a name.
pub fn begins_as_picture(bytes: &[u8]) -> Result<(), String> {
    recognise(&bytes[..bytes.len().min(HEAD as usize)]).map(|_| ()).map_err(Problem::text)
}

/// Whether the file at `path` begins as a picture does.
///
/// # Errors
/// Why it is none, or cannot be opened: a reason without the path.
pub fn is_picture(path: &Path) -> Result<(), String> {
    let begin = |file: File| -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        file.take(HEAD).read_to_end(&mut head)?;
        Ok(head)
    };
    let head = open_regular(path).and_then(begin).map_err(|error| error.to_string())?;
    begins_as_picture(&head)
}

/// The reason why a file does not become a picture, without its path.
#[derive(Debug)]
enum Problem {
    /// It is none, or damaged.
    Fault(String),
    /// It is larger than the limits.
    TooLarge(String),
}

impl Problem {
    fn of(self, path: &Path) -> Error {
        let path = path.into();
        match self {
            Self::Fault(problem) => Error::Picture { path, problem },
            Self::TooLarge(problem) => Error::TooLarge { path, problem },
        }
    }

    fn text(self) -> String {
        match self {
            Self::Fault(problem) | Self::TooLarge(problem) => problem,
        }
    }

    fn truncated(kind: ImageFormat, length: u64) -> Self {
        Self::Fault(format!("truncated: the {} ends at byte {length}, before all of it is there", called(kind)))
    }

    /// A decoder's error, in one line of bounded length.
    fn decoding(kind: ImageFormat, length: u64, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::UnexpectedEof) {
                return Self::truncated(kind, length);
            }
            cause = error.source();
        }
        Self::damaged(kind, error)
    }

    fn damaged(kind: ImageFormat, error: impl Display) -> Self {
        let message: String = error.to_string().replace(char::is_control, " ").chars().take(200).collect();
        Self::Fault(format!("cannot be decoded as {}: {message}", called(kind)))
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Fault(error.to_string())
    }
}

fn called(kind: ImageFormat) -> &'static str {
    match kind {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Tiff => "TIFF",
        _ => "picture",
    }
}

/// Bytes by which a file is recognised.
const HEAD: u64 = 64;

/// Kinds of pictures that are not read here: where their signature stands, the signature, and their name.
const FOREIGN: [(usize, &[u8], &str); 11] = [
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (0, b"\xFF\x0A", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
];

fn recognise(head: &[u8]) -> Result<ImageFormat, Problem> {
    if head.is_empty() {
        return Err(Problem::Fault("expected an image, found an empty file".into()));
    }
    let read =
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff];
    if let Some(kind) = image::guess_format(head).ok().filter(|kind| read.contains(kind)) {
        return Ok(kind);
    }
    let foreign = FOREIGN.iter().find(|(at, sign, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(sign)));
    Err(Problem::Fault(match foreign {
        Some((_, _, name)) => format!("a {name} file is not read here: save it as JPEG or PNG"),
        None => format!("expected an image ({KINDS})"),
    }))
}

fn decode(mut source: impl BufRead + Seek, limits: Limits) -> Result<Picture, Problem> {
    let length = source.seek(SeekFrom::End(0))?;
    source.rewind()?;
    let mut head = Vec::new();
    source.by_ref().take(HEAD).read_to_end(&mut head)?;
    source.rewind()?;
    let kind = recognise(&head)?;
    if length > limits.bytes() {
        return Err(Problem::TooLarge(format!("{length} bytes, and more than {} are not read", limits.bytes())));
    }
    match kind {
        ImageFormat::Jpeg => decode_jpeg(source, limits),
        ImageFormat::Gif => decode_gif(source, length, limits),
        // A WebP says how long it is.
        ImageFormat::WebP if head.get(4..8).is_none_or(|size| length < 8 + u64::from(u32_le(size))) => {
            Err(Problem::truncated(kind, length))
        }
        _ => pixels(source, kind, length, limits),
    }
}

fn u32_le(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

fn decode_jpeg(mut source: impl BufRead + Seek, limits: Limits) -> Result<Picture, Problem> {
    let kind = ImageFormat::Jpeg;
    let length = source.seek(SeekFrom::End(0))?;
    source.rewind()?;
    let Some(extent) = jpeg::extent(&mut source)? else { return Err(Problem::truncated(kind, length)) };
    limits.check(extent.width, extent.height)?;
    // The decoder takes all of it into memory.
    let most = 3 * u64::from(extent.width) * u64::from(extent.height) + WORK;
    if extent.length > most {
        let (width, height) = (extent.width, extent.height);
        return Err(Problem::Fault(format!(
            "{} bytes are too many for a JPEG of {width}x{height} pixels",
            extent.length
        )));
    }
    source.rewind()?;
    pixels(source.take(extent.length), kind, length, limits)
}

/// The pixels of a file of `length` bytes.
fn pixels(source: impl BufRead + Seek, kind: ImageFormat, length: u64, limits: Limits) -> Result<Picture, Problem> {
    let problem = |error: ImageError| match error {
        ImageError::Limits(_) => Problem::Fault(format!("the {} wants more memory than its pixels take", called(kind))),
        ImageError::IoError(error) => Problem::decoding(kind, length, &error),
        error => Problem::decoding(kind, length, &error),
    };
    let mut reader = ImageReader::with_format(source, kind);
    let room = |bytes| {
        let mut limits = image::Limits::no_limits();
        limits.max_alloc = Some(bytes);
        limits
    };
    reader.limits(room(WORK));
    let mut decoder = reader.into_decoder().map_err(problem)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let (color, bytes) = (decoder.color_type(), decoder.total_bytes());
    // A TIFF needs twice the room: it is decoded to a buffer of its own, with a fourth channel for CMYK, and may be a
    // single strip that is read as a whole first.
    let copies = if kind == ImageFormat::Tiff { 2 } else { 1 };
    decoder.set_limits(room((bytes.saturating_mul(4) / 3).saturating_mul(copies) + WORK)).map_err(problem)?;
    let orientation = orientation(&mut decoder).map_err(problem)?;
    // `to_rgb` wants room for three bytes a pixel.
    let mut rgb = zeros(bytes.max(3 * u64::from(width) * u64::from(height)))?;
    decoder.read_image(&mut rgb[..bytes as usize]).map_err(problem)?;
    to_rgb(&mut rgb, color, width as usize * height as usize).map_err(|color| {
        Problem::damaged(
            kind,
            format_args!("pixels of the kind {color:?} are not read here: save it with 8 bits a channel"),
        )
    })?;
    Ok(Picture { width, height, rgb, orientation })
}

/// A buffer, if there is memory for it.
fn zeros(bytes: u64) -> Result<Vec<u8>, Problem> {
    let none = || Problem::Fault(format!("no memory for {bytes} bytes of pixels"));
    let mut buffer = Vec::new();
    let bytes = usize::try_from(bytes).map_err(|_| none())?;
    buffer.try_reserve_exact(bytes).map_err(|_| none())?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}

/// Converts pixels to red, green, blue in place and truncates the buffer; a kind of colour that is not supported is the
/// error.
///
/// Of 16 bits the upper eight are kept, as Pillow does with colours. Pillow clips 16-bit grey at 255 instead, which
/// turns nearly every picture white; here grey is treated as colours are.
fn to_rgb(bytes: &mut Vec<u8>, color: ColorType, pixels: usize) -> Result<(), ColorType> {
    use ColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
    let sample = match color {
        Rgb8 => return Ok(()),
        L8 | La8 | Rgba8 => 1,
        L16 | La16 | Rgb16 | Rgba16 => 2,
        other => return Err(other),
    };
    let stride = usize::from(color.bytes_per_pixel());
    let upper = if cfg!(target_endian = "little") { sample - 1 } else { 0 };
    let channels = if color.has_color() { [0, 1, 2] } else { [0; 3] };
    let places = channels.map(|channel| channel * sample + upper);
    let one = |i: usize| {
        let rgb = places.map(|place| bytes[i * stride + place]);
        bytes[3 * i..3 * i + 3].copy_from_slice(&rgb);
    };
    // No pixel is written over one that is still to be read.
    if stride >= 3 {
        (0..pixels).for_each(one)
    } else {
        (0..pixels).rev().for_each(one)
    }
    bytes.truncate(3 * pixels);
    Ok(())
}

/// How a picture is to be turned: by its Exif data, or by its XMP where that says nothing. Damaged data says nothing.
fn orientation(decoder: &mut impl ImageDecoder) -> ImageResult<Orientation> {
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    // A WebP may keep the sign that stands before it in a JPEG.
    if let Some(orientation) = Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif)) {
        return Ok(orientation);
    }
    // A TIFF has it among its own tags.
    let own = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    if own != Orientation::NoTransforms {
        return Ok(own);
    }
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    let digit = [&b"tiff:Orientation=\""[..], b"tiff:Orientation>"].iter().find_map(|sign| {
        let at = xmp.windows(sign.len()).position(|window| window == *sign)?;
        xmp.get(at + sign.len()).filter(|digit| digit.is_ascii_digit())
    });
    Ok(digit.and_then(|digit| Orientation::from_exif(digit - b'0')).unwrap_or(own))
}

/// A GIF's first frame as Pillow shows it: pixels that are transparent or outside the frame take the colour that the
/// palette has there.
fn decode_gif(source: impl BufRead + Seek, length: u64, limits: Limits) -> Result<Picture, Problem> {
    let kind = ImageFormat::Gif;
    let problem = |error: gif::DecodingError| match error {
        gif::DecodingError::UnexpectedEof => Problem::truncated(kind, length),
        error => Problem::decoding(kind, length, &error),
    };
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let mut decoder = options.read_info(source).map_err(problem)?;
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let screen = [decoder.width(), decoder.height()];
    limits.check(screen[0].max(1).into(), screen[1].max(1).into())?;
    let frame = decoder.next_frame_info().map_err(problem)?.ok_or_else(|| Problem::truncated(kind, length))?;
    let [left, top, across, down] = [frame.left, frame.top, frame.width, frame.height].map(usize::from);
    let ground = frame.transparent.unwrap_or(0);
    let Some(palette) = frame.palette.clone().or(global) else {
        return Err(Problem::damaged(kind, "it has no palette"));
    };
    // A frame may be larger than its screen.
    let (width, height) = (usize::from(screen[0]).max(left + across), usize::from(screen[1]).max(top + down));
    limits.check(width as u32, height as u32)?;
    let mut indices = zeros((across * down) as u64)?;
    decoder.read_into_buffer(&mut indices).map_err(problem)?;

    let color = |index: u8| {
        let at = 3 * usize::from(index);
        palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]])
    };
    let mut rgb = zeros(3 * (width * height) as u64)?;
    rgb.as_chunks_mut().0.fill(color(ground));
    for (y, row) in indices.chunks_exact(across.max(1)).enumerate() {
        let start = (top + y) * width + left;
        for (pixel, &index) in rgb.as_chunks_mut().0[start..start + across].iter_mut().zip(row) {
            *pixel = color(index);
        }
    }
    let orientation = Orientation::NoTransforms;
    Ok(Picture { width: width as u32, height: height as u32, rgb, orientation })
}

#[cfg(test)]
mod tests;
