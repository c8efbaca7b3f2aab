//! Curves in a terminal.

const WIDTH: usize = 72;
const HEIGHT: usize = 16;
const MARKS: [char; 6] = ['a', 'b', 'c', 'd', 'e', 'f'];

/// Lines over a common axis, each drawn with a mark of its own.
pub fn lines(title: &str, curves: &[(String, Vec<f64>)]) -> String {
    let values = || curves.iter().flat_map(|(_, curve)| curve.iter().copied()).filter(|y| y.is_finite());
    let (lo, hi) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let mut cells = vec![vec![' '; WIDTH]; HEIGHT];
    for ((_, curve), mark) in curves.iter().zip(MARKS.iter().cycle()) {
        for (i, y) in curve.iter().enumerate().filter(|(_, y)| y.is_finite()) {
            let x = i * (WIDTH - 1) / (curve.len() - 1).max(1);
            let y = if hi > lo { (y - lo) / (hi - lo) } else { 0.5 };
            cells[((1.0 - y) * (HEIGHT - 1) as f64).round() as usize][x] = *mark;
        }
    }
    let mut text = format!("{title}\n");
    for (row, cells) in cells.iter().enumerate() {
        let y = hi - (hi - lo) * row as f64 / (HEIGHT - 1) as f64;
        text.push_str(&format!("{y:10.4} |{}\n", cells.iter().collect::<String>().trim_end()));
    }
    let legend = curves.iter().zip(MARKS.iter().cycle()).map(|((name, _), mark)| format!("{mark}: {name}"));
    text.push_str(&format!("{:11}+{}\n{:12}{}\n", "", "-".repeat(WIDTH), "", legend.collect::<Vec<_>>().join("   ")));
    text
}
