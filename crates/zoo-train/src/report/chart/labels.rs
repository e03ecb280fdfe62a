//! Labels of a chart's points: each where it covers neither a point nor another label.

use super::scale::text_width;

/// The size of a label's words.
pub(super) const SIZE: f64 = 12.0;

/// A text with the point that it names.
pub(super) type Placed<'a> = ((f64, f64), &'a str);

/// Which end of its words stands at a label's place.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    /// The value of `text-anchor`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// A label beside its point, or away from it at the end of a line.
pub(super) struct Label<'a> {
    pub(super) text: &'a str,
    pub(super) at: (f64, f64),
    pub(super) anchor: Anchor,
    pub(super) line: Option<[(f64, f64); 2]>,
}

/// A rectangle that is taken.
#[derive(Clone, Copy)]
struct Space {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Space {
    fn covers(&self, (x, y): (f64, f64)) -> bool {
        (self.left..=self.right).contains(&x) && (self.top..=self.bottom).contains(&y)
    }

    fn is_apart(&self, other: &Self) -> bool {
        other.left > self.right || other.right < self.left || other.top > self.bottom || other.bottom < self.top
    }
}

/// A label's place seen from its point: which end stands there, and how far off.
type Offset = (Anchor, f64, f64);

/// The places in the order in which they are tried: around the point, then further and further away.
fn offsets() -> impl Iterator<Item = (bool, Offset)> {
    use Anchor::{End, Middle, Start};
    let near = [
        (Start, 9.0, 0.0),
        (End, -9.0, 0.0),
        (Middle, 0.0, -14.0),
        (Middle, 0.0, 14.0),
        (Start, 8.0, -11.0),
        (Start, 8.0, 11.0),
        (End, -8.0, -11.0),
        (End, -8.0, 11.0),
    ];
    let away = (2..=9).flat_map(|ring| {
        let (dx, dy) = (6.0 * f64::from(ring), 13.0 * f64::from(ring));
        let sides = [(Start, dx), (End, -dx), (Middle, 0.0)];
        sides.into_iter().flat_map(move |(anchor, dx)| [(anchor, dx, -dy), (anchor, dx, dy)])
    });
    near.into_iter().map(|offset| (false, offset)).chain(away.map(|offset| (true, offset)))
}

/// Puts each label where it covers neither a point nor a label: beside its point, or a little away with a line to it.
/// `inside` are the edges that they keep within: left, right, top, bottom. `None` where one finds no such place; with
/// `all` it is then put beside its point all the same.
pub(super) fn arrange<'a>(labels: &[Placed<'a>], inside: [f64; 4], all: bool) -> Option<Vec<Label<'a>>> {
    let point = |&((x, y), _): &Placed| Space { left: x - 5.0, right: x + 5.0, top: y - 5.0, bottom: y + 5.0 };
    let mut taken: Vec<Space> = labels.iter().map(point).collect();
    let mut arranged = Vec::new();
    for &((x, y), text) in labels {
        let long = text_width(text, SIZE);
        let space = |(anchor, dx, dy): Offset| {
            let (x, y) = (x + dx, y + dy);
            let left = match anchor {
                Anchor::Start => x,
                Anchor::Middle => x - long / 2.0,
                Anchor::End => x - long,
            };
            Space { left, right: left + long, top: y - 7.0, bottom: y + 7.0 }
        };
        let is_free = |offset: Offset| {
            let (space, [left, right, top, bottom]) = (space(offset), inside);
            let is_inside = space.left > left && space.right < right && space.top > top && space.bottom < bottom;
            is_inside && taken.iter().all(|other| space.is_apart(other))
        };
        // Where its line meets the label: the middle of its lower or upper edge, or that edge's end.
        let end = |(_, dx, dy): Offset| (x + dx, y + dy - 6.0 * dy.signum());
        let is_clear = |offset: Offset| {
            let (to_x, to_y) = end(offset);
            let along = |part: u8| {
                let share = f64::from(part) / 24.0;
                (x + (to_x - x) * share, y + (to_y - y) * share)
            };
            // Its own point is no obstacle.
            let mut others = taken.iter().filter(|space| !space.covers((x, y)));
            others.all(|space| !(0..=24).any(|part| space.covers(along(part))))
        };
        let fits = |&(is_away, offset): &(bool, Offset)| is_free(offset) && (!is_away || is_clear(offset));
        let beside = (false, (Anchor::Start, 9.0, 0.0));
        let (is_away, offset) = offsets().find(fits).or(all.then_some(beside))?;
        taken.push(space(offset));
        let (anchor, dx, dy) = offset;
        let line = is_away.then_some([(x, y), end(offset)]);
        arranged.push(Label { text, at: (x + dx, y + dy), anchor, line });
    }
    Some(arranged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: [f64; 4] = [50.0, 500.0, 10.0, 260.0];

    #[test]
    fn a_lone_label_stands_beside_its_point() {
        let labels = arrange(&[((100.0, 100.0), "mlp")], INSIDE, false).unwrap();
        assert_eq!((labels[0].at, labels[0].anchor, labels[0].line), ((109.0, 100.0), Anchor::Start, None));
        // At the right edge it stands on the other side.
        let labels = arrange(&[((490.0, 100.0), "mlp")], INSIDE, false).unwrap();
        assert_eq!(labels[0].anchor, Anchor::End);
    }

    #[test]
    fn points_on_one_another_get_lines_to_their_labels() {
        let points = [((200.0, 100.0), "cifar_resnet20"); 7];
        let labels = arrange(&points, INSIDE, false).unwrap();
        assert!(labels.iter().any(|label| label.line.is_some()));
        let mut places: Vec<(f64, f64)> = labels.iter().map(|label| label.at).collect();
        places.dedup();
        assert_eq!(places.len(), 7);
    }

    #[test]
    fn what_has_no_place_is_put_there_only_if_asked() {
        let long = "x".repeat(200);
        let labels = [((200.0, 100.0), long.as_str())];
        assert!(arrange(&labels, INSIDE, false).is_none());
        assert_eq!(arrange(&labels, INSIDE, true).unwrap().len(), 1);
    }
}
