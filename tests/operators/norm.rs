//! Normalizations against their formulas in f64.

use crate::nodes::{both_close, close, filled, node, noise, of, value};
use lowprec::nn::operator::{BatchNormalization, GroupNormalization, LayerNormalization, LpNormalization, MeanVarianceNormalization};
use lowprec::num::{bf16, f16};
use lowprec::{DType, Error, Value};

fn wide(x: &Value) -> Vec<f64> {
    of::<f32>(x).iter().map(|&x| x.into()).collect()
}

fn mean(x: impl Iterator<Item = f64> + Clone) -> f64 {
    x.clone().sum::<f64>() / x.count() as f64
}

/// Mean and factor of the elements of each class, and each element's class.
fn statistics(x: &[f64], classes: usize, of: impl Fn(usize) -> usize, epsilon: f64) -> Vec<(f64, f64)> {
    (0..classes)
        .map(|class| {
            let own = x.iter().enumerate().filter(|(i, _)| of(*i) == class).map(|(_, &x)| x);
            let mean_of = mean(own.clone());
            (mean_of, 1.0 / (mean(own.map(|x| (x - mean_of) * (x - mean_of))) + epsilon).sqrt())
        })
        .collect()
}

#[test]
fn layers_of_every_axis() {
    for dims in [&[2, 3, 5, 7][..], &[4, 384], &[1], &[6, 1], &[0, 3], &[70, 3, 33]] {
        for axis in 0..dims.len() {
            let (rows, row): (usize, &[usize]) = (dims[..axis].iter().product(), &dims[axis..]);
            let length: usize = row.iter().product();
            let (x, scale, bias) = (noise(dims, 1), noise(row, 2), noise(row, 3));
            let found = statistics(&wide(&x), rows, |i| i / length, 1e-3);
            let normal = |i: usize, x: f64| (x - found[i / length].0) * found[i / length].1;
            let (w, b) = (wide(&scale), wide(&bias));
            let scaled: Vec<f64> = wide(&x).iter().enumerate().map(|(i, &x)| normal(i, x) * w[i % length]).collect();
            let biased: Vec<f64> = scaled.iter().enumerate().map(|(i, y)| y + b[i % length]).collect();
            let layer = LayerNormalization::new(axis as i64 - dims.len() as i64, 1e-3);
            both_close(layer, &[&x, &scale], dims, &scaled, 1e-5);
            both_close(layer, &[&x, &scale, &bias], dims, &biased, 1e-5);
            let all = node(layer.with_statistics(DType::F32), &[Some(&x), Some(&scale), Some(&bias)]).unwrap();
            close(of(&all[0]), &biased, 1e-5);
            close(of(&all[1]), &found.iter().map(|f| f.0).collect::<Vec<_>>(), 1e-5);
            close(of(&all[2]), &found.iter().map(|f| f.1).collect::<Vec<_>>(), 1e-5);
            let kept: Vec<usize> = (0..dims.len()).map(|i| if i < axis { dims[i] } else { 1 }).collect();
            assert_eq!((all[1].shape().dims(), all[2].shape().dims()), (&kept[..], &kept[..]));
            // Without the mean.
            let rms: Vec<f64> = wide(&x)
                .chunks(length.max(1))
                .flat_map(|row| {
                    let factor = 1.0 / (mean(row.iter().map(|x| x * x)) + 1e-3).sqrt();
                    row.iter().zip(&w).map(move |(x, w)| x * factor * w).collect::<Vec<_>>()
                })
                .collect();
            both_close(LayerNormalization::rms(axis as i64, 1e-3), &[&x, &scale], dims, &rms, 1e-5);
        }
    }
}

#[test]
fn scales_that_broadcast() {
    let (x, ones) = (noise(&[2, 3, 4], 1), filled(&[2, 3, 4], |_| 1f32));
    let plain = node(LayerNormalization::new(-1, 1e-5), &[Some(&x), Some(&filled(&[4], |_| 1f32))]).unwrap();
    for (dims, at) in [
        (&[][..], (|_| 0) as fn(usize) -> usize),
        (&[1], |_| 0),
        (&[1, 1, 4], |i| i % 4),
        (&[3, 1], |i| i / 4 % 3),
        (&[3, 4], |i| i % 12),
        (&[2, 1, 1], |i| i / 12),
    ] {
        let scale = noise(dims, 4);
        let expected: Vec<f64> = wide(&plain[0]).iter().enumerate().map(|(i, y)| y * wide(&scale)[at(i)]).collect();
        both_close(LayerNormalization::new(-1, 1e-5), &[&x, &scale], &[2, 3, 4], &expected, 1e-5);
        let expected: Vec<f64> = wide(&plain[0]).iter().enumerate().map(|(i, y)| y + wide(&scale)[at(i)]).collect();
        both_close(LayerNormalization::new(-1, 1e-5), &[&x, &ones, &scale], &[2, 3, 4], &expected, 1e-5);
    }
    let wrong = node(LayerNormalization::new(-1, 1e-5), &[Some(&x), Some(&noise(&[3], 0))]);
    assert!(matches!(wrong.unwrap_err().kind(), Error::Shape { .. }));
}

#[test]
fn rows_far_from_zero_keep_their_digits() {
    let x = filled(&[2, 500], |i| 1e4 + (i % 7) as f32);
    let found = statistics(&wide(&x), 2, |i| i / 500, 1e-5);
    let expected: Vec<f64> = wide(&x).iter().enumerate().map(|(i, x)| (x - found[i / 500].0) * found[i / 500].1).collect();
    both_close(LayerNormalization::new(1, 1e-5), &[&x, &filled(&[500], |_| 1f32)], &[2, 500], &expected, 2e-3);
}

#[test]
fn floats_of_other_sizes() {
    let (x, one) = (noise(&[3, 16], 1), |_| f16::from_f32(1.0));
    let half = filled(&[3, 16], |i| f16::from_f32(of::<f32>(&x)[i]));
    let back: Vec<f64> = of::<f16>(&half).iter().map(|x| x.to_f64()).collect();
    let found = statistics(&back, 3, |i| i / 16, 1e-5);
    let expected: Vec<f64> = back.iter().enumerate().map(|(i, x)| (x - found[i / 16].0) * found[i / 16].1).collect();
    let all = node(LayerNormalization::new(1, 1e-5).with_statistics(DType::F32), &[Some(&half), Some(&filled(&[16], one))]).unwrap();
    close(&of::<f16>(&all[0]).iter().map(|x| x.to_f32()).collect::<Vec<_>>(), &expected, 1.0 / 2048.0);
    close(of(&all[1]), &found.iter().map(|f| f.0).collect::<Vec<_>>(), 1e-6);
    let brain = filled(&[3, 16], |i| bf16::from_f64(back[i]));
    let y = node(LayerNormalization::rms(1, 1e-5), &[Some(&brain), Some(&filled(&[16], |_| 1f32))]).unwrap();
    assert_eq!(y[0].dtype(), DType::F32);
    let wide = filled(&[3, 16], |i| back[i]);
    let y = node(LayerNormalization::new(1, 1e-5), &[Some(&wide), Some(&filled(&[16], |_| 1f64))]).unwrap();
    assert!(of::<f64>(&y[0]).iter().zip(&expected).all(|(y, e)| (y - e).abs() < 1e-12));
}

#[test]
fn groups_and_instances() {
    for dims in [&[2, 6, 5, 7][..], &[3, 12, 4], &[1, 6, 1, 1], &[2, 6], &[0, 6, 2, 2], &[4, 6, 60, 70]] {
        let (channels, pixels): (usize, usize) = (dims[1], dims[2..].iter().product());
        let x = noise(dims, 1);
        for groups in [1, 2, 3, 6, channels] {
            let run = channels / groups * pixels;
            let found = statistics(&wide(&x), dims[0] * groups, |i| i / run, 1e-3);
            for per_group in [false, true] {
                let length = if per_group { groups } else { channels };
                let (scale, bias) = (noise(&[length], 2), noise(&[length], 3));
                let at = |i: usize| if per_group { i / run % groups } else { i / pixels % channels };
                let value = |(i, x): (usize, &f64)| (x - found[i / run].0) * found[i / run].1 * wide(&scale)[at(i)] + wide(&bias)[at(i)];
                let expected: Vec<f64> = wide(&x).iter().enumerate().map(value).collect();
                let layer = GroupNormalization::new(groups, 1e-3);
                let layer = if per_group { layer.with_scale_per_group() } else { layer };
                both_close(layer, &[&x, &scale, &bias], dims, &expected, 1e-5);
                if groups == channels {
                    both_close(GroupNormalization::instance(1e-3), &[&x, &scale, &bias], dims, &expected, 1e-5);
                }
            }
        }
    }
    let (x, six) = (noise(&[1, 6, 2], 0), noise(&[6], 0));
    for groups in [0, 4] {
        let wrong = node(GroupNormalization::new(groups, 1e-3), &[Some(&x), Some(&six), Some(&six)]);
        assert!(matches!(wrong.unwrap_err().kind(), Error::Parameter { what: "number of groups", .. }));
    }
}

#[test]
fn batches() {
    for dims in [&[2, 70, 5, 3][..], &[3, 4, 9], &[5, 3], &[7], &[2, 3, 2, 2, 2], &[0, 3, 2, 2]] {
        let channels = dims.get(1).copied().unwrap_or(1);
        let inner: usize = dims.iter().skip(2).product();
        let (x, scale, bias, given) = (noise(dims, 1), noise(&[channels], 2), noise(&[channels], 3), noise(&[channels], 4));
        let spread = filled(&[channels], |i| of::<f32>(&given)[i].abs() + 0.25);
        let at = |i: usize| i / inner % channels;
        let expected: Vec<f64> = wide(&x)
            .iter()
            .enumerate()
            .map(|(i, x)| {
                let (w, b, m, v) = (wide(&scale)[at(i)], wide(&bias)[at(i)], wide(&given)[at(i)], wide(&spread)[at(i)]);
                (x - m) / (v + 1e-3f64).sqrt() * w + b
            })
            .collect();
        let all = [&x, &scale, &bias, &given, &spread];
        both_close(BatchNormalization::new(1e-3), &all, dims, &expected, 1e-5);
        if x.shape().elements() == 0 {
            continue;
        }
        let found = statistics(&wide(&x), channels, at, 1e-3);
        let expected: Vec<f64> = wide(&x)
            .iter()
            .enumerate()
            .map(|(i, x)| (x - found[at(i)].0) * found[at(i)].1 * wide(&scale)[at(i)] + wide(&bias)[at(i)])
            .collect();
        let training = BatchNormalization::new(1e-3).in_training(0.75);
        both_close(training, &all, dims, &expected, 1e-4);
        let outputs = node(training, &all.map(Some)).unwrap();
        let blend = |given: &Value, found: Vec<f64>| wide(given).iter().zip(found).map(|(g, f)| 0.75 * g + 0.25 * f).collect::<Vec<_>>();
        close(of(&outputs[1]), &blend(&given, found.iter().map(|f| f.0).collect()), 1e-5);
        close(of(&outputs[2]), &blend(&spread, found.iter().map(|f| f.1.powi(-2) - 1e-3).collect()), 1e-5);
    }
}

#[test]
fn lines_of_length_one() {
    let x = value(&[2, 2], vec![3f32, 4.0, -6.0, 8.0]);
    both_close(LpNormalization::new(-1, 2).unwrap(), &[&x], &[2, 2], &[0.6, 0.8, -0.6, 0.8], 1e-6);
    both_close(LpNormalization::new(0, 1).unwrap(), &[&x], &[2, 2], &[1.0 / 3.0, 1.0 / 3.0, -2.0 / 3.0, 2.0 / 3.0], 1e-6);
    both_close(LpNormalization::new(0, 2).unwrap(), &[&filled(&[3, 1], |_| 0f32)], &[3, 1], &[0.0; 3], 0.0);
    assert!(matches!(LpNormalization::new(0, 3), Err(Error::Parameter { what: "norm", .. })));
    let image = noise(&[2, 3, 4, 5], 1);
    let norm = |i: usize| (0..3).map(|c| wide(&image)[i / 60 * 60 + c * 20 + i % 20].powi(2)).sum::<f64>().sqrt();
    let expected: Vec<f64> = wide(&image).iter().enumerate().map(|(i, x)| x / norm(i)).collect();
    both_close(LpNormalization::new(1, 2).unwrap(), &[&image], &[2, 3, 4, 5], &expected, 1e-5);
}

#[test]
fn mean_and_variance_over_any_axes() {
    let x = noise(&[2, 3, 4, 5], 1);
    for (axes, classes, class) in [
        (&[0, 2, 3][..], 3, (|i| i / 20 % 3) as fn(usize) -> usize),
        (&[-1, -2], 6, |i| i / 20),
        (&[1], 40, |i| i / 60 * 20 + i % 20),
        (&[0, 1, 2, 3], 1, |_| 0),
    ] {
        let found = statistics(&wide(&x), classes, class, 0.0);
        let expected: Vec<f64> = wide(&x).iter().enumerate().map(|(i, x)| (x - found[class(i)].0) * found[class(i)].1).collect();
        both_close(MeanVarianceNormalization::new(axes), &[&x], &[2, 3, 4, 5], &expected, 1e-5);
    }
}
