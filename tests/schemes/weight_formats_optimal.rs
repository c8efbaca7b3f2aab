//! Levels and scales of least error, against brute force and grids; stochastic rounding; what is kept exactly.

use crate::support::Random;
use lowprec::Tensor;
use lowprec::metrics::{flushed_fraction, mean_shift, relative_error_by_decile, sqnr_db};
use lowprec::quant::{Fit, Levels, Rounding, WeightFormat, WeightQuantizer, kmeans, quantile_levels, random_unit, round_stochastic};
use proptest::prelude::*;

fn format(text: &str) -> WeightFormat {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn clustering_cost(values: &[f32], weights: &[f32], levels: &[f32]) -> f64 {
    let nearest = |x: f32| levels.iter().map(|&l| (f64::from(x) - f64::from(l)).powi(2)).fold(f64::INFINITY, f64::min);
    values.iter().zip(weights).map(|(&x, &w)| f64::from(w) * nearest(x)).sum()
}

/// The least cost over all ways to cut sorted values into at most `k` neighbours, one of which, if asked for, has the level 0.
fn brute_force(values: &[f32], weights: &[f32], k: usize, zero: bool) -> f64 {
    let mut points: Vec<(f64, f64)> = values.iter().zip(weights).map(|(&x, &w)| (f64::from(x), f64::from(w))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let about = |part: &[(f64, f64)], centre: f64| part.iter().map(|(x, w)| w * (x - centre).powi(2)).sum::<f64>();
    let mean = |part: &[(f64, f64)]| {
        let mass: f64 = part.iter().map(|p| p.1).sum();
        if mass > 0.0 { part.iter().map(|p| p.0 * p.1).sum::<f64>() / mass } else { 0.0 }
    };
    let mut least = f64::INFINITY;
    for cuts in 0..1u32 << (points.len() - 1) {
        let mut parts = vec![&points[..0]; 0];
        let mut begin = 0;
        for end in 1..=points.len() {
            if end == points.len() || cuts >> (end - 1) & 1 == 1 {
                parts.push(&points[begin..end]);
                begin = end;
            }
        }
        if parts.len() > k {
            continue;
        }
        let free: f64 = parts.iter().map(|part| about(part, mean(part))).sum();
        if !zero || parts.len() < k {
            least = least.min(free);
        }
        if zero {
            for part in &parts {
                least = least.min(free - about(part, mean(part)) + about(part, 0.0));
            }
        }
    }
    least
}

proptest! {
    #[test]
    fn kmeans_is_the_best_partition(
        values in proptest::collection::vec(prop_oneof![4 => -2.0f32..2.0, 1 => Just(0.0f32), 1 => Just(0.75f32), 1 => -40.0f32..40.0], 1..11),
        weights in proptest::collection::vec(prop_oneof![4 => 0.1f32..4.0, 1 => Just(0.0f32)], 11),
        k in 1usize..6,
        zero in any::<bool>(),
        unweighted in any::<bool>(),
    ) {
        let weights: Vec<f32> = if unweighted { vec![1.0; values.len()] } else { weights[..values.len()].to_vec() };
        let levels = kmeans(&values, Some(&weights), k, zero).unwrap();
        prop_assert!(levels.len() <= k && levels.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(!zero || levels.contains(&0.0));
        let (found, least) = (clustering_cost(&values, &weights, &levels), brute_force(&values, &weights, k, zero));
        let size: f64 = values.iter().zip(&weights).map(|(x, w)| f64::from(*w) * f64::from(x * x)).sum();
        prop_assert!((found - least).abs() <= 1e-9 * size + 1e-12, "{found} by {levels:?}, {least} by brute force");
    }

    /// No scale of a fine grid has less error than the one found, for levels of every kind.
    #[test]
    fn no_scale_is_better(
        values in proptest::collection::vec(prop_oneof![6 => -1.0f32..1.0, 1 => -8.0f32..8.0, 1 => Just(0.0f32)], 1..40),
        sensitivities in proptest::collection::vec(0.01f32..3.0, 40),
        weighted in any::<bool>(),
        kind in 0usize..12,
    ) {
        let text = ["int2:f32", "int3:f32", "int4:f32", "int6:f32", "nf4:f32", "pot4:f32", "apot4:f32", "gauss3:f32", "midrise2:f32", "fp4:f32",
            "fp6e2m3:f32", "[-1,-0.9,0.1,0.3,2]:f32"][kind];
        let format = format(text);
        let x = Tensor::new([values.len()], values.clone()).unwrap();
        let sensitivities = &sensitivities[..values.len()];
        let mut quantizer = WeightQuantizer::new(format.clone());
        if weighted {
            quantizer = quantizer.with_sensitivities(sensitivities);
        }
        let q = quantizer.quantize(&x).unwrap();
        let weight = |i: usize| if weighted { f64::from(sensitivities[i]) } else { 1.0 };
        let levels = q.table(0);
        let cost = |scale: f64| -> f64 {
            let nearest = |x: f32| levels.iter().map(|&l| (f64::from(x) - scale * f64::from(l)).powi(2)).fold(f64::INFINITY, f64::min);
            values.iter().enumerate().map(|(i, &x)| weight(i) * nearest(x)).sum()
        };
        let y = q.dequantize();
        let off = |(i, (x, y)): (usize, (&f32, &f32))| weight(i) * (f64::from(*x) - f64::from(*y)).powi(2);
        let found: f64 = values.iter().zip(y.as_slice()).enumerate().map(off).sum();
        let size: f64 = values.iter().enumerate().map(|(i, &x)| weight(i) * f64::from(x * x)).sum();
        let largest = f64::from(values.iter().fold(0.0f32, |l, x| l.max(x.abs())));
        for i in 0..600 {
            let scale = largest * 8.0 * 0.985f64.powi(i);
            for scale in [scale, -scale] {
                prop_assert!(found <= cost(scale) + 1e-6 * size, "{text}: {found} at {}, {} at {scale}", q.scales().at(0), cost(scale));
            }
        }
    }
}

#[test]
fn many_values_are_clustered_as_well() {
    let random = &mut Random(3);
    let values: Vec<f32> = (0..200_000).map(|_| (0..4).map(|_| random.unit()).sum()).collect();
    // Exact on a sample of them, and through bins on all: the same distribution.
    let some = &values[..50_000];
    let cost = |values: &[f32], levels: &[f32]| clustering_cost(values, &vec![1.0; values.len()], levels) / values.len() as f64;
    let (few, all) = (kmeans(some, None, 16, true).unwrap(), kmeans(&values, None, 16, true).unwrap());
    assert!(all.contains(&0.0) && all.len() == 16);
    assert!(cost(&values, &all) <= cost(&values, &few), "levels of the sample cannot be better for all than their own");
    // Weights count as repetition.
    let weights: Vec<f32> = (0..values.len()).map(|i| if i < some.len() { 1.0 } else { 0.0 }).collect();
    assert_eq!(kmeans(&values, Some(&weights), 16, true).unwrap(), few);
    let quantiles = quantile_levels(&values, None, 16, false).unwrap();
    assert!(quantiles.len() == 16 && cost(&values, &quantiles) > cost(&values, &all));
    assert!(quantile_levels(&values, None, 4, true).unwrap().contains(&0.0));
}

#[test]
fn sensitive_weights_are_met_better() {
    let random = &mut Random(8);
    let x = random.tensor([4, 256], 1.0);
    let sensitivities: Vec<f32> = (0..x.len()).map(|i| if i % 7 == 0 { 50.0 } else { 1.0 }).collect();
    for text in ["int3:g64", "nf4:g64", "uint3:g64", "offset3:g64", "kmeans3", "kmeans3:g64", "kmeans2:own:channel"] {
        let error = |sensitivities: Option<&[f32]>| {
            let plain = WeightQuantizer::new(format(text));
            let q = if let Some(list) = sensitivities { plain.with_sensitivities(list) } else { plain };
            let y = q.quantize(&x).unwrap().dequantize();
            (0..x.len()).map(|i| f64::from(sensitivities_of(i)) * f64::from(x.as_slice()[i] - y.as_slice()[i]).powi(2)).sum::<f64>()
        };
        fn sensitivities_of(i: usize) -> f32 {
            if i.is_multiple_of(7) { 50.0 } else { 1.0 }
        }
        assert!(error(Some(&sensitivities)) < error(None), "{text}");
    }
}

#[test]
fn stochastic_rounding_is_right_on_average() {
    // A grid of step 1 (int4) and uneven levels; 40,000 draws of each value.
    const DRAWS: usize = 40_000;
    for (text, low, x, high) in [
        ("int4:tensor:range", 2.0, 2.3f32, 3.0),
        ("nf4:tensor:range", 0.440_709_83, 0.5, 0.562617),
        ("fp4:tensor:range", 4.0, 5.5, 6.0),
        ("uint4:tensor:range", 2.0, 2.3, 3.0),
        ("midrise2:tensor:range", 0.5, 0.7, 1.5),
    ] {
        let top = match text.split(':').next().unwrap() {
            "int4" => 7.0,
            "nf4" => 1.0,
            "fp4" => 6.0,
            "uint4" => 15.0,
            _ => 1.5,
        };
        let mut values = vec![x; DRAWS];
        values.push(top);
        let x_all = Tensor::new([DRAWS + 1], values).unwrap();
        let quantizer = WeightQuantizer::new(format(text)).with_rounding(Rounding::Stochastic { seed: 5 });
        let y = quantizer.quantize(&x_all).unwrap().dequantize();
        let drawn = &y.as_slice()[..DRAWS];
        assert!(drawn.iter().all(|&y| y == low || y == high), "{text}: {:?}", &drawn[..4]);
        let mean = drawn.iter().map(|&y| f64::from(y)).sum::<f64>() / DRAWS as f64;
        let sigma = f64::from((high - x) * (x - low)).sqrt() / (DRAWS as f64).sqrt();
        assert!((mean - f64::from(x)).abs() < 4.0 * sigma, "{text}: mean {mean} of {x}");
        assert_eq!(y.as_slice()[DRAWS], top);
        assert_eq!(quantizer.quantize(&x_all).unwrap().dequantize(), y);
        assert_ne!(quantizer.clone().with_rounding(Rounding::Stochastic { seed: 6 }).quantize(&x_all).unwrap().dequantize(), y);
    }
}

#[test]
fn stochastic_rounding_of_a_list() {
    const N: usize = 1_000_000;
    let (x, step) = (0.3f32, 0.25f32);
    let mut all = vec![x; N];
    round_stochastic(&mut all, step, 9, 100);
    let share = f64::from((x - step) / step);
    let mean = all.iter().map(|&y| f64::from(y)).sum::<f64>() / N as f64;
    let variance = all.iter().map(|&y| (f64::from(y) - mean).powi(2)).sum::<f64>() / N as f64;
    let expected = f64::from(step).powi(2) * share * (1.0 - share);
    assert!((mean - f64::from(x)).abs() < 4.0 * (expected / N as f64).sqrt(), "{mean}");
    assert!((variance / expected - 1.0).abs() < 0.02, "{variance} of {expected}");
    // In pieces of any size: the same.
    for piece in [1, 7, 4096] {
        let mut again = vec![x; 20_000];
        again.chunks_mut(piece).enumerate().for_each(|(i, part)| round_stochastic(part, step, 9, (100 + i * piece) as u64));
        assert_eq!(again, all[..20_000]);
    }
    let grid = [-1.0, -0.25, 0.0, 0.5, f32::INFINITY, f32::NEG_INFINITY];
    for seed in 0..100 {
        let mut again = grid;
        round_stochastic(&mut again, 0.25, seed, 0);
        assert_eq!(again, grid);
    }
    // Neighbouring seeds are not shifted copies.
    assert!((0..1000).all(|i| random_unit(1, i + 1) != random_unit(2, i)));
    assert!((0..10_000).all(|i| (0.0..1.0).contains(&random_unit(3, i))));
}

#[test]
fn small_weights_and_what_helps_them() {
    let random = &mut Random(4);
    let values: Vec<f32> = (0..64 * 256).map(|_| (0..8).map(|_| random.unit()).sum::<f32>() * 0.01).collect();
    let x = Tensor::new([64, 256], values).unwrap();
    let approximated = |text: &str| format(text).quantize(&x).unwrap().dequantize();
    let flushed = |text: &str| flushed_fraction(x.as_slice(), approximated(text).as_slice()).unwrap();
    let first = |text: &str| relative_error_by_decile(x.as_slice(), approximated(text).as_slice()).unwrap()[0];
    assert!(flushed("int4:g128") > 0.1 && flushed("int2:g128") > 0.3);
    assert!(flushed("midrise4:g128") == 0.0 && flushed("gauss4:g128") == 0.0);
    assert!(flushed("apot4:g128") < flushed("int4:g128") && flushed("fp8e4m3:g128") < 0.01);
    assert!(first("fp8e4m3:g128") < first("int8:g128") && first("int4:g128") > 0.9);
    // Kept exactly: of the smallest, nothing is flushed that would be, and the price is in the bytes.
    assert!(flushed("int4:g128:smallest=0.2") < 0.01 && first("int4:g128:smallest=0.1") == 0.0);
    let plain = format("int4:g128").quantize(&x).unwrap();
    for (which, fraction) in [("largest", 0.01), ("smallest", 0.1), ("sensitive", 0.05)] {
        let q = format(&format!("int4:g128:{which}={fraction}")).quantize(&x).unwrap();
        let kept = q.kept().unwrap();
        assert_eq!(kept.len(), (fraction * x.len() as f64).round() as usize);
        assert_eq!(q.bytes(), plain.bytes() + 4 * 65 + 6 * kept.len());
        let y = q.dequantize();
        assert!(kept.iter().all(|(i, value)| value == x.as_slice()[i] && value == y.as_slice()[i]));
        let gain = sqnr_db(x.as_slice(), y.as_slice()).unwrap() - sqnr_db(x.as_slice(), plain.dequantize().as_slice()).unwrap();
        assert!(gain > 0.0, "{which}: {gain} dB");
        let edge = kept.iter().map(|(_, value)| value.abs()).fold(f32::INFINITY, f32::min);
        if which == "largest" {
            assert_eq!(x.as_slice().iter().filter(|x| x.abs() >= edge).count(), kept.len());
        }
    }
    // Drawn by chance, small weights are there on average: over seeds their sum stays.
    let tenth = f64::from(x.as_slice().iter().copied().fold(0.0, f32::max)) / 40.0;
    let small: Vec<usize> = (0..x.len()).filter(|&i| f64::from(x.as_slice()[i]) > 0.0 && f64::from(x.as_slice()[i]) < tenth).collect();
    let (format, mut kept) = (format("int2:channel:range"), 0.0);
    let whole: f64 = small.iter().map(|&i| f64::from(x.as_slice()[i])).sum();
    for seed in 0..64 {
        let y = WeightQuantizer::new(format.clone()).with_rounding(Rounding::Stochastic { seed }).quantize(&x).unwrap().dequantize();
        kept += small.iter().map(|&i| f64::from(y.as_slice()[i])).sum::<f64>() / 64.0;
    }
    assert!((kept / whole - 1.0).abs() < 0.1, "{kept} of {whole}");
    let y = format.quantize(&x).unwrap().dequantize();
    assert!(small.iter().all(|&i| y.as_slice()[i] == 0.0));
    assert!(mean_shift(x.as_slice(), y.as_slice()).unwrap().abs() < 1e-3);
    assert_eq!((format.fit(), format.levels()), (Fit::Range, &Levels::Int(2)));
}
