//! Gradients of plain operators, and of an attention block, against PyTorch's.

use lowprec::nn::operator::{
    BatchNormalization, Binary, DepthOrder, DepthToSpace, Dropout, Expand, Gather, GatherElements, GatherNd, Gemm, GlobalPool, Identity,
    LayerNormalization, MatMul, Pad, PadMode, Pool, Pow, Reduce, Reduction, Reshape, ReverseSequence, Slice, Softmax, SpaceToDepth, Split,
    Squeeze, Tile, Transpose, Trilu, Unary, Unsqueeze, Variadic, Where, Windows,
};
use lowprec::nn::{Dim, Layer, Linear, Model};
use lowprec::train::{
    Adam, FixedPoint, FixedPointConfig, FixedPointNetwork, Mode, Network, Optimizer, QatConfig, Trainable, mean_squared_error, prepare_qat,
};
use lowprec::{DType, Error, Tensor, Value, metrics};

use crate::Fixture;
use crate::gradients::{check, check_model, check_with, tensor};

fn integers(list: &[i64]) -> Value {
    Tensor::new([list.len()], list.to_vec()).unwrap().into()
}

#[test]
fn functions_with_ends_are_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let functions = [
        ("tan", Unary::Tan),
        ("asin", Unary::Asin),
        ("acos", Unary::Acos),
        ("atanh", Unary::Atanh),
        ("sinh", Unary::Sinh),
        ("cosh", Unary::Cosh),
        ("asinh", Unary::Asinh),
        ("thresholded_relu", Unary::ThresholdedRelu { alpha: 0.8 }),
        ("swish", Unary::Swish { alpha: 1.7 }),
        ("hard_sigmoid_steep", Unary::HardSigmoid { alpha: 0.4, beta: 0.3 }),
    ];
    for (case, function) in functions {
        check(&fixture, case, Mode::Train, &["x"], &[], function);
    }
    check(&fixture, "acosh", Mode::Train, &["input"], &[], Unary::Acosh);
}

#[test]
fn windows_of_all_kinds_are_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let one = |case: &str, layer: Layer| check(&fixture, case, Mode::Train, &["x"], &[], layer);
    let windows = |strides: [usize; 2], pads: [usize; 4]| Windows::new().with_strides(strides).with_pads(pads);
    one("max_pool_dilated", Pool::max([3, 2]).with_windows(windows([1, 2], [1, 0, 1, 0]).with_dilations([2, 2])).into());
    one("max_pool_ceil", Pool::max([3, 3]).with_windows(windows([2, 2], [0; 4]).with_ceil_mode(true)).into());
    one("avg_pool_ceil", Pool::average([3, 3]).with_windows(windows([2, 2], [1; 4]).with_ceil_mode(true)).into());
    one("avg_pool_padded", Pool::average([3, 2]).with_windows(windows([2, 1], [1, 1, 1, 1])).with_count_include_pad(true).into());
    one("global_max_pool", GlobalPool::max().into());
    one("global_max_of_lines", GlobalPool::max().into());
    one("global_avg_of_blocks", GlobalPool::average().into());
}

#[test]
fn products_and_powers_are_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    for case in ["matmul_row", "matmul_column"] {
        check(&fixture, case, Mode::Train, &["input", "other"], &[], MatMul::new());
    }
    check(&fixture, "gemm", Mode::Train, &["a", "b", "c"], &[], Gemm::new(0.5, 2.0));
    check(&fixture, "gemm_turned", Mode::Train, &["a", "b", "c"], &[], Gemm::new(0.5, 2.0).with_transposed(true, true));
    check(&fixture, "pow", Mode::Train, &["input", "exponent"], &[], Pow);
    let two = ("two", Value::from(Tensor::full([1], 2.0f32).unwrap()));
    check_with(&fixture, "square", Mode::Train, &["x"], &[two], &[], Pow.into());
    check_with(&fixture, "square", Mode::Train, &["x"], &[("two", integers(&[2]))], &[], Pow.into());
    for (case, function) in [("sum_of", Variadic::Sum), ("mean_of", Variadic::Mean), ("max_of", Variadic::Max), ("min_of", Variadic::Min)] {
        check(&fixture, case, Mode::Train, &["a", "b", "c"], &[], function);
    }
}

#[test]
fn equals_share_their_gradient() {
    let fixture = Fixture::new("gradients.safetensors");
    let mut net = Model::builder();
    let operands = ["input", "other"].map(|name| net.input(name, DType::F32, &[Dim::Any]).unwrap());
    let y = net.add("max", Variadic::Max, &operands).unwrap();
    net.output("y", y).unwrap();
    let mut network = Network::new(&net.build().unwrap()).unwrap().with_input_gradients().unwrap();
    let floats = |name: &str| fixture.floats(&format!("max_of_equals/{name}"));
    let values = ["input", "other"].map(|name| (name, Value::from(floats(name))));
    let tape = network.run(&values.each_ref().map(|(name, value)| (*name, value)), Mode::Train).unwrap();
    let gradients = network.backward(&tape, &[("y", &floats("g"))]).unwrap();
    for name in ["input", "other"] {
        assert_eq!(gradients.input(name).unwrap().as_slice(), floats(&format!("d.{name}")).as_slice());
    }
}

#[test]
fn what_moves_takes_its_gradient_back() {
    let fixture = Fixture::new("gradients.safetensors");
    let with = |case: &str, constants: &[(&str, Value)], layer: Layer| {
        check_with(&fixture, case, Mode::Train, &["x"], constants, &[], layer);
    };
    with("slice", &[], Slice::new().with_range([1, -3], [5, 9]).with_axes([1, 2]).with_steps([2, 1]).into());
    with("gather", &[("indices", integers(&[1, 3, -3]))], Gather::new(1).into());
    with("expand", &[("shape", integers(&[2, 3, 4]))], Expand::new().into());
    with("tile", &[], Tile::new().with_repeats([2, 3]).into());
    let constant = Tensor::full([1], 0.5f32).unwrap().reshape([0usize; 0]).unwrap();
    with("pad", &[], Pad::new(PadMode::Constant).with_pads([0, 1, 1, 2]).with_value(constant.clone()).into());
    with("pad", &[("pads", integers(&[0, 1, 1, 2])), ("value", constant.into())], Pad::new(PadMode::Constant).into());
    with("pad_reflected", &[], Pad::new(PadMode::Reflect).with_pads([0, 2, 0, 1]).into());
    with("pad_edge", &[], Pad::new(PadMode::Edge).with_pads([0, 2, 0, 1]).into());
    with("pad_wrapped", &[], Pad::new(PadMode::Wrap).with_pads([0, 2, 0, 1]).into());
    with("reverse_sequence", &[("lengths", integers(&[2, 4]))], ReverseSequence::new(0).unwrap().into());
    with("trilu", &[], Trilu::new(false).into());
    with("triu", &[], Trilu::new(true).into());
    let indices = Value::from(Tensor::new([2, 2], vec![0i64, 1, 2, 0]).unwrap());
    with("gather_nd", &[("indices", indices)], GatherNd::new(0).into());
    with("space_to_depth", &[], SpaceToDepth::new(2).unwrap().with_order(DepthOrder::ChannelFirst).into());
    with("dropout", &[], Dropout::new().into());
    with("depth_to_space", &[], DepthToSpace::new(2).unwrap().with_order(DepthOrder::ChannelFirst).into());
    with("squeeze", &[], Squeeze::new().with_axes([1]).into());
    with("unsqueeze", &[], Unsqueeze::new().with_axes([1]).into());
    check(&fixture, "where", Mode::Train, &["condition", "a", "b"], &[], Where);
    check(&fixture, "gather_elements", Mode::Train, &["x", "indices"], &[], GatherElements::new(1));

    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any; 3]).unwrap();
    let parts = net.add_node("split", &[Some("left"), Some("right")], Split::new(1, 2).with_lengths([2, 3]).into(), &[Some(x)]).unwrap();
    let sum = || Reduce::new(Reduction::Sum).with_axes([1]).with_kept_axes(false);
    let a = net.add("a", sum(), &[parts[0]]).unwrap();
    let b = net.add("b", sum(), &[parts[1]]).unwrap();
    let two = net.constant("two", Tensor::full([1], 2.0f32).unwrap()).unwrap();
    let a = net.add("twice", Binary::Mul, &[a, two]).unwrap();
    let y = net.add("difference", Binary::Sub, &[a, b]).unwrap();
    let y = net.add("itself", Identity, &[y]).unwrap();
    net.output("y", y).unwrap();
    check_model(&fixture, "split", Mode::Train, &["x"], &[], &net.build().unwrap());
}

#[test]
fn batch_norms_of_any_rank_learn_their_constants() {
    let fixture = Fixture::new("gradients.safetensors");
    for case in ["batch_norm_rows", "batch_norm_lines", "batch_norm_images"] {
        let constants = ["weight", "bias", "mean", "variance"].map(|name| (name, Value::from(fixture.floats(&format!("{case}/{name}")))));
        let layer: Layer = BatchNormalization::new(1e-5).into();
        check_with(&fixture, case, Mode::Train, &["x"], &constants, &["weight", "bias"], layer.clone());

        // Statistics move a tenth of the way in training, stay when frozen, and are in the model.
        let mut net = Model::builder();
        let x = fixture.floats(&format!("{case}/x"));
        let mut edges = vec![net.input("x", DType::F32, &vec![Dim::Any; x.dims().len()]).unwrap()];
        edges.extend(constants.iter().map(|(name, value)| net.constant(name, value.clone()).unwrap()));
        let y = net.add("norm", layer, &edges).unwrap();
        net.output("y", y).unwrap();
        let mut network = Network::new(&net.build().unwrap()).unwrap();
        let before = network.parameters().to_vec();
        network.forward(&x, Mode::Train).unwrap();
        let moved: Vec<bool> = network.parameters().iter().zip(&before).map(|(now, before)| now != before).collect();
        assert_eq!(moved, [false, false, true, true]);
        let pixels: usize = x.dims()[2..].iter().product();
        let channel = |c: usize| x.as_slice().iter().enumerate().filter(move |(i, _)| i / pixels % 3 == c).map(|(_, &x)| f64::from(x));
        for c in 0..3 {
            let n = channel(c).count() as f64;
            let mean = channel(c).sum::<f64>() / n;
            let variance = channel(c).map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
            for (place, batch) in [(2, mean), (3, variance)] {
                let expected = 0.9 * f64::from(before[place].value().as_slice()[c]) + 0.1 * batch;
                assert!((f64::from(network.parameters()[place].value().as_slice()[c]) - expected).abs() < 1e-6, "{case}");
            }
        }
        let own = network.forward(&x, Mode::Evaluate).unwrap();
        network.freeze_norms();
        let kept = network.parameters().to_vec();
        assert_eq!(network.forward(&x, Mode::Train).unwrap().output().as_slice(), own.output().as_slice());
        assert_eq!(network.parameters(), kept);
        let model = network.to_model().unwrap();
        assert!(metrics::relative_error(model.forward(&x).unwrap().as_slice(), own.output().as_slice()).unwrap() < 1e-6);
    }
}

/// The fixture's attention block: two heads of four, values that several layers read.
fn block(fixture: &Fixture) -> Model {
    let floats = |name: &str| fixture.floats(&format!("block/{name}"));
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(5), Dim::Fixed(8)]).unwrap();
    let norm = || LayerNormalization::new(-1, 1e-5);
    let [scale, shift, mask] = ["scale", "shift", "mask"].map(|name| net.constant(name, floats(name)).unwrap());
    let by = net.constant("by", Tensor::full([1], 0.5f32).unwrap()).unwrap();
    let heads = net.constant("heads", integers(&[0, 5, 2, 4])).unwrap();
    let rows = net.constant("rows", integers(&[0, 5, 8])).unwrap();
    let linear = |weight: &str, bias: Option<&str>| Linear::new(floats(weight), bias.map(floats)).unwrap();
    let normed = net.add("norm1", norm(), &[x, scale, shift]).unwrap();
    let qkv = net.add("qkv", linear("qkv", None), &[normed]).unwrap();
    let parts = net.add_node("split", &[Some("q"), Some("k"), Some("v")], Split::new(-1, 3).into(), &[Some(qkv)]).unwrap();
    let mut head = |part: usize, axes: [i64; 4]| {
        let x = net.add(&format!("heads{part}"), Reshape::new(), &[parts[part], heads]).unwrap();
        net.add(&format!("turned{part}"), Transpose::new().with_perm(axes), &[x]).unwrap()
    };
    let (q, k, v) = (head(0, [0, 2, 1, 3]), head(1, [0, 2, 3, 1]), head(2, [0, 2, 1, 3]));
    let scores = net.add("scores", MatMul::new(), &[q, k]).unwrap();
    let scores = net.add("scaled", Binary::Mul, &[scores, by]).unwrap();
    let scores = net.add("masked", Binary::Add, &[scores, mask]).unwrap();
    let shares = net.add("shares", Softmax::new(-1), &[scores]).unwrap();
    let y = net.add("values", MatMul::new(), &[shares, v]).unwrap();
    let y = net.add("together", Transpose::new().with_perm([0, 2, 1, 3]), &[y]).unwrap();
    let y = net.add("joined", Reshape::new(), &[y, rows]).unwrap();
    let y = net.add("out", linear("out", None), &[y]).unwrap();
    let x = net.add("sum1", Layer::Add, &[x, y]).unwrap();
    let y = net.add("norm2", norm(), &[x, scale, shift]).unwrap();
    let y = net.add("up", linear("up", Some("up_bias")), &[y]).unwrap();
    let y = net.add("gelu", Unary::Gelu, &[y]).unwrap();
    let y = net.add("down", linear("down", None), &[y]).unwrap();
    let y = net.add("sum2", Layer::Add, &[x, y]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

#[test]
fn an_attention_block_is_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let learned = ["qkv", "out", "up", "up_bias", "down", "scale", "shift"];
    check_model(&fixture, "block", Mode::Train, &["x"], &learned, &block(&fixture));
}

#[test]
fn an_attention_block_trains_in_every_arithmetic() {
    let fixture = Fixture::new("gradients.safetensors");
    let model = block(&fixture);
    let x = tensor(&[16, 5, 8], 3, 1.5);
    // The running means of each sequence: what attention under this mask can compute.
    let y = Tensor::new(
        x.dims(),
        x.as_slice()
            .chunks(40)
            .flat_map(|rows| (0..40).map(|at| (0..=at / 8).map(|row| rows[row * 8 + at % 8]).sum::<f32>() / (at / 8 + 1) as f32))
            .collect(),
    )
    .unwrap();
    let train = |network: &mut dyn Trainable| {
        let mut adam = Adam::new(0.01);
        let mut losses = Vec::new();
        for _ in 0..60 {
            let tape = network.forward(&x, Mode::Train).unwrap();
            let (loss, gradient) = mean_squared_error(tape.output(), &y).unwrap();
            losses.push(loss);
            let gradients = network.backward(&tape, &[("y", &gradient)]).unwrap();
            adam.step(network, &gradients).unwrap();
        }
        (losses[0], losses[59])
    };
    let (first, last) = train(&mut Network::new(&model).unwrap());
    assert!(last < 0.25 * first, "float: {first} to {last}");
    let mut qat = prepare_qat(&model, &QatConfig::bits(8)).unwrap();
    let (first, last) = train(&mut qat);
    assert!(last < 0.3 * first, "8 bits: {first} to {last}");
    let agreement = qat.agreement(&[("x", &x.clone().into())]).unwrap();
    assert!(agreement.largest <= 1 && agreement.unmatched.is_empty() && agreement.codes > 0, "{agreement:?}");
    let format = FixedPointConfig::new(FixedPoint::new(8, 14).unwrap()).with_rounding(lowprec::quant::Rounding::Stochastic { seed: 1 });
    // The mask is a constant, which is not rounded.
    let (first, last) = train(&mut FixedPointNetwork::new(&model, format).unwrap());
    assert!(last < 0.3 * first, "fixed point: {first} to {last}");
}

#[test]
fn pools_over_other_than_images_are_refused_before_anything_runs() {
    for (kernel, rank) in [(vec![2], 3), (vec![2, 2, 2], 5)] {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &vec![Dim::Any; rank]).unwrap();
        let slope = net.constant("slope", Tensor::full([1], 0.5f32).unwrap()).unwrap();
        let y = net.add("learned", Binary::PRelu, &[x, slope]).unwrap();
        let y = net.add("pool", Pool::max(kernel), &[y]).unwrap();
        net.output("y", y).unwrap();
        let error = Network::new(&net.build().unwrap()).unwrap_err();
        assert!(matches!(error.kind(), Error::Unsupported { .. }) && error.to_string().contains("`pool`"), "{error}");
    }
}

#[test]
fn what_has_no_derivative_is_named_before_anything_runs() {
    let refused = |name: &str, build: &dyn Fn(&mut lowprec::nn::ModelBuilder, lowprec::nn::Edge) -> lowprec::nn::Edge| {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3)]).unwrap();
        let learned = net.add("learned", Linear::new(tensor(&[3, 3], 1, 1.0), None).unwrap(), &[x]).unwrap();
        let y = build(&mut net, learned);
        net.output("y", y).unwrap();
        let error = Network::new(&net.build().unwrap()).unwrap_err();
        assert!(matches!(error.kind(), Error::Unsupported { .. }) && error.to_string().contains(&format!("`{name}`")), "{error}");
    };
    // A bound, the statistics of a norm: inputs that are no constants, and have no derivative.
    refused("clip", &|net, learned| {
        let lo = net.add("lo", Reduce::new(Reduction::Mean).with_kept_axes(false), &[learned]).unwrap();
        net.add("clip", lowprec::nn::operator::Clip::new(), &[learned, lo]).unwrap()
    });
    refused("norm", &|net, learned| {
        let one = net.constant("one", Tensor::full([3], 1.0f32).unwrap()).unwrap();
        let other = net.constant("other", Tensor::full([3], 1.0f32).unwrap()).unwrap();
        let mean = net.add("mean", Reduce::new(Reduction::Mean).with_axes([0]).with_kept_axes(false), &[learned]).unwrap();
        net.add("norm", BatchNormalization::new(1e-5), &[learned, one, other, mean, one]).unwrap()
    });
    // A statistic that is something else besides.
    refused("shared", &|net, learned| {
        let [ones, zeros] = [1.0f32, 0.0].map(|value| Tensor::full([3], value).unwrap());
        let [ones, zeros] = [("ones", ones), ("zeros", zeros)].map(|(name, value)| net.constant(name, value).unwrap());
        net.add("shared", BatchNormalization::new(1e-5), &[learned, ones, zeros, zeros, ones]).unwrap()
    });

    // Lists of other lengths are an error of the layer.
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3)]).unwrap();
    let mut edges = vec![x];
    for (name, length) in [("scale", 3), ("bias", 2), ("mean", 3), ("variance", 3)] {
        edges.push(net.constant(name, Tensor::full([length], 1.0f32).unwrap()).unwrap());
    }
    let y = net.add("norm", BatchNormalization::new(1e-5), &edges).unwrap();
    net.output("y", y).unwrap();
    let mut network = Network::new(&net.build().unwrap()).unwrap();
    let error = network.forward(&tensor(&[4, 3], 1, 1.0), Mode::Train).unwrap_err();
    assert!(matches!(error.kind(), Error::Length { expected: 3, got: 2, .. }) && error.to_string().contains("`norm`"), "{error}");
}
