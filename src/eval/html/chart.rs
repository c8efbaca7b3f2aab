//! Drawings of a page, in SVG.

use std::fmt::{self, Write};

use super::{Escaped, decibels};
use crate::eval::histogram::Histogram;
use crate::eval::report::LayerReport;

/// Height of a row of bars.
const ROW: usize = 18;
/// Decibels at the end of the axis, at most: beyond that all is well.
const LONGEST: f64 = 80.0;

/// A row a layer: SQNR with all errors before it, and of the layer by itself.
pub fn bars(layers: &[LayerReport], page: &mut String) -> fmt::Result {
    let longest = layers.iter().map(|layer| layer.errors.sqnr_db).filter(|db| db.is_finite()).fold(20.0, f64::max).min(LONGEST);
    let long = |db: f64| 100.0 * if db.is_nan() { 0.0 } else { db.clamp(0.0, longest) / longest };
    writeln!(page, "<div class=\"bars\">")?;
    for layer in layers {
        let own = layer.isolated.as_ref().map(|own| own.errors.sqnr_db);
        let (name, label) = (Escaped(&layer.name), decibels(layer.errors.sqnr_db));
        write!(
            page,
            "<span title=\"{name}\">{name}</span><svg viewBox=\"0 0 100 {ROW}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}: {label}\">"
        )?;
        write!(page, "<rect class=\"b\" y=\"3\" width=\"{:.1}\" height=\"8\"/>", long(layer.errors.sqnr_db))?;
        if let Some(own) = own {
            write!(page, "<rect class=\"o\" y=\"12\" width=\"{:.1}\" height=\"3\"/>", long(own))?;
        }
        writeln!(page, "</svg><span class=\"n\">{label}</span>")?;
    }
    writeln!(page, "</div>")
}

/// Counts as an area, the range of codes between two lines.
pub fn histogram(title: &str, of: &Histogram, page: &mut String) -> fmt::Result {
    let largest = of.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let (bins, [from, to]) = (of.counts.len(), of.span);
    let at = |x: f32| bins as f32 * (x - from) / (to - from);
    let [lo, hi] = of.codes;
    write!(
        page,
        "<svg class=\"h\" viewBox=\"0 0 {bins} 40\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"histogram of {title}\">"
    )?;
    write!(page, "<rect class=\"r\" x=\"{:.1}\" width=\"{:.1}\" height=\"40\"/><path d=\"M0 40", at(lo), at(hi) - at(lo))?;
    for &count in &of.counts {
        write!(page, "V{:.0}h1", 40.0 - 38.0 * (count as f64 / largest).sqrt())?;
    }
    writeln!(
        page,
        "V40z\"/></svg><p class=\"axis\"><span>{title}</span><span>{} to {}, steps of {}</span></p>",
        short(lo),
        short(hi),
        short(of.step)
    )
}

/// A number in few digits.
fn short(x: f32) -> String {
    let text = if x != 0.0 && x.abs() < 0.001 {
        format!("{x:.2e}")
    } else {
        format!("{x:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    text.replace('-', "−")
}
