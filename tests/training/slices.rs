//! The building blocks on plain slices.

use lowprec::Error;
use lowprec::num;
use lowprec::train::{fake_quantize, fake_quantize_backward, lsq_backward, lsq_factor, lsq_plus_backward, pact, pact_backward};

use crate::Fixture;
use crate::gradients::numbers;

#[test]
fn forward_is_the_contracts_rounding() {
    let mut x = numbers(4000, 1, 40.0);
    // Ties, ends, and what lies far beyond them.
    x.extend((-300..300).map(|i| i as f32 * 0.125));
    x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, f32::MIN_POSITIVE]);
    for (scale, zero_point, qmin, qmax) in [(0.25, 0, -127, 127), (0.3, 7, 0, 255), (1.7, 1, 0, 3), (0.125, -2, -2, 1), (3.0, 0, 0, 65535)]
    {
        let mut y = vec![0.0; x.len()];
        fake_quantize(&x, scale, zero_point, (qmin, qmax), &mut y).unwrap();
        for (&x, &y) in x.iter().zip(&y) {
            let expected = num::dequantize(num::quantize(x, scale, zero_point, qmin, qmax), scale, zero_point);
            assert!(y == expected, "{x} at {scale}: {y} for {expected}");
        }
    }
    let mut y = [0.0];
    fake_quantize(&[f32::NAN], 1.0, 0, (0, 3), &mut y).unwrap();
    assert!(y[0].is_nan());
}

#[test]
fn the_mask_is_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let floats = |name: &str| fixture.floats(name);
    for (case, channels) in [("fake_tensor", 1), ("fake_channel", 4)] {
        let [x, g, y, dx] = ["x", "g", "y", "d.x"].map(|name| floats(&format!("{case}/{name}")).into_vec());
        let (scales, zeros) = (floats(&format!("{case}/scale")).into_vec(), floats(&format!("{case}/zero_point")).into_vec());
        let each = x.len() / channels;
        for channel in 0..channels {
            let at = channel * each..(channel + 1) * each;
            let (scale, zero) = (scales[channel], zeros[channel] as i32);
            let (mut own, mut own_dx) = (vec![0.0; each], vec![0.0; each]);
            fake_quantize(&x[at.clone()], scale, zero, (0, 15), &mut own).unwrap();
            fake_quantize_backward(&x[at.clone()], scale, zero, (0, 15), &g[at.clone()], &mut own_dx).unwrap();
            crate::close(case, &own, &y[at.clone()], 1e-6);
            assert_eq!(own_dx, dx[at], "{case}");
        }
    }
}

/// `Σ dy · y` with rounding taken out: `round(v)` becomes `v + r`, `r` being what was added at the start, where it is not clipped.
pub(crate) fn surrogate(x: &[f32], dy: &[f32], start: (f64, f64), at: (f64, f64), (lo, hi): (f64, f64)) -> f64 {
    let term = |(&x, &dy): (&f32, &f32)| {
        let (x, dy) = (f64::from(x), f64::from(dy));
        let v = |(scale, offset): (f64, f64)| (x - offset) / scale;
        let y = match v(start) {
            inside if inside >= lo && inside <= hi => v(at) + (inside.round_ties_even() - inside),
            outside => outside.clamp(lo, hi),
        };
        dy * (at.0 * y + at.1)
    };
    x.iter().zip(dy).map(term).sum()
}

#[test]
fn learned_scales_have_the_slope_of_what_is_not_rounded() {
    let (x, dy) = (numbers(1000, 2, 3.0), numbers(1000, 3, 1.0));
    for (scale, offset, codes) in [(0.4f32, 0.0f32, (-2, 1)), (0.13, 0.0, (-8, 7)), (0.3, -0.9, (0, 7)), (0.05, 0.2, (0, 3))] {
        let mut dx = vec![0.0; x.len()];
        let (by_scale, by_offset) = lsq_plus_backward(&x, scale, offset, codes, &dy, &mut dx).unwrap();
        let (s, b, bounds, h) = (f64::from(scale), f64::from(offset), (f64::from(codes.0), f64::from(codes.1)), 1e-6);
        let slope = |up: (f64, f64), down: (f64, f64)| {
            (surrogate(&x, &dy, (s, b), up, bounds) - surrogate(&x, &dy, (s, b), down, bounds)) / (2.0 * h)
        };
        let (expected, offset_slope) = (slope((s + h, b), (s - h, b)), slope((s, b + h), (s, b - h)));
        assert!((by_scale - expected).abs() < 1e-4 * expected.abs().max(1.0), "{by_scale} for {expected}");
        assert!((by_offset - offset_slope).abs() < 1e-4 * offset_slope.abs().max(1.0), "{by_offset} for {offset_slope}");
        for ((&x, &dy), &dx) in x.iter().zip(&dy).zip(&dx) {
            let v = (x - offset) / scale;
            assert_eq!(dx, if v >= codes.0 as f32 && v <= codes.1 as f32 { dy } else { 0.0 });
        }
        if offset == 0.0 {
            assert_eq!(lsq_backward(&x, scale, codes, &dy, &mut dx).unwrap(), by_scale);
        }
    }
    assert_eq!(lsq_factor(100, 1), 0.1);
}

#[test]
fn pact_learns_from_what_it_clips() {
    let (x, dy) = ([-1.0, 0.0, 0.2, 1.49, 1.5, 7.0], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]);
    let (mut y, mut dx) = ([0.0; 6], [0.0; 6]);
    pact(&x, 1.5, 2, &mut y).unwrap();
    assert_eq!(y, [0.0, 0.0, 0.0, 1.5, 1.5, 1.5]);
    assert_eq!(pact_backward(&x, 1.5, 2, &dy, &mut dx).unwrap(), 48.0);
    assert_eq!(dx, [0.0, 2.0, 4.0, 8.0, 0.0, 0.0]);
}

#[test]
fn what_makes_no_grid_is_an_error() {
    let mut y = [0.0; 2];
    assert!(matches!(fake_quantize(&[0.0; 3], 1.0, 0, (0, 1), &mut y).unwrap_err(), Error::Length { expected: 3, got: 2, .. }));
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(fake_quantize(&[0.0; 2], bad, 0, (0, 1), &mut y).unwrap_err(), Error::Scale { .. }), "{bad}");
    }
    assert!(matches!(fake_quantize(&[0.0; 2], 1.0, 0, (1, 1), &mut y).unwrap_err(), Error::Parameter { .. }));
    assert!(pact(&[0.0; 2], 1.0, 17, &mut y).is_err() && pact(&[0.0; 2], 0.0, 4, &mut y).is_err());
}
