//! Codes whose levels the codes before them help to choose: read as documented, found as the best of all there are.

use crate::support::Random;
use lowprec::metrics::sqnr_db;
use lowprec::quant::{
    LogScales, PackedCodes, QuantizedWeights, Rounding, Scales, StoredLevels, Table, WeightFormat, WeightParts, WeightQuantizer, Zeros,
};
use lowprec::{Error, Shape, Tensor};

fn format(text: &str) -> WeightFormat {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn normal(random: &mut Random, dims: [usize; 2]) -> Tensor {
    let value = |_| (0..12).map(|_| random.unit()).sum::<f32>();
    Tensor::new(dims, (0..dims[0] * dims[1]).map(value).collect()).unwrap()
}

/// The levels of a run's codes, before scales, bit by bit as [`lowprec::quant::Levels::Trellis`] has it: Ungerboeck's parities 515 and 362.
fn levels(bits: u32, codes: &[u32]) -> Vec<f32> {
    let book = Table::Gauss(bits + 1).codebook().unwrap();
    let low = |i: usize, back: usize| i.checked_sub(back).map_or(0, |i| codes[i] & 1);
    let parity = |i: usize, taps: &[usize]| taps.iter().map(|&back| low(i, back)).sum::<u32>() % 2;
    let level = |i: usize| {
        let subset = 2 * parity(i, &[0, 2, 3, 6, 8]) + parity(i, &[1, 4, 5, 6, 7]);
        book.levels()[(4 * (codes[i] >> 1) + subset) as usize]
    };
    (0..codes.len()).map(level).collect()
}

/// Codes that nothing chose, with scales that are all 1.
fn of_codes(text: &str, dims: [usize; 2], codes: Vec<u32>) -> QuantizedWeights {
    let (format, shape) = (format(text), Shape::new(dims).unwrap());
    let scales = Scales::F32(vec![1.0; format.groups(&shape).unwrap()]);
    let codes = PackedCodes::new(format.bits(), codes).unwrap();
    let parts = WeightParts { codes, scales, zeros: Zeros::None, levels: StoredLevels::None, kept: None };
    QuantizedWeights::from_parts(format, shape, parts).unwrap()
}

#[test]
fn codes_are_read_as_documented() {
    let random = &mut Random(1);
    // The memory is emptied after as many groups as have 4096 weights or more. Of the first, each row has seven, the last of them short.
    for (text, dims, in_run) in [
        ("trellis4:g16:f32", [90, 100], 256),
        ("trellis3:f32", [3, 5000], 1),
        ("trellis2:tensor", [3, 5000], 1),
        ("trellis1:f32", [20, 500], 9),
    ] {
        let bits = format(text).bits();
        let codes: Vec<u32> = (0..dims[0] * dims[1]).map(|_| (random.unit() * 1024.0) as i32 as u32 % (1 << bits)).collect();
        let q = of_codes(text, dims, codes.clone());
        let starts: Vec<usize> = (0..q.groups()).step_by(in_run).map(|group| q.group(group).start).chain([codes.len()]).collect();
        let expected: Vec<f32> = starts.windows(2).flat_map(|run| levels(bits, &codes[run[0]..run[1]])).collect();
        assert!(q.dequantize().as_slice() == expected, "{text}");
        let by_index: Vec<f32> = q.level_indices().into_iter().map(|index| q.table(0)[usize::from(index)]).collect();
        assert!(by_index == expected, "{text}");
        // From any weight on, near the beginnings of runs, of groups, of rows.
        let near = starts.iter().flat_map(|start| start.saturating_sub(20)..start + 40);
        for first in near.filter(|first| *first < expected.len()) {
            let mut some = vec![0.0; 30.min(expected.len() - first)];
            q.dequantize_into(first, &mut some);
            assert_eq!(some, expected[first..first + some.len()], "{text} from {first}");
        }
    }
}

/// `Σ w · (x - scale · level)²` of the codes at each weight's scale.
fn error(x: &[f32], weights: &[f32], levels: &[f32], scales: impl Fn(usize) -> f32) -> f64 {
    let of = |i: usize| f64::from(weights[i]) * (f64::from(x[i]) - f64::from(scales(i) * levels[i])).powi(2);
    (0..x.len()).map(of).sum()
}

/// All digits to this base of the numbers below its power.
fn every(base: u32, count: usize) -> impl Iterator<Item = Vec<u32>> {
    (0..base.pow(count as u32)).map(move |number| (0..count as u32).map(|digit| number / base.pow(digit) % base).collect())
}

#[test]
fn none_of_all_codes_is_better() {
    let random = &mut Random(2);
    for (bits, count) in [(1, 13), (2, 6), (3, 4), (4, 3)] {
        for seed in 0..6 {
            let x = normal(random, [1, count]);
            let sensitivities: Vec<f32> = (0..count).map(|_| if seed < 3 { 1.0 } else { random.unit().abs() }).collect();
            for text in [format!("trellis{bits}:f32"), format!("trellis{bits}:g2"), format!("trellis{bits}:g3:log5")] {
                let q = WeightQuantizer::new(format(&text)).with_sensitivities(&sensitivities).quantize(&x).unwrap();
                let scales: Vec<f32> = (0..q.groups()).flat_map(|group| vec![q.scales().at(group); q.group(group).len()]).collect();
                let of = |codes: &[u32]| error(x.as_slice(), &sensitivities, &levels(bits, codes), |i| scales[i]);
                let found = of(&q.packed().iter().collect::<Vec<_>>());
                let least = every(1 << bits, count).map(|codes| of(&codes)).fold(f64::INFINITY, f64::min);
                assert!(found <= least * (1.0 + 1e-5), "{text}: {found}, {least} by brute force");
            }
        }
    }
}

#[test]
fn none_of_all_scales_is_better() {
    let random = &mut Random(3);
    for (bits, count, size) in [(1, 8, 3), (2, 4, 2)] {
        for _ in 0..4 {
            let x = normal(random, [1, count]);
            let q = format(&format!("trellis{bits}:g{size}:log3")).quantize(&x).unwrap();
            let Scales::Log(log) = q.scales() else { panic!("logarithmic scales were asked for") };
            let choices: Vec<f32> = {
                let all = LogScales::new(PackedCodes::new(3, 0..8).unwrap(), log.largest(), log.fall());
                let all = Scales::Log(all);
                (0..8).map(|code| all.at(code)).collect()
            };
            let ones = vec![1.0; count];
            let found = error(x.as_slice(), &ones, q.dequantize().as_slice(), |_| 1.0);
            let mut least = f64::INFINITY;
            for codes in every(1 << bits, count) {
                let levels = levels(bits, &codes);
                for chosen in every(8, count.div_ceil(size)) {
                    least = least.min(error(x.as_slice(), &ones, &levels, |i| choices[chosen[i / size] as usize]));
                }
            }
            assert!(found <= least * (1.0 + 1e-5), "{bits} bits: {found}, {least} by brute force");
        }
    }
}

/// Groups of more weights than are searched at once, and runs of few and of many groups.
#[test]
fn large_and_small_groups_come_near() {
    let x = normal(&mut Random(4), [16, 1024]);
    let reached = |text: &str| sqnr_db(x.as_slice(), format(text).quantize(&x).unwrap().dequantize().as_slice()).unwrap();
    // Of a normal distribution no code of 4.25, 3.25 and 2.25 bits comes nearer than 25.6, 19.6 and 13.5 dB, levels that are the best
    // for it with one scale come to 20.2, 14.6 and 9.3.
    let bounds = [
        ("trellis4:g16:log4", 24.5),
        ("trellis3:g16:log4", 18.3),
        ("trellis2:g16:log4", 11.9),
        ("trellis4", 22.3),
        ("trellis4:tensor", 22.0),
        ("trellis3:tensor", 16.3),
        ("trellis4:g300", 22.5),
    ];
    for (text, least) in bounds {
        let reached = reached(text);
        println!("{text:20} {reached:.2} dB");
        assert!(reached > least, "{text}: {reached} dB");
    }
    assert!(reached("trellis4:g16:log4") > reached("shift4:g32:log3") + 1.2);
}

#[test]
fn groups_of_any_size_of_values() {
    // From group to group 25 orders of magnitude: each keeps its own precision.
    let x = normal(&mut Random(5), [12, 64]);
    let x =
        Tensor::new([12, 64], x.as_slice().iter().enumerate().map(|(i, x)| x * 10f32.powi((i / 64 * 7 % 12 * 5) as i32 - 30)).collect())
            .unwrap();
    let y = format("trellis4:g16:f32").quantize(&x).unwrap().dequantize();
    for (row, (x, y)) in x.as_slice().chunks(64).zip(y.as_slice().chunks(64)).enumerate() {
        let reached = sqnr_db(x, y).unwrap();
        assert!(reached > 23.0, "row {row}: {reached} dB");
    }
}

#[test]
fn what_it_cannot_do() {
    let x = normal(&mut Random(6), [2, 32]);
    let drawn = WeightQuantizer::new(format("trellis4:g16")).with_rounding(Rounding::Stochastic { seed: 1 }).quantize(&x);
    assert!(matches!(drawn, Err(Error::Unsupported { .. })));
    assert!("trellis0".parse::<WeightFormat>().is_err() && "trellis4:half".parse::<WeightFormat>().is_err());
}

/// Several runs, and sensitivities: the same bytes for any number of threads.
#[cfg(feature = "parallel")]
#[test]
fn threads_change_no_path() {
    let x = normal(&mut Random(7), [96, 200]);
    let sensitivities: Vec<f32> = (0..x.len()).map(|i| 1.0 + (i % 5) as f32).collect();
    for text in ["trellis2:g25:log4", "trellis3", "trellis1:g40:largest=0.01"] {
        let [one, three] = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| WeightQuantizer::new(format(text)).with_sensitivities(&sensitivities).quantize(&x).unwrap())
        });
        assert!(one == three, "{text}");
    }
}

#[test]
fn values_far_below_all_scales_leave_their_neighbours_alone() {
    let mut weight = Tensor::new([40, 16], (0..640).map(|i| ((i * i + 3 * i) as f32 * 0.37).sin()).collect()).unwrap();
    let of = |weight: &Tensor, text: &str| {
        let small = text.parse::<WeightFormat>().unwrap().quantize(weight).unwrap().dequantize();
        let noise: f64 = weight.as_slice()[176..].iter().zip(&small.as_slice()[176..]).map(|(w, q)| f64::from(w - q).powi(2)).sum();
        let signal: f64 = weight.as_slice()[176..].iter().map(|&w| f64::from(w).powi(2)).sum();
        10.0 * (signal / noise).log10()
    };
    for text in ["trellis4:g16", "trellis4:g16:log4", "trellis4:g16:e4m3", "trellis4:g16:double"] {
        let before = of(&weight, text);
        for tiny in [1e-20f32, 1e-28, 0.0] {
            let even = weight.as_slice()[160..176].to_vec();
            weight.as_mut_slice()[160..176].iter_mut().for_each(|w| *w *= tiny);
            let after = of(&weight, text);
            weight.as_mut_slice()[160..176].copy_from_slice(&even);
            assert!(before > 20.0 && after > before - 0.5, "{text}: {before} dB, {after} beside values of {tiny}");
        }
    }
}
