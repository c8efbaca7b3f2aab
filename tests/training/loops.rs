//! Optimizers against their formulas, the loop, checkpoints.

use std::ops::ControlFlow;

use lowprec::io::safetensors;
use lowprec::nn::{BatchNorm2d, Dim, Layer, Linear, Model};
use lowprec::train::{
    Adam, Mode, Network, Optimizer, ParameterKind, Schedule, Sgd, Trainable, Training, cross_entropy, mean_squared_error,
};
use lowprec::{DType, Error, Progress, Tensor};

use crate::gradients::tensor;

fn perceptron() -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)]).unwrap();
    let x = net.add("hidden", Linear::new(tensor(&[16, 2], 1, 1.0), Some(tensor(&[16], 2, 0.5))).unwrap(), &[x]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    let y = net.add("head", Linear::new(tensor(&[2, 16], 3, 0.5), Some(tensor(&[2], 4, 0.1))).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

/// Points, and whether their coordinates have the same sign.
fn quadrants() -> (Tensor, Vec<usize>) {
    let x = tensor(&[200, 2], 5, 1.0);
    let labels = x.as_slice().chunks(2).map(|point| usize::from(point[0] * point[1] > 0.0)).collect();
    (x, labels)
}

fn learn(network: &mut Network, optimizer: &mut dyn Optimizer, epochs: usize, progress: Progress<'_>) -> lowprec::Result<Vec<f64>> {
    let (x, labels) = quadrants();
    let training = Training::new(200, 16, epochs).with_seed(3).with_schedule(Schedule::Cosine).with_progress(progress);
    training.run(network, optimizer, |network, batch| {
        let points: Vec<f32> = batch.rows.iter().flat_map(|&row| x.as_slice()[2 * row..][..2].to_vec()).collect();
        let labels: Vec<usize> = batch.rows.iter().map(|&row| labels[row]).collect();
        let tape = network.forward(&Tensor::new([labels.len(), 2], points)?, Mode::Train)?;
        let (loss, gradient) = cross_entropy(tape.output(), &labels, 0.0)?;
        Ok((loss, network.backward(&tape, &[("y", &gradient)])?))
    })
}

#[test]
fn what_no_line_divides_is_learned() {
    let (x, labels) = quadrants();
    let optimizers: [&mut dyn Optimizer; 2] = [&mut Sgd::new(0.3).with_momentum(0.9).with_nesterov(true), &mut Adam::new(0.02)];
    for optimizer in optimizers {
        let mut network = Network::new(&perceptron()).unwrap();
        let rate = optimizer.rate();
        let losses = learn(&mut network, optimizer, 60, Progress::silent()).unwrap();
        assert!(losses[59] < 0.1 && losses[0] > 0.4, "{losses:?}");
        assert_eq!(optimizer.rate(), rate);
        let y = network.to_model().unwrap().forward(&x).unwrap();
        let right = y.as_slice().chunks(2).zip(&labels).filter(|(y, label)| usize::from(y[1] > y[0]) == **label).count();
        assert!(right >= 190, "{right} of 200");
        // The model that it started from is untouched.
        assert_eq!(network.model().forward(&x).unwrap().as_slice(), perceptron().forward(&x).unwrap().as_slice());
    }
}

#[test]
fn a_seed_decides_everything() {
    let train = |seed: u64| {
        let mut network = Network::new(&perceptron()).unwrap();
        let (x, labels) = quadrants();
        let training = Training::new(200, 32, 2).with_seed(seed);
        training
            .run(&mut network, &mut Sgd::new(0.1), |network, batch| {
                let points: Vec<f32> = batch.rows.iter().flat_map(|&row| x.as_slice()[2 * row..][..2].to_vec()).collect();
                let labels: Vec<usize> = batch.rows.iter().map(|&row| labels[row]).collect();
                let tape = network.forward(&Tensor::new([labels.len(), 2], points)?, Mode::Train)?;
                let (loss, gradient) = cross_entropy(tape.output(), &labels, 0.0)?;
                Ok((loss, network.backward(&tape, &[("y", &gradient)])?))
            })
            .unwrap();
        network.parameters().to_vec()
    };
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
}

/// One parameter, whose gradient is chosen by the target: of `(w - t)²` it is `2 (w - t)`.
fn steps(optimizer: &mut dyn Optimizer, count: usize) -> f32 {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(1)]).unwrap();
    let y = net.add("w", Linear::new(Tensor::full([1, 1], 1.0).unwrap(), None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let mut network = Network::new(&net.build().unwrap()).unwrap();
    let (one, target) = (Tensor::full([1, 1], 1.0).unwrap(), Tensor::full([1, 1], 3.0).unwrap());
    for _ in 0..count {
        let tape = network.forward(&one, Mode::Train).unwrap();
        let (_, gradient) = mean_squared_error(tape.output(), &target).unwrap();
        let gradients = network.backward(&tape, &[("y", &gradient)]).unwrap();
        optimizer.step(network.parameters_mut(), &gradients).unwrap();
    }
    network.parameters()[0].value().as_slice()[0]
}

#[test]
fn steps_follow_the_formulas() {
    // g = 2 (w - 3) + 0.5 w, v = 0.9 v + g, w -= 0.1 v: by hand from w = 1.
    let near = |got: f32, expected: f64| assert!((f64::from(got) - expected).abs() < 1e-6, "{got}, {expected}");
    let by_hand = |nesterov: bool| {
        let (mut w, mut v) = (1.0f64, 0.0);
        for _ in 0..3 {
            let g = 2.0 * (w - 3.0) + 0.5 * w;
            v = 0.9 * v + g;
            w -= 0.1 * if nesterov { g + 0.9 * v } else { v };
        }
        w
    };
    let sgd = || Sgd::new(0.1).with_momentum(0.9).with_decay(0.5);
    near(steps(&mut sgd(), 3), by_hand(false));
    near(steps(&mut sgd().with_nesterov(true), 3), by_hand(true));
    let (mut w, mut m, mut v) = (1.0f64, 0.0, 0.0);
    for t in 1..=3 {
        let g = 2.0 * (w - 3.0);
        w -= 0.1 * 0.2 * w;
        (m, v) = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g);
        w -= 0.1 * (m / (1.0 - 0.9f64.powi(t))) / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
    }
    near(steps(&mut Adam::new(0.1).with_decay(0.2), 3), w);
    near(steps(&mut sgd().with_factor(ParameterKind::Weight, 0.0), 3), 1.0);
}

#[test]
fn checkpoints_go_on_where_they_stopped() {
    for make in [|| Box::new(Sgd::new(0.1).with_momentum(0.9)) as Box<dyn Optimizer>, || Box::new(Adam::new(0.01)) as Box<dyn Optimizer>] {
        let mut network = Network::new(&perceptron()).unwrap();
        let mut optimizer = make();
        learn(&mut network, &mut *optimizer, 2, Progress::silent()).unwrap();
        let bytes = |state: &[(String, lowprec::Value)]| {
            safetensors::write(state.iter().map(|(name, value)| (name.as_str(), value)), &Default::default()).unwrap()
        };
        let files = [bytes(&network.state()), bytes(&optimizer.state())];
        let (mut other, mut again) = (Network::new(&perceptron()).unwrap(), make());
        other.load_state(&mut safetensors::read(&files[0]).unwrap()).unwrap();
        again.load_state(&mut safetensors::read(&files[1]).unwrap(), other.parameters()).unwrap();
        assert_eq!(other.parameters(), network.parameters());
        for (network, optimizer) in [(&mut network, &mut optimizer), (&mut other, &mut again)] {
            learn(network, &mut **optimizer, 1, Progress::silent()).unwrap();
        }
        assert_eq!(other.parameters(), network.parameters());
    }
    let mut network = Network::new(&perceptron()).unwrap();
    let before = network.parameters().to_vec();
    let mut state = safetensors::read(
        &safetensors::write([("hidden.weight", &Tensor::full([16, 2], 0.0).unwrap().into())], &Default::default()).unwrap(),
    )
    .unwrap();
    let error = network.load_state(&mut state).unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error}");
    assert_eq!(network.parameters(), before);
    assert!(Adam::new(0.1).load_state(&mut Default::default(), &before).is_err());
}

#[test]
fn running_statistics_move_and_freeze() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2), Dim::Any, Dim::Any]).unwrap();
    let one = |value| Tensor::full([2], value).unwrap();
    let y = net.add("norm", BatchNorm2d::new(one(1.0), one(0.0), one(0.0), one(1.0), 1e-5).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let mut network = Network::new(&net.build().unwrap()).unwrap();
    let x = Tensor::new([2, 2, 1, 2], vec![1.0, 2.0, 0.0, 0.0, 3.0, 6.0, 0.0, 4.0]).unwrap();
    network.forward(&x, Mode::Evaluate).unwrap();
    let statistics = |network: &Network| [network.parameters()[2].value().clone(), network.parameters()[3].value().clone()];
    assert_eq!(statistics(&network), [one(0.0), one(1.0)]);
    network.forward(&x, Mode::Train).unwrap();
    let [mean, variance] = statistics(&network);
    assert_eq!(mean.as_slice(), [0.3, 0.1]);
    // 0.9 + 0.1 · Σ (x - mean)² / 3
    let expected = [0.9 + 0.1 * (4.0 + 1.0 + 0.0 + 9.0) / 3.0, 0.9 + 0.1 * (1.0 + 1.0 + 1.0 + 9.0) / 3.0];
    assert!(variance.as_slice().iter().zip(expected).all(|(got, expected): (&f32, f64)| (f64::from(*got) - expected).abs() < 1e-6));
    network.freeze_norms();
    let frozen = network.forward(&x, Mode::Train).unwrap();
    assert_eq!(statistics(&network), [mean, variance]);
    let model = network.to_model().unwrap();
    crate::close("frozen", frozen.output().as_slice(), model.forward(&x).unwrap().as_slice(), 1e-6);
    // Of one pixel there is no variance.
    network = Network::new(&model).unwrap();
    assert!(matches!(
        network.forward(&x.slice(0, 0..1).unwrap().slice(3, 0..1).unwrap(), Mode::Train).unwrap_err().kind(),
        Error::Shape { .. }
    ));
}

#[test]
fn progress_is_reported_and_can_be_cancelled() {
    let mut network = Network::new(&perceptron()).unwrap();
    let mut seen = Vec::new();
    let progress = Progress::new(|step| {
        seen.push((step.done, step.total, step.item.to_owned()));
        if step.done == 15 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let mut sgd = Sgd::new(0.1);
    let error = learn(&mut network, &mut sgd, 3, progress).unwrap_err();
    assert!(matches!(error, Error::Cancelled { stage: "train", done: 15, total: 39 }), "{error}");
    assert_eq!((seen.len(), seen[13].2.as_str(), sgd.rate()), (16, "epoch 1", 0.1));
    assert!(matches!(Training::new(0, 1, 1).run(&mut network, &mut sgd, |_, _| unreachable!()).unwrap_err(), Error::Empty { .. }));
    assert!(matches!(Training::new(1, 0, 1).run(&mut network, &mut sgd, |_, _| unreachable!()).unwrap_err(), Error::Parameter { .. }));
}
