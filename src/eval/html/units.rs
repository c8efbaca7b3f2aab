//! Numbers as people read them, each with its unit.

pub fn decibels(db: f64) -> String {
    match db {
        f64::INFINITY => "exact".into(),
        f64::NEG_INFINITY => "−∞ dB".into(),
        db => minus(format!("{db:.1} dB")),
    }
}

/// One number in percent of another.
pub fn ratio(after: f64, before: f64) -> String {
    if before > 0.0 { format!("{:.1} %", 100.0 * after / before) } else { "–".into() }
}

pub fn bytes(count: usize) -> String {
    match count {
        0..1000 => format!("{count} B"),
        1000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

pub fn count(n: u64) -> String {
    match n {
        0..1000 => n.to_string(),
        1000..1_000_000 => format!("{} k", digits(n as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} M", digits(n as f64 / 1e6)),
        _ => format!("{} G", digits(n as f64 / 1e9)),
    }
}

pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

pub fn energy(joules: f64) -> String {
    match joules {
        j if j < 1e-6 => format!("{} nJ", digits(j * 1e9)),
        j if j < 1e-3 => format!("{} µJ", digits(j * 1e6)),
        j => format!("{} mJ", digits(j * 1e3)),
    }
}

/// Any number, in few digits.
pub fn short(x: f32) -> String {
    match x.abs() {
        size if !size.is_finite() => minus(x.to_string()),
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => minus(format!("{x:.1e}")),
        _ => minus(digits(f64::from(x))),
    }
}

/// Three digits or more, and no zeros at the end.
fn digits(x: f64) -> String {
    let behind = (2 - x.abs().max(1e-9).log10().floor() as i32).clamp(0, 5) as usize;
    let text = format!("{x:.behind$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn minus(text: String) -> String {
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_their_units() {
        assert_eq!([decibels(38.46), decibels(-3.0), decibels(f64::INFINITY)], ["38.5 dB", "−3.0 dB", "exact"]);
        assert_eq!([bytes(999), bytes(170_472), bytes(102_121_888)], ["999 B", "170.5 kB", "102.1 MB"]);
        assert_eq!([count(640), count(673_408), count(4_089_184_256)], ["640", "673 k", "4.09 G"]);
        assert_eq!([time(6.53e-6), time(0.0226), time(2.0)], ["6.5 µs", "22.60 ms", "2.00 s"]);
        assert_eq!([energy(8.9e-6), energy(5.879e-3), energy(2.0e-9)], ["8.9 µJ", "5.88 mJ", "2 nJ"]);
        assert_eq!([short(0.0), short(14.6), short(-0.0532), short(1.0e-5), short(127.0)], ["0", "14.6", "−0.0532", "1.0e−5", "127"]);
    }
}
