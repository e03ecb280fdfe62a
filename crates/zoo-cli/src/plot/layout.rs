//! Where everything stands. Frames are laid out from the inside out, each as a layered drawing (Sugiyama, Tagawa and
//! Toda 1981): items go to ranks by their longest way from the top, an edge over several ranks gets a point of its own
//! in each of them, neighbours are ordered by the mean of what they are connected to, and moved as close to it as the
//! order lets them (isotonic regression).

use super::outline::{Edge, End, Item, Outline};
use std::collections::BTreeMap;

/// Room around and between things, in pixels.
const PADDING: f64 = 14.0;
const HEADER: f64 = 22.0;
const RANK_GAP: f64 = 30.0;
const PORT_GAP: f64 = 12.0;
const SIDE_GAP: f64 = 22.0;

/// How little what goes around counts beside what stands in the way.
const ASIDE: f64 = 0.02;

/// A laid-out frame; positions are relative to its own top left corner.
#[derive(Debug, Clone, Default)]
pub struct Placed {
    /// Width and height, border included.
    pub size: (f64, f64),
    /// Top left corner of every item.
    pub items: Vec<(Item, (f64, f64))>,
    /// Each edge of the frame as the points it passes, from its source's bottom to its target's top.
    pub edges: Vec<(Edge, Vec<(f64, f64)>)>,
    /// Where a tensor, by the box that made it, enters at the top and leaves at the bottom: the x of the border.
    entries: BTreeMap<usize, f64>,
    exits: BTreeMap<usize, f64>,
}

/// All frames of an outline, laid out.
pub struct Layout {
    frames: BTreeMap<usize, Placed>,
}

/// Something that has a place in a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    /// Where a tensor comes in, by its producer.
    Entry(usize),
    Item(Item),
    /// Where an edge passes a rank: what it carries, from where.
    Pass(End, usize, usize),
    /// Where a tensor leaves, by its producer.
    Exit(usize),
}

impl Layout {
    /// Lays `outline` out; `size` gives the size of a box.
    pub fn new(outline: &Outline, size: &dyn Fn(usize) -> (f64, f64)) -> Self {
        let mut layout = Self { frames: BTreeMap::new() };
        layout.place(outline, 0, size);
        layout
    }

    /// A frame that is drawn.
    pub fn frame(&self, frame: usize) -> Option<&Placed> {
        self.frames.get(&frame)
    }

    fn place(&mut self, outline: &Outline, index: usize, box_size: &dyn Fn(usize) -> (f64, f64)) {
        let frame = &outline.frames[index];
        let mut sizes: BTreeMap<Item, (f64, f64)> = BTreeMap::new();
        for &item in &frame.items {
            let size = match item {
                Item::Layer(layer) => box_size(layer),
                Item::Frame(inner) => {
                    self.place(outline, inner, box_size);
                    self.frames[&inner].size
                }
            };
            sizes.insert(item, size);
        }
        let spot = |end: End, producer: usize, at_top: bool| match end {
            End::Item(item) => Spot::Item(item),
            End::Border if at_top => Spot::Entry(producer),
            End::Border => Spot::Exit(producer),
        };
        let ends: Vec<(Spot, Spot)> =
            frame.edges.iter().map(|e| (spot(e.from, e.producer, true), spot(e.to, e.producer, false))).collect();

        let ranks = ranks(&frame.items, &ends);
        let (rows, chains) = rows(&frame.items, &frame.edges, &ends, &ranks);
        let width = |spot: &Spot| match spot {
            Spot::Item(item) => sizes[item].0,
            _ => 6.0,
        };
        // Inside a frame that is an end of a link, the tensor enters or leaves off its middle.
        let offsets: BTreeMap<(Spot, usize, bool), f64> = self.port_offsets(&frame.edges, &ends, &sizes);
        let links = links_with_offsets(&chains, &frame.edges, &offsets);
        let (rows, xs) = arrange(rows, &links, &width);

        // From rank coordinates to pixels.
        let left = xs.iter().map(|(spot, x)| x - width(spot) / 2.0).fold(f64::INFINITY, f64::min);
        let right = xs.iter().map(|(spot, x)| x + width(spot) / 2.0).fold(f64::NEG_INFINITY, f64::max);
        let root = index == 0;
        let (border, header) = if root { (0.0, 0.0) } else { (PADDING, HEADER) };
        // The label stands at the top left; what comes in passes it on its right.
        let label = if root { 0.0 } else { super::svg::frame_label_width(frame) + PADDING };
        let entry = xs.iter().filter(|(spot, _)| matches!(spot, Spot::Entry(_))).map(|(_, x)| x - left);
        let entry = entry.fold(f64::INFINITY, f64::min);
        let more = if entry.is_finite() { (label - entry - border).max(0.0) } else { 0.0 };
        let inner = (right - left).max(0.0);
        let total = (inner + more + 2.0 * border).max(label + PADDING);
        let shift = border + more - left;
        let mut placed = Placed::default();
        let mut y = header;
        let mut spans: BTreeMap<Spot, (f64, f64)> = BTreeMap::new();
        let only_ports = |row: &Vec<Spot>| row.iter().all(|spot| matches!(spot, Spot::Entry(_) | Spot::Exit(_)));
        for (i, row) in rows.iter().enumerate() {
            let height = row.iter().map(|spot| if let Spot::Item(i) = spot { sizes[i].1 } else { 0.0 });
            let height = height.fold(0.0, f64::max);
            for spot in row {
                let span = match spot {
                    Spot::Item(item) => {
                        let (w, h) = sizes[item];
                        let top = y + (height - h) / 2.0;
                        placed.items.push((*item, (xs[spot] + shift - w / 2.0, top)));
                        (top, top + h)
                    }
                    Spot::Entry(producer) => {
                        placed.entries.insert(*producer, xs[spot] + shift);
                        (0.0, y)
                    }
                    Spot::Exit(producer) => {
                        placed.exits.insert(*producer, xs[spot] + shift);
                        (y, y)
                    }
                    Spot::Pass(..) => (y, y + height),
                };
                spans.insert(*spot, span);
            }
            let at_border = only_ports(row) || rows.get(i + 1).is_some_and(only_ports);
            y += height + if at_border { PORT_GAP } else { RANK_GAP };
        }
        let has_exit = rows.last().is_some_and(only_ports);
        let bottom = y - if has_exit { PORT_GAP } else { RANK_GAP - border };
        placed.size = (total, bottom);
        for ((edge, chain), _) in frame.edges.iter().zip(&chains).zip(&ends) {
            let mut points = Vec::new();
            for (i, spot) in chain.iter().enumerate() {
                let (top, low) = spans[spot];
                let off = |at_top: bool| offsets.get(&(*spot, edge.producer, at_top)).copied().unwrap_or(0.0);
                let x = xs[spot] + shift;
                if i > 0 {
                    let top = if let Spot::Exit(_) = spot { bottom } else { top };
                    points.push((x + off(true), top));
                }
                if let Spot::Entry(_) = spot {
                    points.push((x, 0.0));
                    points.push((x, low));
                } else if i + 1 < chain.len() && (i == 0 || low > top) {
                    points.push((x + off(false), low));
                }
            }
            placed.edges.push((*edge, points));
        }
        self.frames.insert(index, placed);
    }

    /// How far from the middle of an inner frame a tensor enters (true) or leaves (false) it.
    fn port_offsets(
        &self,
        edges: &[Edge],
        ends: &[(Spot, Spot)],
        sizes: &BTreeMap<Item, (f64, f64)>,
    ) -> BTreeMap<(Spot, usize, bool), f64> {
        let mut offsets = BTreeMap::new();
        for (edge, &(from, to)) in edges.iter().zip(ends) {
            for (end, at_top) in [(from, false), (to, true)] {
                let Spot::Item(item @ Item::Frame(inner)) = end else { continue };
                let inner = &self.frames[&inner];
                let ports = if at_top { &inner.entries } else { &inner.exits };
                if let Some(x) = ports.get(&edge.producer) {
                    offsets.insert((end, edge.producer, at_top), x - sizes[&item].0 / 2.0);
                }
            }
        }
        offsets
    }
}

/// The rank of every spot: its longest way from the top.
fn ranks(items: &[Item], ends: &[(Spot, Spot)]) -> BTreeMap<Spot, usize> {
    let mut ranks: BTreeMap<Spot, usize> = items.iter().map(|&item| (Spot::Item(item), 0)).collect();
    let has_entry = ends.iter().any(|(from, _)| matches!(from, Spot::Entry(_)));
    for (from, to) in ends {
        ranks.insert(*from, 0);
        ranks.insert(*to, 0);
    }
    if has_entry {
        ranks.iter_mut().filter(|(spot, _)| matches!(spot, Spot::Item(_))).for_each(|(_, rank)| *rank = 1);
    }
    // Items stand in the order in which they ran, so one sweep in that order settles all of them.
    let order: BTreeMap<Item, usize> = items.iter().enumerate().map(|(i, &item)| (item, i)).collect();
    let position = |spot: &Spot| match spot {
        Spot::Item(item) => order.get(item).copied().unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let mut sorted: Vec<&(Spot, Spot)> = ends.iter().collect();
    sorted.sort_by_key(|(_, to)| position(to));
    for (from, to) in sorted {
        let below = ranks[from] + 1;
        ranks.entry(*to).and_modify(|rank| *rank = (*rank).max(below));
    }
    let last = ranks.values().copied().max().unwrap_or(0);
    let exits = ranks.iter().filter(|(spot, _)| matches!(spot, Spot::Exit(_))).map(|(spot, _)| *spot);
    for exit in exits.collect::<Vec<_>>() {
        ranks.insert(exit, last);
    }
    ranks
}

/// The spots of every rank, and each edge as the spots it passes.
fn rows(
    items: &[Item],
    edges: &[Edge],
    ends: &[(Spot, Spot)],
    ranks: &BTreeMap<Spot, usize>,
) -> (Vec<Vec<Spot>>, Vec<Vec<Spot>>) {
    let count = ranks.values().copied().max().unwrap_or(0) + 1;
    let mut rows = vec![Vec::new(); count];
    for (spot, &rank) in ranks.iter().filter(|(spot, _)| !matches!(spot, Spot::Item(_))) {
        rows[rank].push(*spot);
    }
    for &item in items {
        let spot = Spot::Item(item);
        rows[ranks[&spot]].push(spot);
    }
    let mut chains = Vec::with_capacity(edges.len());
    for (edge, (from, to)) in edges.iter().zip(ends) {
        let mut chain = vec![*from];
        for (rank, row) in rows.iter_mut().enumerate().take(ranks[to]).skip(ranks[from] + 1) {
            let pass = Spot::Pass(edge.from, edge.producer, rank);
            if !row.contains(&pass) {
                row.push(pass);
            }
            chain.push(pass);
        }
        chain.push(*to);
        chains.push(chain);
    }
    (rows, chains)
}

/// A way from one spot to the next, with how far right of the first the second should stand, and how much that counts.
struct Link {
    from: Spot,
    to: Spot,
    shift: f64,
    weight: f64,
}

/// Whether what an edge carries is also read by another item, so that the edge is the way around that: a shortcut.
fn goes_around(edges: &[Edge], edge: &Edge) -> bool {
    edges.iter().any(|other| other.from == edge.from && other.producer == edge.producer && other.to != edge.to)
}

/// The steps of all chains. Where a tensor leaves or enters an inner frame off its middle, it is the ports that should
/// stand above each other. What goes around counts little, so that the main way is straight.
fn links_with_offsets(chains: &[Vec<Spot>], edges: &[Edge], offsets: &BTreeMap<(Spot, usize, bool), f64>) -> Vec<Link> {
    let mut links = Vec::new();
    for (chain, edge) in chains.iter().zip(edges) {
        let off = |spot: Spot, at_top: bool| offsets.get(&(spot, edge.producer, at_top)).copied().unwrap_or(0.0);
        let passes = chain.len() > 2 && goes_around(edges, edge);
        for pair in chain.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let shift = off(from, false) - off(to, true);
            links.push(Link { from, to, shift, weight: if passes { ASIDE } else { 1.0 } });
        }
    }
    links
}

/// Orders every row, and gives every spot the x of its middle.
fn arrange(
    mut rows: Vec<Vec<Spot>>,
    links: &[Link],
    width: &dyn Fn(&Spot) -> f64,
) -> (Vec<Vec<Spot>>, BTreeMap<Spot, f64>) {
    type Near = BTreeMap<Spot, Vec<(Spot, f64, f64)>>;
    let (mut above, mut below) = (Near::new(), Near::new());
    for link in links {
        above.entry(link.to).or_default().push((link.from, link.shift, link.weight));
        below.entry(link.from).or_default().push((link.to, -link.shift, link.weight));
    }
    let mut xs: BTreeMap<Spot, f64> = BTreeMap::new();
    let spread = |row: &[Spot], xs: &mut BTreeMap<Spot, f64>, wanted: &[f64]| {
        let gaps: Vec<f64> = row.windows(2).map(|pair| (width(&pair[0]) + width(&pair[1])) / 2.0 + SIDE_GAP).collect();
        // What passes gives way to what stands.
        let aside = |spot: &Spot| links.iter().any(|link| link.from == *spot && link.weight == ASIDE && is_pass(spot));
        let weights: Vec<f64> = row.iter().map(|spot| if aside(spot) { ASIDE } else { 1.0 }).collect();
        for (spot, x) in row.iter().zip(apart(wanted, &weights, &gaps)) {
            xs.insert(*spot, x);
        }
    };
    for row in &rows {
        spread(row, &mut xs, &vec![0.0; row.len()]);
    }
    let mean = |spot: &Spot, near: &Near, xs: &BTreeMap<Spot, f64>| -> Option<f64> {
        let near = near.get(spot)?;
        let weight: f64 = near.iter().map(|(_, _, weight)| weight).sum();
        Some(near.iter().map(|(other, shift, weight)| (xs[other] + shift) * weight).sum::<f64>() / weight)
    };
    for sweep in 0..24 {
        // Up and down in turn; the last ones down, so that what follows stands under what it follows.
        let down = sweep % 2 == 0 || sweep >= 20;
        let order: Vec<usize> = if down { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for i in order {
            let near = if down { &above } else { &below };
            let mut wanted: Vec<(Spot, f64)> =
                rows[i].iter().map(|spot| (*spot, mean(spot, near, &xs).unwrap_or(xs[spot]))).collect();
            // Passing edges stand outside of what they pass, when nothing else decides.
            if sweep < 8 {
                wanted.sort_by(|a, b| {
                    let tie = (a.1 - b.1).abs() < 1e-6;
                    if tie { is_pass(&a.0).cmp(&is_pass(&b.0)) } else { a.1.total_cmp(&b.1) }
                });
            }
            rows[i] = wanted.iter().map(|(spot, _)| *spot).collect();
            let targets: Vec<f64> = wanted.iter().map(|(_, x)| *x).collect();
            spread(&rows[i], &mut xs, &targets);
        }
    }
    straighten(&rows, &mut xs);
    (rows, xs)
}

/// Makes one upright line of the points that an edge passes along the right or the left side of everything.
fn straighten(rows: &[Vec<Spot>], xs: &mut BTreeMap<Spot, f64>) {
    /// A point, and whether it is the first and the last of its row.
    type Point = (Spot, bool, bool);
    let mut passes: BTreeMap<(End, usize), Vec<Point>> = BTreeMap::new();
    for row in rows {
        for (i, spot) in row.iter().enumerate() {
            if let Spot::Pass(from, producer, _) = spot {
                passes.entry((*from, *producer)).or_default().push((*spot, i == 0, i + 1 == row.len()));
            }
        }
    }
    for spots in passes.values() {
        let at = spots.iter().map(|(spot, ..)| xs[spot]);
        let line = if spots.iter().all(|&(_, _, last)| last) {
            at.fold(f64::NEG_INFINITY, f64::max)
        } else if spots.iter().all(|&(_, first, _)| first) {
            at.fold(f64::INFINITY, f64::min)
        } else {
            continue;
        };
        spots.iter().for_each(|(spot, ..)| {
            xs.insert(*spot, line);
        });
    }
}

fn is_pass(spot: &Spot) -> bool {
    matches!(spot, Spot::Pass(..))
}

/// The places nearest to `wanted`, in least squares with `weights`, that keep the order and at least `gaps` between
/// neighbours.
fn apart(wanted: &[f64], weights: &[f64], gaps: &[f64]) -> Vec<f64> {
    let mut offsets = vec![0.0; wanted.len()];
    for i in 1..wanted.len() {
        offsets[i] = offsets[i - 1] + gaps[i - 1];
    }
    // Pool adjacent violators: blocks of (mean, weight, count), merged while they fall.
    let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
    for ((want, weight), offset) in wanted.iter().zip(weights).zip(&offsets) {
        let mut block = (want - offset, *weight, 1);
        while let Some(&(mean, weight, count)) = blocks.last().filter(|(mean, ..)| *mean > block.0) {
            blocks.pop();
            let total = weight + block.1;
            block = ((mean * weight + block.0 * block.1) / total, total, count + block.2);
        }
        blocks.push(block);
    }
    let means = blocks.iter().flat_map(|&(mean, _, count)| std::iter::repeat_n(mean, count));
    means.zip(&offsets).map(|(mean, offset)| mean + offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_keep_their_distance_and_stay_near() {
        assert_eq!(apart(&[0.0; 3], &[1.0; 3], &[10.0, 10.0]), [-10.0, 0.0, 10.0]);
        assert_eq!(apart(&[0.0, 50.0, 55.0], &[1.0; 3], &[10.0, 10.0]), [0.0, 47.5, 57.5]);
        assert_eq!(apart(&[], &[], &[]), [] as [f64; 0]);
    }

    /// No box of any registered network overlaps another of its frame, and all lie inside it.
    #[test]
    fn nothing_overlaps() {
        for info in zoo::all() {
            let traced = crate::info::Traced::new(info.name, None, None).unwrap();
            let outline = Outline::new(&traced.graph, true);
            let size = |layer: usize| super::super::svg::box_size(&outline.layers[layer]);
            let layout = Layout::new(&outline, &size);
            for (i, frame) in &layout.frames {
                let item_size = |item: &Item| match item {
                    Item::Layer(layer) => size(*layer),
                    Item::Frame(inner) => layout.frames[inner].size,
                };
                for (n, (item, (x, y))) in frame.items.iter().enumerate() {
                    let (w, h) = item_size(item);
                    assert!(*x >= -1e-6 && x + w <= frame.size.0 + 1e-6, "{}: {item:?} leaves frame {i}", info.name);
                    for (other, (ox, oy)) in &frame.items[..n] {
                        let (ow, oh) = item_size(other);
                        let apart = x + w <= *ox || ox + ow <= *x || y + h <= *oy || oy + oh <= *y;
                        assert!(apart, "{}: {item:?} and {other:?} overlap in frame {i}", info.name);
                    }
                }
            }
        }
    }
}
