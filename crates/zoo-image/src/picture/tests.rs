use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, RgbImage};
use serde_json::Value;

/// Files of all kinds with what Pillow makes of them: tests/golden/generate.py.
fn golden() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/pictures.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn read(file: &[u8]) -> Result<Picture, String> {
    Picture::from_reader(file, "x".as_ref(), Limits::default()).map_err(|error| error.to_string())
}

#[test]
fn every_kind_of_picture_has_pillows_pixels_and_stands_upright() {
    let cases = golden();
    assert_eq!(cases.len(), 80);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let picture = read(&bytes(&case["file"]));
        if name == "palette TIFF" {
            assert!(picture.unwrap_err().starts_with("x: cannot be decoded as TIFF: "));
            continue;
        }
        let picture = picture.unwrap();
        let image = RgbImage::from_raw(picture.width, picture.height, picture.rgb).unwrap();
        let mut upright = DynamicImage::from(image);
        upright.apply_orientation(picture.orientation);
        assert_eq!(u64::from(upright.width()), case["width"].as_u64().unwrap(), "{name}");
        let theirs = bytes(&case["rgb"]);
        let off = upright.as_bytes().iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Decoders of formats with loss round differently; where colour has half the size, they also bring it up by
        // other filters.
        let most = match name {
            "JPEG with half the colour" | "JPEG with restarts" | "progressive JPEG" => 8,
            "YCCK JPEG" => 3,
            name if name.contains("JPEG") => 2,
            _ => 0,
        };
        assert_eq!(upright.as_bytes().len(), theirs.len(), "{name}");
        assert!(off <= most, "{name}: {off}");
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused_where_pillow_refuses_it() {
    for case in golden() {
        let (name, file) = (case["name"].as_str().unwrap(), bytes(&case["file"]));
        let taken: Vec<usize> = case["cuts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        for length in (0..file.len()).filter(|length| !taken.contains(length)) {
            let problem = match read(&file[..length]) {
                Err(problem) => problem,
                // A GIF whose last code is cut off, behind which there is no pixel.
                Ok(picture) => {
                    assert!(name.contains("GIF") && picture == read(&file).unwrap(), "{name}, {length} bytes");
                    continue;
                }
            };
            assert!(problem.lines().count() == 1 && problem.len() < 300, "{problem}");
            // Where the pixels are cut, the error says at which byte.
            if length * 10 > file.len() * 9 && !name.contains("TIFF") {
                assert!(problem.contains(&format!("at byte {length}")), "{name} of {length}: {problem}");
            }
        }
    }
}

/// A PNG's signature, header and further chunks.
fn png(width: u32, height: u32, chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    for (tag, data) in [(b"IHDR", header)].iter().chain(chunks) {
        file.extend((data.len() as u32).to_be_bytes());
        let body = [&tag[..], data].concat();
        file.extend(&body);
        file.extend(crc32fast::hash(&body).to_be_bytes());
    }
    file
}

#[test]
fn too_many_pixels_are_refused_before_they_take_memory() {
    let expected = "x: 20000x20000 pixels, and more than 178956970 are not decoded";
    assert_eq!(read(&png(20_000, 20_000, &[(b"IDAT", vec![])])).unwrap_err(), expected);
    let mut gif = b"GIF89a\0\0\0\0\x80\0\0\0\0\0\xFF\xFF\xFF,\0\0\0\0\0\0\0\0\0\x02".to_vec();
    for side in [6, 8, 24, 26] {
        gif[side..side + 2].copy_from_slice(&20_000u16.to_le_bytes());
    }
    assert_eq!(read(&gif).unwrap_err(), expected);
    let small = Limits { pixels: 12 };
    let file = RgbImage::from_fn(4, 3, |x, y| image::Rgb([x as u8, y as u8, 0]));
    for kind in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff] {
        let mut bytes = Cursor::new(Vec::new());
        file.write_to(&mut bytes, kind).unwrap();
        let read = |limits| Picture::from_reader(bytes.get_ref().as_slice(), "x".as_ref(), limits);
        assert_eq!(read(small).unwrap().rgb.len(), 36);
        let error = read(Limits { pixels: 11 }).unwrap_err().to_string();
        assert_eq!(error, "x: 4x3 pixels, and more than 11 are not decoded");
    }
}

/// An uncompressed TIFF, larger than what a decoder may take besides, all of whose rows are one strip.
#[test]
fn a_large_tiff_of_one_strip_is_read() {
    let side = 4200u32;
    let bytes = 3 * side * side;
    // The directory at byte 16, bits a channel at byte 8.
    let mut file = b"II*\0\x10\0\0\0\x08\0\x08\0\x08\0\0\0".to_vec();
    let entries: [(u16, u16, u32, u32); 9] = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 3, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 16 + 2 + 9 * 12 + 4),
        (277, 3, 1, 3),
        (278, 4, 1, side),
        (279, 4, 1, bytes),
    ];
    file.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        file.extend(tag.to_le_bytes().into_iter().chain(kind.to_le_bytes()));
        file.extend(count.to_le_bytes().into_iter().chain(value.to_le_bytes()));
    }
    file.extend([0; 4]);
    file.resize(file.len() + bytes as usize, 7);
    let picture = read(&file).unwrap();
    assert_eq!((picture.width, picture.height, picture.rgb.len()), (side, side, bytes as usize));
    assert!(picture.rgb.iter().all(|&value| value == 7));
}

#[test]
fn what_stands_behind_a_jpeg_is_no_part_of_it() {
    let case = golden().into_iter().find(|case| case["name"] == "JPEG").unwrap();
    let file = bytes(&case["file"]);
    let expected = read(&file).unwrap();
    // A phone's video, and a second picture.
    assert_eq!(read(&[&file[..], &[0x55; 5000]].concat()).unwrap(), expected);
    assert_eq!(read(&[&file[..], &file[..200]].concat()).unwrap(), expected);
}

#[test]
fn other_files_are_called_by_their_name() {
    let heic = read(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").unwrap_err();
    assert_eq!(heic, "x: a HEIC file is not read here: save it as JPEG or PNG");
    assert_eq!(read(b"").unwrap_err(), "x: expected an image, found an empty file");
    assert_eq!(read(b"no image").unwrap_err(), "x: expected an image (JPEG, PNG, WebP, BMP, GIF or TIFF)");
    assert!(read(&png(0, 7, &[(b"IDAT", vec![])])).is_err());
}

#[test]
fn sixteen_bits_of_grey_keep_the_upper_eight() {
    let grey = image::ImageBuffer::from_fn(4, 1, |x, _| image::Luma([[0u16, 255, 256, 65_535][x as usize]]));
    for kind in [ImageFormat::Png, ImageFormat::Tiff] {
        let mut file = Cursor::new(Vec::new());
        DynamicImage::from(grey.clone()).write_to(&mut file, kind).unwrap();
        assert_eq!(read(file.get_ref()).unwrap().rgb, [0, 0, 0, 0, 0, 0, 1, 1, 1, 255, 255, 255]);
    }
}
