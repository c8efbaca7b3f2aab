//! Training in fixed point.

use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::operator::{Binary, Gemm, MatMul};
use lowprec::nn::{Conv2d, Dim, GlobalAvgPool2d, Layer, Linear, Model};
use lowprec::quant::Rounding;
use lowprec::train::{FixedPoint, FixedPointConfig, FixedPointNetwork, Mode, Optimizer, Sgd, Trainable, Training, cross_entropy};
use lowprec::{DType, Tensor};

use crate::gradients::{numbers, tensor};

#[test]
fn numbers_are_multiples_of_the_step_inside_the_range() {
    for (integer, fraction) in [(1, 1), (2, 6), (8, 8), (4, 12), (2, 14), (10, 14)] {
        let format = FixedPoint::new(integer, fraction).unwrap();
        let (step, (lo, hi)) = (format.step(), format.range());
        assert_eq!((lo, hi), (-(2f32.powi(integer as i32 - 1)), 2f32.powi(integer as i32 - 1) - step));
        let given = numbers(3000, 1, 1.5 * hi);
        for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 3 }] {
            let mut x = given.clone();
            x.extend([f32::INFINITY, f32::NEG_INFINITY]);
            format.round(&mut x, rounding);
            assert_eq!(x.split_off(3000), [hi, lo]);
            for (&x, &before) in x.iter().zip(&given) {
                let reach = if rounding == Rounding::Nearest { 0.5 * step } else { step };
                assert_eq!(x / step, (x / step).round(), "{before}");
                assert!((lo..=hi).contains(&x) && (x - before.clamp(lo, hi)).abs() <= reach, "{before} became {x}");
            }
            let again = x.clone();
            format.round(&mut x, rounding);
            assert_eq!(x, again);
        }
    }
    let mut ties = [0.125, 0.375, -0.125, -0.375, 0.625];
    FixedPoint::new(2, 2).unwrap().round(&mut ties, Rounding::Nearest);
    assert_eq!(ties, [0.0, 0.5, 0.0, -0.5, 0.5]);
    for (integer, fraction) in [(0, 8), (1, 0), (13, 12), (u32::MAX, u32::MAX)] {
        assert!(FixedPoint::new(integer, fraction).is_err());
    }
}

#[test]
fn chance_is_right_on_average() {
    let (format, n) = (FixedPoint::new(4, 4).unwrap(), 200_000);
    for x in [0.01, 0.03125, -0.7, 1.3] {
        let mut draws = vec![x; n];
        format.round(&mut draws, Rounding::Stochastic { seed: 5 });
        let step = f64::from(format.step());
        let share = (f64::from(x) / step).rem_euclid(1.0);
        let mean = draws.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let deviation = step * (share * (1.0 - share) / n as f64).sqrt();
        assert!((mean - f64::from(x)).abs() < 4.0 * deviation, "{x}: {mean}");
    }
}

fn network(seed: u64) -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(4)]).unwrap();
    let conv = |inputs, outputs, groups, seed| {
        let geometry = Conv2dGeometry::new(inputs, outputs, [3, 3]).with_padding([1; 4]).with_groups(groups);
        Conv2d::new(geometry, tensor(&[outputs, inputs / groups, 3, 3], seed, 0.6), Some(tensor(&[outputs], seed + 1, 0.2))).unwrap()
    };
    let x = net.add("conv1", conv(1, 6, 1, seed), &[x]).unwrap();
    let x = net.add("relu1", Layer::Relu, &[x]).unwrap();
    let x = net.add("conv2", conv(6, 6, 3, seed + 2), &[x]).unwrap();
    let x = net.add("relu2", Layer::Relu, &[x]).unwrap();
    let x = net.add("gap", GlobalAvgPool2d, &[x]).unwrap();
    let x = net.add("flat", Layer::Flatten { axis: 1 }, &[x]).unwrap();
    let y = net.add("fc", Linear::new(tensor(&[2, 6], seed + 4, 0.7), Some(tensor(&[2], seed + 5, 0.1))).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

/// Images, and whether their left half is brighter.
fn images() -> (Tensor, Vec<usize>) {
    let mut x = tensor(&[120, 1, 4, 4], 31, 0.5);
    let labels: Vec<usize> = (0..120).map(|i| i % 2).collect();
    for (i, image) in x.as_mut_slice().chunks_mut(16).enumerate() {
        image.iter_mut().enumerate().filter(|(pixel, _)| (pixel % 4 < 2) == (i % 2 == 0)).for_each(|(_, x)| *x += 0.5);
    }
    (x, labels)
}

fn train(config: FixedPointConfig, threads: usize, epochs: usize) -> (FixedPointNetwork, Vec<f64>) {
    let (x, labels) = images();
    let mut network = FixedPointNetwork::new(&network(11), config).unwrap().with_threads(threads).unwrap();
    let losses = Training::new(120, 20, epochs)
        .run(&mut network, &mut Sgd::new(0.02), |network, batch| {
            let pixels: Vec<f32> = batch.rows.iter().flat_map(|&row| x.as_slice()[16 * row..][..16].to_vec()).collect();
            let labels: Vec<usize> = batch.rows.iter().map(|&row| labels[row]).collect();
            let tape = network.forward(&Tensor::new([20, 1, 4, 4], pixels)?, Mode::Train)?;
            let (loss, mut gradient) = cross_entropy(tape.output(), &labels, 0.0)?;
            gradient.as_mut_slice().iter_mut().for_each(|g| *g *= 20.0);
            Ok((loss, network.backward(&tape, &[("y", &gradient)])?))
        })
        .unwrap();
    (network, losses)
}

#[test]
fn everything_is_rounded_and_a_seed_decides_how() {
    let format = FixedPoint::new(4, 10).unwrap();
    for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 1 }] {
        let config = FixedPointConfig::new(format).with_rounding(rounding);
        let (mut one, _) = train(config, 1, 2);
        let on_grid = |x: &[f32]| x.iter().all(|x| (x / format.step()).fract() == 0.0);
        assert!(one.parameters().iter().all(|parameter| on_grid(parameter.value().as_slice())));
        let tape = one.forward(&images().0, Mode::Train).unwrap();
        let model = one.model().clone();
        assert!(["conv1", "relu2", "gap", "y", "x"].iter().all(|name| {
            let name = if *name == "y" { "fc" } else { name };
            on_grid(tape.value(&model, name).unwrap().as_slice())
        }));
        let gradients = one.backward(&tape, &[("y", &tensor(&[120, 2], 8, 1.0))]).unwrap();
        assert!((0..one.parameters().len()).all(|index| on_grid(gradients.get(index)) && !gradients.get(index).is_empty()));
    }
    let seeded = |seed| train(FixedPointConfig::new(format).with_rounding(Rounding::Stochastic { seed }), 1, 1).0.parameters().to_vec();
    assert_ne!(seeded(1), seeded(2));
}

#[test]
fn threads_draw_the_same_chance() {
    // A function is shared out among threads when each has 2^15 numbers.
    let (x, g) = (tensor(&[2000, 1, 4, 4], 5, 1.0), tensor(&[2000, 2], 8, 1.0));
    let run = |threads: usize| {
        let config = FixedPointConfig::new(FixedPoint::new(4, 10).unwrap()).with_rounding(Rounding::Stochastic { seed: 1 });
        let mut network = FixedPointNetwork::new(&network(11), config).unwrap().with_threads(threads).unwrap();
        let tape = network.forward(&x, Mode::Train).unwrap();
        let gradients = network.backward(&tape, &[("y", &g)]).unwrap();
        Sgd::new(0.02).step(&mut network, &gradients).unwrap();
        (tape.output().clone(), gradients, network.parameters().to_vec())
    };
    let one = run(1);
    assert!([2, 5].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn updates_far_below_a_weight_are_kept_by_chance() {
    // A weight of 7 in words of 24 bits: f32 has no digits left below its step, but the update is rounded before it is added.
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(1)]).unwrap();
    let y = net.add("fc", Linear::new(Tensor::full([2000, 1], 7.0).unwrap(), None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let format = FixedPoint::new(4, 20).unwrap();
    let moved = |rounding: Rounding| {
        let mut network = FixedPointNetwork::new(&model, FixedPointConfig::new(format).with_rounding(rounding)).unwrap();
        let (x, g) = (Tensor::full([1, 1], 1.0).unwrap(), Tensor::full([1, 2000], 1.0).unwrap());
        // A quarter of a step each time.
        let mut sgd = Sgd::new(0.25 * f64::from(format.step()));
        for _ in 0..8 {
            let tape = network.forward(&x, Mode::Train).unwrap();
            let gradients = network.backward(&tape, &[("y", &g)]).unwrap();
            sgd.step(&mut network, &gradients).unwrap();
        }
        let weights = network.parameters()[0].value().as_slice();
        assert!(weights.iter().all(|w| (w / format.step()).fract() == 0.0));
        weights.iter().map(|w| f64::from(7.0 - w) / f64::from(format.step())).sum::<f64>() / 2000.0
    };
    assert_eq!(moved(Rounding::Nearest), 0.0);
    // Eight times a quarter, by 16,000 draws.
    let steps = moved(Rounding::Stochastic { seed: 9 });
    assert!((steps - 2.0).abs() < 4.0 * (8.0f64 * 0.1875 / 2000.0).sqrt(), "{steps}");
}

/// Rounded once, from sums in f64.
fn rounded(format: FixedPoint, sums: &[f64]) -> Vec<f32> {
    let (step, (lo, hi)) = (f64::from(format.step()), format.range());
    sums.iter().map(|sum| ((sum / step).round_ties_even() * step).clamp(lo.into(), hi.into()) as f32).collect()
}

/// Numbers of the format.
fn fixed(format: FixedPoint, dims: &[usize], seed: u64) -> Tensor {
    let mut x = tensor(dims, seed, 1.0);
    format.round(x.as_mut_slice(), Rounding::Nearest);
    x
}

/// `Σ x · w`, and its gradients, for all groups, strides and windows, by loops in f64.
#[test]
fn wide_sums_are_those_of_plain_loops() {
    let geometry = Conv2dGeometry::new(4, 6, [3, 2]).with_groups(2).with_stride([2, 1]).with_dilation([1, 2]).with_padding([1, 2, 0, 1]);
    let (n, h, w) = (2, 6, 5);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(4), Dim::Fixed(h), Dim::Fixed(w)]).unwrap();
    let slope = net.constant("slope", Tensor::full([1], 0.5f32).unwrap()).unwrap();
    let learned = net.add("learned", Binary::PRelu, &[x, slope]).unwrap();
    let conv = Conv2d::new(geometry, tensor(&[6, 2, 3, 2], 1, 0.9), Some(tensor(&[6], 2, 0.9))).unwrap();
    let y = net.add("conv", conv, &[learned]).unwrap();
    net.output("y", y).unwrap();
    let format = FixedPoint::new(6, 12).unwrap();
    let mut network = FixedPointNetwork::new(&net.build().unwrap(), FixedPointConfig::new(format)).unwrap();
    let x = fixed(format, &[n, 4, h, w], 3);
    let tape = network.forward(&x, Mode::Train).unwrap();
    let model = network.model().clone();
    let read = tape.value(&model, "learned").unwrap();
    let [_, _, oh, ow] = <[usize; 4]>::try_from(tape.output().dims()).unwrap();
    let g = fixed(format, &[n, 6, oh, ow], 4);
    let gradients = network.backward(&tape, &[("y", &g)]).unwrap();
    let (weight, bias) = (network.parameters()[0].value().as_slice(), network.parameters()[1].value().as_slice());
    let (mut y, mut by_weight, mut by_bias) = (vec![0.0f64; g.len()], vec![0.0f64; weight.len()], vec![0.0f64; 6]);
    let mut by_read = vec![0.0f64; read.len()];
    let at = |out: usize, tap: usize, [stride, dilation, pad, size]: [usize; 4]| {
        (out * stride + tap * dilation).checked_sub(pad).filter(|&at| at < size)
    };
    for (i, o, r, c) in (0..n).flat_map(|i| (0..6).flat_map(move |o| (0..oh).flat_map(move |r| (0..ow).map(move |c| (i, o, r, c))))) {
        let out = ((i * 6 + o) * oh + r) * ow + c;
        y[out] += f64::from(bias[o]);
        by_bias[o] += f64::from(g.as_slice()[out]);
        for (k, dy, dx) in (0..2).flat_map(|k| (0..3).flat_map(move |dy| (0..2).map(move |dx| (k, dy, dx)))) {
            let (Some(row), Some(column)) = (at(r, dy, [2, 1, 1, h]), at(c, dx, [1, 2, 2, w])) else { continue };
            let place = ((i * 4 + o / 3 * 2 + k) * h + row) * w + column;
            let x = f64::from(read.as_slice()[place]);
            let filter = ((o * 2 + k) * 3 + dy) * 2 + dx;
            y[out] += x * f64::from(weight[filter]);
            by_weight[filter] += x * f64::from(g.as_slice()[out]);
            by_read[place] += f64::from(weight[filter]) * f64::from(g.as_slice()[out]);
        }
    }
    assert_eq!(tape.output().as_slice(), rounded(format, &y));
    assert_eq!(gradients.get(0), rounded(format, &by_weight));
    assert_eq!(gradients.get(1), rounded(format, &by_bias));
    // The slope sees the gradient by what was read, where that is below zero; and its own is a number of the format too.
    let by_read = rounded(format, &by_read);
    let by_slope: f64 = x.as_slice().iter().zip(&by_read).filter(|(x, _)| **x < 0.0).map(|(&x, &g)| f64::from(x) * f64::from(g)).sum();
    let step = format.step();
    assert!((gradients.get(2)[0] - by_slope as f32).abs() <= step && (gradients.get(2)[0] / step).fract() == 0.0);
}

/// `[m, k]` and `[k, n]` whose products cancel but for little: in f32 their sums would lose it.
fn cancelling([m, k, n]: [usize; 3]) -> (Vec<f32>, Vec<f32>) {
    let (step, large) = (2f32.powi(-12), 64.0);
    let side = |i: usize, s: usize, sign: f32| match s {
        0 => large,
        s if s + 1 == k => sign * large,
        s => ((i + s) % 3 + 1) as f32,
    };
    let a = (0..m * k).map(|at| side(at / k, at % k, 1.0) * if (1..k - 1).contains(&(at % k)) { step } else { 1.0 }).collect();
    let b = (0..k * n).map(|at| side(at % n, at / n, -1.0) * if (1..k - 1).contains(&(at / n)) { 0.5 } else { 1.0 }).collect();
    (a, b)
}

/// `a · b`, by loops in f64.
fn product(a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let one = |(i, j): (usize, usize)| (0..k).map(|s| f64::from(a[i * k + s]) * f64::from(b[s * n + j])).sum();
    (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(one).collect()
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
}

#[test]
fn wide_products_are_those_of_plain_loops() {
    let format = FixedPoint::new(8, 12).unwrap();
    // Gradients by operands become those of `slope · operand` with slopes of 1, one for each: numbers below zero have them.
    let run = |layer: Layer, operands: &[(&str, &Tensor)], g: &Tensor| {
        let mut net = Model::builder();
        let mut edges = Vec::new();
        for (name, value) in operands {
            let x = net.input(name, DType::F32, &vec![Dim::Any; value.dims().len()]).unwrap();
            let slopes = net.constant(&format!("{name}0"), Tensor::full(value.dims(), 1.0f32).unwrap()).unwrap();
            edges.push(net.add(&format!("{name}1"), Binary::PRelu, &[x, slopes]).unwrap());
        }
        let y = net.add("layer", layer, &edges).unwrap();
        net.output("y", y).unwrap();
        let mut network = FixedPointNetwork::new(&net.build().unwrap(), FixedPointConfig::new(format)).unwrap();
        let values: Vec<_> = operands.iter().map(|(name, value)| (*name, lowprec::Value::from((*value).clone()))).collect();
        let tape = network.run(&values.iter().map(|(name, value)| (*name, value)).collect::<Vec<_>>(), Mode::Train).unwrap();
        let gradients = network.backward(&tape, &[("y", g)]).unwrap();
        (tape.output().as_slice().to_vec(), gradients)
    };
    // Minus one times the gradient by an operand that is -1 everywhere.
    let minus = |sums: &[f64]| rounded(format, sums).iter().map(|x| -x).collect::<Vec<f32>>();
    let (m, k, n) = (3, 300, 4);
    let sizes = [m, k, n];
    let (a, b) = cancelling(sizes);
    let tensor_of = |dims: &[usize], x: &[f32]| Tensor::new(dims, x.to_vec()).unwrap();

    // Forward: a repeated left side; a transposed right one with a row that is added; a fully connected layer.
    let twice: Vec<f32> = b.iter().chain(&b).copied().collect();
    let (y, _) = run(
        MatMul::new().into(),
        &[("a", &tensor_of(&[m, k], &a)), ("b", &tensor_of(&[2, k, n], &twice))],
        &Tensor::full([2, m, n], 0.0).unwrap(),
    );
    let sums = product(&a, &b, sizes);
    assert!(sums.iter().any(|sum| *sum != 0.0 && sum.abs() < 1.0));
    assert_eq!(y, rounded(format, &[sums.clone(), sums.clone()].concat()));
    let (b_turned, c) = (transposed(&b, k, n), fixed(format, &[n], 3));
    let gemm = Gemm::new(0.5, 2.0).with_transposed(false, true);
    let operands = [("a", &tensor_of(&[m, k], &a)), ("b", &tensor_of(&[n, k], &b_turned)), ("c", &c)];
    let (y, _) = run(gemm.into(), &operands, &Tensor::full([m, n], 0.0).unwrap());
    let with_row: Vec<f64> = sums.iter().enumerate().map(|(i, sum)| 0.5 * sum + 2.0 * f64::from(c.as_slice()[i % n])).collect();
    assert_eq!(y, rounded(format, &with_row));
    let linear = Linear::new(tensor_of(&[n, k], &b_turned), Some(c.clone())).unwrap();
    let (y, _) = run(linear.into(), &[("a", &tensor_of(&[m, k], &a))], &Tensor::full([m, n], 0.0).unwrap());
    let with_row: Vec<f64> = sums.iter().enumerate().map(|(i, sum)| sum + f64::from(c.as_slice()[i % n])).collect();
    assert_eq!(y, rounded(format, &with_row));

    // Backward: `dA = dY Bᵀ` and `dB = Aᵀ dY`, the sums over what is long.
    let (m, k, n) = (3, 4, 300);
    let (g, bt) = cancelling([m, n, k]);
    let minus_a = vec![-1.0f32; m * k];
    let b = transposed(&bt, n, k);
    let (_, gradients) =
        run(MatMul::new().into(), &[("a", &tensor_of(&[m, k], &minus_a)), ("b", &tensor_of(&[k, n], &b))], &tensor_of(&[m, n], &g));
    let by_a = product(&g, &bt, [m, n, k]);
    assert_eq!(gradients.get(0), minus(&by_a));
    let half: Vec<f64> = by_a.iter().map(|sum| 0.5 * sum).collect();
    let gemm = Gemm::new(0.5, 1.0).with_transposed(false, true);
    let (_, gradients) =
        run(gemm.into(), &[("a", &tensor_of(&[m, k], &minus_a)), ("b", &tensor_of(&[n, k], &bt))], &tensor_of(&[m, n], &g));
    assert_eq!(gradients.get(0), minus(&half));
    let (m, k, n) = (300, 3, 4);
    let (at, g) = cancelling([k, m, n]);
    let minus_b = vec![-1.0f32; k * n];
    let a = transposed(&at, k, m);
    let operands = [("a", &tensor_of(&[m, k], &a)), ("b", &tensor_of(&[k, n], &minus_b))];
    let (_, gradients) = run(MatMul::new().into(), &operands, &tensor_of(&[m, n], &g));
    let by_b = product(&at, &g, [k, m, n]);
    assert_eq!(gradients.get(1), minus(&by_b));
    let (_, gradients) = run(Gemm::new(0.5, 1.0).into(), &operands, &tensor_of(&[m, n], &g));
    assert_eq!(gradients.get(1), minus(&by_b.iter().map(|sum| 0.5 * sum).collect::<Vec<_>>()));
    let (_, gradients) = run(
        Linear::new(tensor_of(&[n, k], &vec![-1.0; n * k]), None).unwrap().into(),
        &[("a", &tensor_of(&[m, k], &a))],
        &tensor_of(&[m, n], &g),
    );
    let by_weight = product(&transposed(&g, m, n), &a, [n, m, k]);
    assert_eq!(gradients.get(0), rounded(format, &by_weight));
}

#[test]
fn evaluation_draws_nothing_from_training() {
    let config = FixedPointConfig::new(FixedPoint::new(4, 6).unwrap()).with_rounding(Rounding::Stochastic { seed: 1 });
    let x = tensor(&[20, 1, 4, 4], 5, 1.0);
    let run = |evaluations: usize| {
        let mut network = FixedPointNetwork::new(&network(11), config).unwrap();
        let seen: Vec<Tensor> = (0..evaluations).map(|_| network.forward(&x, Mode::Evaluate).unwrap().output().clone()).collect();
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
        network.forward(&x, Mode::Train).unwrap().output().clone()
    };
    assert_eq!(run(0), run(3));
}

#[test]
fn sums_are_rounded_once() {
    // 1/4 · 1/4 sixteen times over is 1: rounded product by product to whole numbers it would be 0.
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(16)]).unwrap();
    let y = net.add("fc", Linear::new(Tensor::full([1, 16], 0.25).unwrap(), None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let fine = FixedPoint::new(4, 4).unwrap();
    let config = FixedPointConfig::new(fine).with_values(FixedPoint::new(8, 2).unwrap());
    let mut network = FixedPointNetwork::new(&net.build().unwrap(), config).unwrap();
    let tape = network.forward(&Tensor::full([1, 16], 0.25).unwrap(), Mode::Evaluate).unwrap();
    assert_eq!(tape.output().as_slice(), [1.0]);
}

#[test]
fn chance_keeps_small_updates_alive() {
    // Updates are mostly below half a step of 1/256.
    let format = FixedPoint::new(6, 8).unwrap();
    let last = |rounding| *train(FixedPointConfig::new(format).with_rounding(rounding), 1, 30).1.last().unwrap();
    let (nearest, chance) = (last(Rounding::Nearest), last(Rounding::Stochastic { seed: 2 }));
    assert!(chance < 0.8 * nearest && chance < 0.4, "{chance} by chance, {nearest} to the nearest");
}
