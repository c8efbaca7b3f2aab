//! Ranges that clip, ranges that outliers do not pull, and 16 bits.

use crate::support::Random;
use lowprec::Tensor;
use lowprec::metrics::sqnr_db;
use lowprec::quant::{WeightFormat, Zeros};

fn format(text: &str) -> WeightFormat {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn row(values: Vec<f32>) -> Tensor {
    Tensor::new([1, values.len()], values).unwrap()
}

/// Scale and offset or zero point of the only group.
fn grid(text: &str, x: &Tensor) -> (f32, f32) {
    let q = format(text).quantize(x).unwrap();
    let zero = match q.zeros() {
        Zeros::Points(points) => points.get(0).unwrap() as f32,
        Zeros::Offsets(offsets) => offsets.at(0),
        _ => 0.0,
    };
    (q.scales().at(0), zero)
}

#[test]
fn a_percentile_of_magnitudes_is_the_last_level() {
    // Magnitudes 0 to 100, and signs in turn: the 97.5th percentile is 97.5.
    let x = row((0..=100).map(|i| if i % 2 == 0 { i as f32 } else { -(i as f32) }).collect());
    assert_eq!(grid("int8:p97.5", &x).0, 97.5 / 127.0);
    assert_eq!(grid("int8:p100", &x), grid("int8:range", &x));
    let values = format("int8:p50").quantize(&x).unwrap().dequantize();
    // Beyond it all are clipped, -128 being one code more.
    assert!((values.as_slice()[100] - 50.0).abs() < 1e-4 && (values.as_slice()[99] + 50.0 * 128.0 / 127.0).abs() < 1e-4);
    // Levels that are no integers: the largest of NF4 is 1.
    assert_eq!(grid("nf4:p90", &x).0, 90.0);
    // Hardly any but zeros: the range is that of all.
    let sparse = row((0..64).map(|i| if i == 7 { 3.0 } else { 0.0 }).collect());
    assert_eq!(grid("int8:p90", &sparse), grid("int8:range", &sparse));
    assert_eq!(grid("uint8:p90", &sparse), grid("uint8:range", &sparse));
    // Each group by itself.
    let both = row((0..=63).map(|i| if i < 32 { i as f32 } else { 10.0 * (i - 32) as f32 }).collect());
    let q = format("int8:g32:f32:p50").quantize(&both).unwrap();
    assert_eq!((q.scales().at(0), q.scales().at(1)), (15.5 / 127.0, 155.0 / 127.0));
}

#[test]
fn with_a_zero_point_both_ends_are_cut() {
    // -100 to 200: of 10 %, a twentieth at each end, -85 to 185.
    let x = row((-100..=200).map(|i| i as f32).collect());
    let (scale, offset) = grid("offset8:p90", &x);
    assert!((offset + 85.0).abs() < 1e-4 && (scale - 270.0 / 255.0).abs() < 1e-6, "{scale} {offset}");
    let (scale, zero_point) = grid("uint8:p90", &x);
    assert!((scale - 270.0 / 255.0).abs() < 1e-6 && zero_point == 80.0, "{scale} {zero_point}");
    // Of one sign, all at the other end.
    let x = row((1..=101).map(|i| i as f32).collect());
    let (scale, zero_point) = grid("uint8:p90", &x);
    assert!((scale - 91.0 / 255.0).abs() < 1e-6 && zero_point == 0.0, "{scale} {zero_point}");
    let (scale, zero_point) = grid("uint8:p90", &row(x.as_slice().iter().map(|x| -x).collect()));
    assert!((scale - 91.0 / 255.0).abs() < 1e-6 && zero_point == 255.0, "{scale} {zero_point}");
}

#[test]
fn half_quadratic_is_nearer_to_most_weights() {
    let objective = |x: &Tensor, text: &str| {
        let y = format(text).quantize(x).unwrap().dequantize();
        x.as_slice().iter().zip(y.as_slice()).map(|(x, y)| f64::from((x - y).abs()).powf(0.7)).sum::<f64>()
    };
    let random = &mut Random(3);
    for outlier in [0.0, 0.7] {
        let x: Vec<f32> =
            (0..64 * 64).map(|i| (0..6).map(|_| random.unit()).sum::<f32>() * 0.05 + if i % 64 == 9 { outlier } else { 0.0 }).collect();
        let x = row(x);
        for (levels, gain) in [("offset2", 0.85), ("offset3", 0.94), ("offset4", 0.96), ("uint3", 0.96), ("uint4", 0.98), ("uint8", 1.0)] {
            let of = |fit: &str| objective(&x, &format!("{levels}:g64:f32:{fit}"));
            let (range, split) = (of("range"), of("hqq"));
            assert!(split <= gain * range, "{levels}, outliers of {outlier}: {split} against {range} of the range");
        }
    }
    // A scale that is stored as a power of two moves no code away from what it stood for.
    let x = row((0..128).map(|i| random.unit() + if i < 64 { 1.5 } else { -1.5 }).collect());
    let db = |text: &str| sqnr_db(x.as_slice(), format(text).quantize(&x).unwrap().dequantize().as_slice()).unwrap();
    let (split, range) = (db("uint4:g32:e8m0:hqq"), db("uint4:g32:e8m0:range"));
    assert!(split > range - 3.0, "{split} dB against {range}");
    // What lies on a grid stays there; where nothing differs there is nothing to fit.
    let exact = row((0..32).map(|i| 0.25 * (i % 16) as f32 - 1.0).collect());
    for text in ["offset4:hqq", "uint4:hqq"] {
        assert_eq!(format(text).quantize(&exact).unwrap().dequantize(), exact, "{text}");
    }
    for value in [0.0, 1.5] {
        let flat = row(vec![value; 40]);
        assert_eq!(format("offset3:g8:hqq").quantize(&flat).unwrap().dequantize(), flat);
    }
}

#[test]
fn sixteen_bits_with_zero_points_and_offsets() {
    let random = &mut Random(8);
    let x = row((0..640).map(|_| 3.0 * random.unit() + 1.0).collect());
    for text in ["uint16", "offset16", "uint16:g64", "offset16:g64"] {
        let q = format(text).quantize(&x).unwrap();
        let db = sqnr_db(x.as_slice(), q.dequantize().as_slice()).unwrap();
        assert!(db > 94.0, "{text}: {db} dB");
        assert_eq!(q.packed().as_bytes().len(), 1280);
        assert!(q.codes().iter().any(|&code| code > 60_000), "{text}: codes are used to the end");
        let both = vec![-2.0f32, 0.0, 5.0];
        let near = format(text.split(':').next().unwrap()).quantize(&row(both.clone())).unwrap().dequantize();
        assert!(near.as_slice().iter().zip(&both).all(|(y, x)| (y - x).abs() <= 3.6 / 32768.0), "{near:?}");
    }
    assert_eq!(format("uint16").quantize(&row(vec![-2.0, 0.0, 5.0])).unwrap().dequantize().as_slice()[1], 0.0);
}
