//! Drawings of a page: SVG stretched to the width there is, with labels beside it in text, which is never stretched.

use std::fmt::{self, Write};

use super::Escaped;
use super::units::{decibels, short};
use crate::eval::histogram::Histogram;
use crate::eval::report::LayerReport;

/// Bars of a list, at most: the worst are what one looks for.
pub const LONGEST: usize = 80;
/// Codes between which lines are drawn, at most.
const GRID: f32 = 32.0;

/// An axis of errors in decibels: from a small one, at the foot of bars, to a large one.
pub struct Axis {
    small: f64,
    large: f64,
}

impl Axis {
    /// One on which the errors of these layers lie, but for those below 0.1 % (60 dB). It reaches to 10 % of the output, and further where
    /// one is larger: a network that is well does not look as if it were ill.
    pub fn of(layers: &[LayerReport]) -> Self {
        let all = layers.iter().flat_map(|layer| [Some(layer.errors.sqnr_db), own(layer)]).flatten().filter(|db| db.is_finite());
        let (least, most) = all.fold((20.0f64, 40.0f64), |(least, most), db| (least.min(db), most.max(db)));
        Axis { small: (most / 10.0).ceil().min(6.0) * 10.0, large: (least / 10.0).floor().max(-4.0) * 10.0 }
    }

    /// Length of a bar, of 100.
    fn at(&self, db: f64) -> f64 {
        if db.is_nan() { 100.0 } else { 100.0 * (self.small - db.clamp(self.large, self.small)) / (self.small - self.large) }
    }

    /// Lines across bars: decibels, and the share of the output that an error of so many is.
    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        let step = if self.small - self.large > 40.0 { 20.0 } else { 10.0 };
        let (small, count) = (self.small - self.small % step, ((self.small - self.large) / step) as usize);
        (0..=count).map(move |i| small - step * i as f64).filter(|&db| db >= self.large).map(|db| (db, decibels(db).replace(".0", "")))
    }
}

pub fn own(layer: &LayerReport) -> Option<f64> {
    layer.isolated.as_ref().map(|own| own.errors.sqnr_db)
}

/// A row a layer: the error that it makes itself, and with all made before it.
pub fn bars(layers: &[LayerReport], axis: &Axis, page: &mut String) -> fmt::Result {
    write!(page, "<div class=\"bars\"><i></i><div class=\"ticks\">")?;
    for (db, label) in axis.ticks() {
        write!(page, "<span style=\"left:{:.1}%\">{label}</span>", axis.at(db))?;
    }
    writeln!(page, "</div><i></i>")?;
    let mut lines = String::new();
    for (db, _) in axis.ticks() {
        write!(lines, "M{:.1} 0v18", axis.at(db))?;
    }
    for layer in layers {
        let (name, all) = (Escaped(&layer.name), layer.errors.sqnr_db);
        let label = decibels(own(layer).unwrap_or(all));
        write!(
            page,
            "<span>{name}</span><svg viewBox=\"0 0 100 18\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}: {label}\"><path class=\"l\" d=\"{lines}\"/>"
        )?;
        if let Some(own) = own(layer) {
            write!(page, "<rect class=\"b\" y=\"3\" width=\"{:.1}\" height=\"8\"/>", axis.at(own))?;
        }
        writeln!(page, "<rect class=\"o\" y=\"12\" width=\"{:.1}\" height=\"3\"/></svg><b>{label}</b>", axis.at(all))?;
    }
    writeln!(page, "</div>")
}

/// Columns over the layers in the order in which they run: wide and pale the one series, narrow before it the other; in parts of the
/// whole height.
pub fn columns(title: &str, series: &[[f64; 2]], labels: [String; 3], ends: [&str; 2], page: &mut String) -> fmt::Result {
    let [top, middle, foot] = labels;
    let [first, last] = ends.map(Escaped);
    write!(
        page,
        "<figure><figcaption>{title}</figcaption><div class=\"plot\"><div class=\"y\"><span>{top}</span><span>{middle}</span><span>{foot}</span></div>"
    )?;
    write!(
        page,
        "<svg viewBox=\"0 0 {} 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{title}\"><path class=\"l\" d=\"M0 0h{0}M0 50h{0}M0 100h{0}\"/>",
        series.len()
    )?;
    for (class, which, [from, width]) in [("w", 0, [0.0, 1.0]), ("b", 1, [0.2, 0.6])] {
        write!(page, "<path class=\"{class}\" d=\"")?;
        for (i, pair) in series.iter().enumerate() {
            let height = 100.0 * if pair[which].is_nan() { 1.0 } else { pair[which].clamp(0.0, 1.0) };
            if height > 0.0 {
                write!(page, "M{:.1} 100v-{height:.1}h{width}v{height:.1}z", i as f64 + from)?;
            }
        }
        write!(page, "\"/>")?;
    }
    writeln!(page, "</svg></div><p class=\"x\"><span>{first}</span><span>→ {last}</span></p></figure>")
}

/// Errors along the network.
pub fn errors(layers: &[&LayerReport], axis: &Axis, ends: [&str; 2], page: &mut String) -> fmt::Result {
    let series: Vec<[f64; 2]> =
        layers.iter().map(|layer| [axis.at(layer.errors.sqnr_db) / 100.0, own(layer).map_or(0.0, |own| axis.at(own) / 100.0)]).collect();
    let labels = [axis.large, (axis.large + axis.small) / 2.0, axis.small].map(|db| decibels(db).replace(".0", ""));
    columns("Error", &series, labels, ends, page)
}

/// Counts as an area, the range of codes between two lines, what is clipped beyond them.
pub fn histogram(title: &str, of: &Histogram, rest: &str, page: &mut String) -> fmt::Result {
    let largest = of.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let (bins, [from, to], [lo, hi]) = (of.counts.len(), of.span, of.codes);
    let at = |x: f32| bins as f32 * (x - from) / (to - from);
    let title = Escaped(title);
    write!(
        page,
        "<p class=\"axis\"><span>{title}</span><span>{rest}</span></p><svg class=\"h\" viewBox=\"0 0 {bins} 40\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"histogram: {title}\">"
    )?;
    write!(page, "<rect class=\"r\" x=\"{:.1}\" width=\"{:.1}\" height=\"40\"/>", at(lo), at(hi) - at(lo))?;
    let between: Vec<f32> = match of.levels.as_slice() {
        [_, inner @ .., _] if of.levels.len() <= GRID as usize => inner.to_vec(),
        [] if of.step > 0.0 && (hi - lo) / of.step <= GRID => {
            (1..((hi - lo) / of.step).round() as usize).map(|code| lo + code as f32 * of.step).collect()
        }
        _ => Vec::new(),
    };
    if !between.is_empty() {
        write!(page, "<path class=\"l\" d=\"")?;
        between.iter().try_for_each(|&code| write!(page, "M{:.1} 0v40", at(code)))?;
        write!(page, "\"/>")?;
    }
    // A bin that lies beyond the codes as a whole is clipped.
    let beyond = |i: usize| (i + 1) as f32 <= at(lo - of.step / 2.0) || i as f32 >= at(hi + of.step / 2.0);
    for (class, wanted) in [("a", false), ("c", true)] {
        if !(0..bins).any(|i| beyond(i) == wanted && of.counts[i] > 0) {
            continue;
        }
        write!(page, "<path class=\"{class}\" d=\"M0 40")?;
        for (i, &count) in of.counts.iter().enumerate() {
            match beyond(i) == wanted {
                true => write!(page, "V{:.0}h1", 40.0 - 38.0 * (count as f64 / largest).sqrt())?,
                false => write!(page, "V40h1")?,
            }
        }
        write!(page, "V40z\"/>")?;
    }
    // Each below its line.
    let margin = 100.0 * at(lo) / bins as f32;
    writeln!(page, "</svg><p class=\"ends\" style=\"margin-inline:{margin:.2}%\"><span>{}</span><span>{}</span></p>", short(lo), short(hi))
}
