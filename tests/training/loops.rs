//! Optimizers against their formulas, the loop, checkpoints.

use std::ops::ControlFlow;

use lowprec::io::safetensors;
use lowprec::nn::operator::BatchNormalization;
use lowprec::nn::{BatchNorm2d, Dim, Layer, Linear, Model, StateDict};
use lowprec::quant::Rounding;
use lowprec::train::{
    Adam, FixedPoint, FixedPointConfig, FixedPointNetwork, Mode, Network, Optimizer, ParameterKind, QatConfig, Schedule, Sgd, Trainable,
    Training, checkpoint, cross_entropy, mean_squared_error, prepare_qat, resume,
};
use lowprec::{DType, Error, Progress, Tensor, Value};

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

/// The same with a batch norm of rows.
fn normed() -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)]).unwrap();
    let x = net.add("hidden", Linear::new(tensor(&[16, 2], 1, 1.0), None).unwrap(), &[x]).unwrap();
    let mut edges = vec![x];
    for (name, value) in [("scale", 1.0f32), ("shift", 0.0), ("mean", 0.0), ("variance", 1.0)] {
        edges.push(net.constant(name, Tensor::full([16], value).unwrap()).unwrap());
    }
    let x = net.add("norm", BatchNormalization::new(1e-5), &edges).unwrap();
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

fn training(epochs: usize) -> Training<'static> {
    Training::new(200, 16, epochs).with_seed(3).with_schedule(Schedule::Cosine)
}

fn learn<N: Trainable>(network: &mut N, optimizer: &mut dyn Optimizer, training: Training<'_>) -> lowprec::Result<Vec<f64>> {
    let (x, labels) = quadrants();
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
        let losses = learn(&mut network, optimizer, training(60)).unwrap();
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
        optimizer.step(&mut network, &gradients).unwrap();
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

/// A file and back.
fn stored(state: &[(String, Value)]) -> StateDict {
    let bytes = safetensors::write(state.iter().map(|(name, value)| (name.as_str(), value)), &Default::default()).unwrap();
    safetensors::read(&bytes).unwrap()
}

/// A training that is stopped in the middle of an epoch and goes on from a file, beside one that is not.
fn stops_and_goes_on<N: Trainable>(make: impl Fn() -> N, optimizer: impl Fn() -> Box<dyn Optimizer>, at: impl Fn(&mut N, usize)) {
    let (mut whole, mut steps) = (make(), optimizer());
    let total = training(3).total_steps();
    assert_eq!(total, 39);
    let (stop, mut losses) = (17, Vec::new());
    for part in [0..stop, stop..total] {
        at(&mut whole, part.start);
        losses.extend(learn(&mut whole, &mut *steps, training(3).with_steps(part)).unwrap());
    }
    let (mut first, mut optimizer_of_first) = (make(), optimizer());
    at(&mut first, 0);
    let mut own = learn(&mut first, &mut *optimizer_of_first, training(3).with_steps(0..stop)).unwrap();
    at(&mut first, stop);
    let mut state = stored(&checkpoint(&first, &*optimizer_of_first, stop));
    drop((first, optimizer_of_first));

    let (mut other, mut optimizer) = (make(), optimizer());
    let step = resume(&mut other, &mut *optimizer, &mut state).unwrap();
    state.finish().unwrap();
    own.extend(learn(&mut other, &mut *optimizer, training(3).with_steps(step..total)).unwrap());
    assert_eq!((own, other.parameters()), (losses, whole.parameters()));
    assert_eq!(other.state(), whole.state());
}

#[test]
fn checkpoints_go_on_where_they_stopped() {
    let sgd = || Box::new(Sgd::new(0.1).with_momentum(0.9)) as Box<dyn Optimizer>;
    let adam = || Box::new(Adam::new(0.01)) as Box<dyn Optimizer>;
    let network = || Network::new(&perceptron()).unwrap();
    stops_and_goes_on(network, sgd, |_, _| {});
    // Frozen norms stay frozen.
    stops_and_goes_on(
        || Network::new(&normed()).unwrap(),
        adam,
        |network, step| {
            if step > 0 {
                network.freeze_norms();
            }
        },
    );
    stops_and_goes_on(network, adam, |_, _| {});
    // Chance is drawn on from where it was.
    let format = FixedPointConfig::new(FixedPoint::new(6, 10).unwrap()).with_rounding(Rounding::Stochastic { seed: 4 });
    stops_and_goes_on(|| FixedPointNetwork::new(&perceptron(), format).unwrap(), sgd, |_, _| {});
    // So are averages of ranges, and frozen they stay.
    let qat = |config: QatConfig| move || prepare_qat(&perceptron(), &config).unwrap();
    stops_and_goes_on(qat(QatConfig::observed()), adam, |_, _| {});
    stops_and_goes_on(qat(QatConfig::bits(4)), adam, |_, _| {});
    stops_and_goes_on(qat(QatConfig::observed()), adam, |qat, step| {
        if step > 0 {
            qat.freeze_observers();
        }
    });
    // What was trained so is what its integers compute.
    let mut trained = qat(QatConfig::bits(4))();
    learn(&mut trained, &mut *adam(), training(3)).unwrap();
    let agreement = trained.agreement(&[("x", &quadrants().0.into())]).unwrap();
    assert!(agreement.largest <= 1 && agreement.unmatched.is_empty() && agreement.codes > 0, "{agreement:?}");
    // The parts are those of the whole that nobody stopped.
    let (mut whole, mut parts) = (network(), network());
    learn(&mut whole, &mut *adam(), training(3)).unwrap();
    let mut steps = adam();
    [0..1, 1..20, 20..39].into_iter().for_each(|part| drop(learn(&mut parts, &mut *steps, training(3).with_steps(part)).unwrap()));
    assert_eq!(parts.parameters(), whole.parameters());
}

/// Named tensors of a checkpoint.
type Tensors = Vec<(String, Value)>;

#[test]
fn a_wrong_checkpoint_changes_nothing() {
    let make = || (Network::new(&perceptron()).unwrap(), Adam::new(0.1));
    let (mut network, mut adam) = make();
    learn(&mut network, &mut adam, training(1)).unwrap();
    let good = checkpoint(&network, &adam, 13);
    let wrong = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        let (mut fresh, mut optimizer) = make();
        let mut state = StateDict::new(tensors).unwrap();
        let kept = state.clone();
        let error = resume(&mut fresh, &mut optimizer, &mut state).unwrap_err();
        assert_eq!((fresh.parameters(), optimizer.state(), state), (make().0.parameters(), Adam::new(0.1).state(), kept), "{error}");
        error
    };
    let without = |name: &'static str| move |tensors: &mut Tensors| tensors.retain(|(other, _)| other != name);
    for name in ["network.hidden.weight", "optimizer.steps", "step"] {
        assert!(matches!(wrong(&without(name)), Error::Unknown { .. }), "{name}");
    }
    let small = Value::from(Tensor::full([3], 0.0f32).unwrap());
    let replaced = |name: &'static str, value: Value| {
        move |tensors: &mut Vec<(String, Value)>| {
            tensors.iter_mut().filter(|(other, _)| other == name).for_each(|(_, to)| *to = value.clone())
        }
    };
    assert!(matches!(wrong(&replaced("optimizer.mean.0", small.clone())), Error::Shape { .. }));
    assert!(matches!(wrong(&replaced("step", small.clone())), Error::Parameter { .. }));
    for name in ["network.more", "optimizer.more"] {
        assert!(matches!(wrong(&|tensors| tensors.push((name.into(), small.clone()))), Error::Unused { .. }));
    }
    // The memory of another optimizer is not lost without a word.
    let (mut fresh, mut sgd) = (make().0, Sgd::new(0.1).with_momentum(0.9));
    let error = resume(&mut fresh, &mut sgd, &mut StateDict::new(good.clone()).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Unused { .. }) && sgd.state().is_empty(), "{error}");
    // Nor is a network that has gone wrong left half loaded.
    fresh.parameters_mut()[0].value_mut().as_mut_slice()[0] = f32::NAN;
    let before: Vec<u32> = fresh.parameters()[0].value().as_slice().iter().map(|x| x.to_bits()).collect();
    assert!(matches!(resume(&mut fresh, &mut sgd, &mut StateDict::new(good.clone()).unwrap()).unwrap_err(), Error::Unused { .. }));
    assert!(fresh.parameters()[0].value().as_slice().iter().map(|x| x.to_bits()).eq(before));
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
    let error = learn(&mut network, &mut sgd, training(3).with_progress(progress)).unwrap_err();
    assert!(matches!(error, Error::Cancelled { stage: "train", done: 15, total: 39 }), "{error}");
    assert_eq!((seen.len(), seen[13].2.as_str(), sgd.rate()), (16, "epoch 1", 0.1));
    assert!(matches!(Training::new(0, 1, 1).run(&mut network, &mut sgd, |_, _| unreachable!()).unwrap_err(), Error::Empty { .. }));
    assert!(matches!(Training::new(1, 0, 1).run(&mut network, &mut sgd, |_, _| unreachable!()).unwrap_err(), Error::Parameter { .. }));
}
