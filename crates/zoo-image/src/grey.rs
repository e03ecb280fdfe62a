//! Colour as grey, for networks that take one channel.

/// The grey of an image of three planes, red, green and blue: ITU-R 601's luma, rounded as Pillow rounds it.
///
/// ```
/// assert_eq!(zoo_image::grey(&[255, 0, 0, 255, 0, 0]), [76, 150]);
/// ```
pub fn grey(image: &[u8]) -> Vec<u8> {
    let pixels = image.len() / 3;
    let colour = |plane: usize, at: usize| u32::from(image[plane * pixels + at]);
    let luma = |at| colour(0, at) * 19595 + colour(1, at) * 38470 + colour(2, at) * 7471 + 0x8000;
    (0..pixels).map(|at| (luma(at) >> 16) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from Pillow 13: `Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))`.
    #[test]
    fn colours_become_the_grey_that_pillow_makes() {
        let colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [12, 200, 99], [255, 255, 255], [1, 2, 3], [0, 0, 0]];
        let planes: Vec<u8> = (0..3).flat_map(|c| colours.map(|colour| colour[c])).collect();
        assert_eq!(grey(&planes), [76, 150, 29, 132, 255, 2, 0]);
    }
}
