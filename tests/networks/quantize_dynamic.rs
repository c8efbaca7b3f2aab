//! What `quantize_dynamic` promises: it does what was asked or says why not, changes nothing that it was given, runs in
//! integers, and gives results that depend on nothing but the input.

use std::ops::ControlFlow;

use crate::support::{Random, network};
use lowprec::kernels::{Isa, Workspace};
use lowprec::nn::quantized::{self, DynamicScheme};
use lowprec::nn::{Dim, Executor, Layer, Model, Precision, SkipReason};
use lowprec::ptq::DynamicQuantization;
use lowprec::{DType, Error, Granularity, LayerKind, NonFinite, Progress, Scheme, Tensor, Value, quantize_dynamic};

const BOTH: [LayerKind; 2] = [LayerKind::Conv2d, LayerKind::Linear];

fn bits(x: &Tensor) -> Vec<u32> {
    x.as_slice().iter().map(|x| x.to_bits()).collect()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims());
    let largest = a.as_slice().iter().fold(0f32, |m, x| m.max(x.abs()));
    for (a, b) in a.as_slice().iter().zip(b.as_slice()) {
        assert!((a - b).abs() <= tolerance * largest, "{a} and {b} of {largest}");
    }
}

#[test]
fn every_layer_asked_for_runs_in_integers() {
    let (model, x) = (network(1), Random(2).tensor([3, 3, 10, 9], 1.0));
    let float = model.forward(&x).unwrap();
    let int8 = quantize_dynamic(&model, &[LayerKind::Conv2d]).unwrap();
    for node in int8.nodes() {
        let conv = node.layer().kind() == LayerKind::Conv2d;
        assert_eq!(node.layer().precision(), if conv { Precision::Int8 } else { Precision::F32 });
        assert_eq!(node.layer().kernel_name().is_some(), conv);
    }
    assert_eq!(int8.conversion().unwrap().quantized, ["conv1", "depthwise", "grouped", "conv2"]);
    let folded: Vec<(&str, &str)> = int8.conversion().unwrap().folded.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(folded, [("bn1", "conv1"), ("bn2", "grouped")]);
    close(&float, &int8.forward(&x).unwrap(), 0.03);
    // Panels are as wide as a vector, so layers this small, with 20 and 33 channels, are far from a quarter.
    assert!(int8.bytes() * 10 < model.bytes() * 6, "{} of {}", int8.bytes(), model.bytes());
    let all = quantize_dynamic(&model, &BOTH).unwrap();
    assert_eq!(all.node("fc").unwrap().layer().precision(), Precision::Int8);
    close(&float, &all.forward(&x).unwrap(), 0.03);
}

#[test]
fn the_given_model_is_untouched() {
    let (model, x) = (network(3), Random(4).tensor([2, 3, 8, 8], 1.0));
    let (before, printed) = (model.forward(&x).unwrap(), model.to_string());
    quantize_dynamic(&model, &BOTH).unwrap();
    assert_eq!(bits(&model.forward(&x).unwrap()), bits(&before));
    assert_eq!(model.to_string(), printed);
    assert!(model.conversion().is_none());
}

#[test]
fn results_depend_on_nothing_but_the_input() {
    let (model, x) = (network(5), Random(6).tensor([4, 3, 11, 8], 2.0));
    for quantized in [true, false] {
        let model = if quantized { quantize_dynamic(&model, &BOTH).unwrap() } else { model.clone() };
        let whole = Executor::new(&model).with_threads(1).unwrap().forward(&x).unwrap();
        for threads in [2, 3] {
            let mut executor = Executor::new(&model).with_threads(threads).unwrap();
            assert_eq!(bits(&executor.forward(&x).unwrap()), bits(&whole), "{threads} threads");
            assert_eq!(bits(&executor.forward(&x).unwrap()), bits(&whole), "a second run");
        }
        for i in 0..4 {
            let alone = model.forward(&x.slice(0, i..i + 1).unwrap()).unwrap();
            assert_eq!(bits(&alone), bits(&whole.slice(0, i..i + 1).unwrap()), "image {i} alone");
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_codes_of_the_convolutions() {
    // The float layers between may differ in the last bit from one instruction set to the next; they run on the best one
    // here, so the whole network must agree to the bit.
    let (model, x) = (network(7), Random(8).tensor([2, 3, 9, 9], 1.0));
    let outputs: Vec<Vec<u32>> = Isa::available()
        .into_iter()
        .map(|isa| bits(&DynamicQuantization::new(&BOTH).with_isa(isa).apply(&model).unwrap().forward(&x).unwrap()))
        .collect();
    assert!(outputs.iter().all(|output| *output == outputs[0]));
}

#[test]
fn requests_that_match_nothing_are_errors() {
    let model = network(9);
    let message = |result: lowprec::Result<Model>| result.unwrap_err().to_string();
    let empty = message(quantize_dynamic(&model, &[]));
    assert!(empty.contains("no kind") && empty.contains("4 Conv2d") && empty.contains("1 Linear"), "{empty}");

    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    net.output("y", x).unwrap();
    let no_conv = message(quantize_dynamic(&net.build().unwrap(), &[LayerKind::Conv2d]));
    assert!(no_conv.contains("Conv2d") && no_conv.contains("1 Relu"), "{no_conv}");

    assert!(matches!(quantize_dynamic(&model, &[LayerKind::Conv2d, LayerKind::Relu]), Err(Error::Unsupported { .. })));
    let request = || DynamicQuantization::new(&BOTH);
    assert!(matches!(request().exclude("convv*").unwrap().apply(&model), Err(Error::Pattern { pattern, .. }) if pattern == "convv*"));
    assert!(matches!(request().include("nothing").unwrap().apply(&model), Err(Error::Pattern { .. })));
    // A pattern that matches layers, but none of the kinds asked for, asks for nothing either.
    assert!(matches!(request().include("relu1").unwrap().apply(&model), Err(Error::Pattern { .. })));
    let convs = || DynamicQuantization::new(&[LayerKind::Conv2d]);
    let relu = message(convs().exclude("relu?").unwrap().apply(&model));
    assert!(relu.contains("`relu?`") && relu.contains("`conv1`") && !relu.contains("`relu1`"), "{relu}");
    assert!(matches!(convs().include("conv1").unwrap().exclude("fc").unwrap().apply(&model), Err(Error::Pattern { .. })));
    assert!(matches!(request().exclude("*").unwrap().apply(&model), Err(Error::NothingToQuantize { .. })));

    let int8 = quantize_dynamic(&model, &BOTH).unwrap();
    let again = message(quantize_dynamic(&int8, &BOTH));
    assert!(again.contains("already quantized"), "{again}");
}

#[test]
fn what_was_passed_over_can_be_read() {
    let model = network(10);
    let int8 = DynamicQuantization::new(&[LayerKind::Conv2d]).exclude("conv?").unwrap().apply(&model).unwrap();
    let conversion = int8.conversion().unwrap();
    assert_eq!(conversion.quantized, ["depthwise", "grouped"]);
    let skipped: Vec<(&str, &SkipReason)> = conversion.skipped.iter().map(|s| (s.name.as_str(), &s.reason)).collect();
    let excluded = SkipReason::Excluded("conv?".into());
    assert_eq!(skipped, [("conv1", &excluded), ("conv2", &excluded)]);

    // Batch norms go into the layers that are quantized; an excluded convolution stays as it was, its batch norm behind it.
    assert_eq!(conversion.folded, [("bn2".to_owned(), "grouped".to_owned())]);
    let (Layer::Conv2d(before), Layer::Conv2d(after)) = (model.node("conv1").unwrap().layer(), int8.node("conv1").unwrap().layer()) else {
        panic!()
    };
    assert_eq!((before.weight(), before.bias()), (after.weight(), after.bias()));
    assert!(int8.node("bn1").is_some());
    let head = quantize_dynamic(&model, &[LayerKind::Linear]).unwrap();
    assert!(head.conversion().unwrap().folded.is_empty() && head.node("bn1").is_some() && head.node("bn2").is_some());

    // The rest in a second step: the first two are passed over as quantized already.
    let all = quantize_dynamic(&int8, &BOTH).unwrap();
    let conversion = all.conversion().unwrap();
    assert_eq!(conversion.quantized, ["depthwise", "grouped", "conv1", "conv2", "fc"]);
    assert_eq!(conversion.folded.len(), 2);
    assert!(conversion.skipped.iter().all(|s| s.reason == SkipReason::AlreadyQuantized));
    assert_eq!(conversion.skipped.len(), 2);

    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(33)]).unwrap();
    let fc = match model.node("fc").unwrap().layer() {
        Layer::Linear(linear) => linear.clone(),
        other => panic!("{other:?}"),
    };
    let x = net.add("fc", fc, &[x]).unwrap();
    net.output("y", x).unwrap();
    let int8 = quantize_dynamic(&net.build().unwrap(), &BOTH).unwrap();
    assert_eq!(int8.conversion().unwrap().absent, [LayerKind::Conv2d]);
}

#[test]
fn schemes_that_the_kernels_cannot_run_are_errors_and_others_work() {
    let (model, x) = (network(11), Random(12).tensor([1, 3, 8, 8], 1.0));
    let float = model.forward(&x).unwrap();
    let per_group = Scheme::INT8_WEIGHT.with_granularity(Granularity::PerGroup { axis: 1, size: 3 });
    assert!(matches!(DynamicQuantization::new(&BOTH).with_weights(per_group).apply(&model), Err(Error::Unsupported { .. })));
    assert!(matches!(DynamicQuantization::new(&BOTH).with_activations(Scheme::INT8_WEIGHT).apply(&model), Err(Error::Unsupported { .. })));
    let errors: Vec<f32> =
        [Scheme::INT8_WEIGHT, Scheme::INT8_WEIGHT_PER_TENSOR, Scheme::INT8_WEIGHT.with_bits(4), Scheme::INT8_WEIGHT.with_bits(2)]
            .into_iter()
            .map(|scheme| {
                let int8 = DynamicQuantization::new(&[LayerKind::Conv2d]).with_weights(scheme).apply(&model).unwrap();
                let y = int8.forward(&x).unwrap();
                y.as_slice().iter().zip(float.as_slice()).map(|(a, b)| (a - b).powi(2)).sum()
            })
            .collect();
    assert!(errors[0] < errors[2] && errors[2] < errors[3], "{errors:?}");
}

#[test]
fn nan_and_infinities_are_refused_by_name_or_saturated() {
    let model = network(13);
    let int8 = quantize_dynamic(&model, &[LayerKind::Conv2d]).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = Random(14).tensor([2, 3, 8, 8], 1.0);
        x.as_mut_slice()[200] = bad;
        let error = int8.forward(&x).unwrap_err();
        assert!(error.to_string().contains("conv1"), "{error}");
        assert!(matches!(error.kind(), Error::NonFinite { index: 200, .. }), "{error}");
        let tolerant = DynamicQuantization::new(&[LayerKind::Conv2d]).with_non_finite(NonFinite::Saturate).apply(&model).unwrap();
        assert!(tolerant.forward(&x).unwrap().as_slice().iter().all(|y| y.is_finite()));
    }
    // In a bias.
    let [mut weight, mut bias] = [vec![1.0f32; 4], vec![0.5f32, f32::NAN]];
    let refused = quantized::Linear::from_slices(2, 2, &weight, Some(&bias)).unwrap_err();
    assert!(matches!(&refused, Error::NonFinite { what, index: 1, .. } if what == "bias"), "{refused}");
    let geometry = lowprec::kernels::Conv2dGeometry::new(2, 2, [1, 1]);
    assert!(quantized::Conv2d::from_slices(&geometry, &weight, Some(&bias)).is_err());
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)]).unwrap();
    let linear = lowprec::nn::Linear::new(Tensor::new([2, 2], weight.clone()).unwrap(), Some(Tensor::new([2], bias.clone()).unwrap()));
    let x = net.add("broken", linear.unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let broken = net.build().unwrap();
    let error = quantize_dynamic(&broken, &[LayerKind::Linear]).unwrap_err().to_string();
    assert!(error.contains("`broken`") && error.contains("bias"), "{error}");
    let tolerant = DynamicQuantization::new(&[LayerKind::Linear]).with_non_finite(NonFinite::Saturate).apply(&broken).unwrap();
    let y = tolerant.forward(&Tensor::full([1, 2], 0.0).unwrap()).unwrap();
    assert_eq!(y.as_slice(), [0.5, 0.0]);
    let saturate = DynamicScheme { non_finite: NonFinite::Saturate, ..DynamicScheme::default() };
    bias[0] = f32::NEG_INFINITY;
    weight[0] = f32::INFINITY;
    let layer = quantized::Linear::from_float(2, 2, &weight, Some(&bias), &saturate, Isa::best()).unwrap();
    assert_eq!(layer.bias().unwrap(), [f32::MIN, 0.0]);
    // In an input, which the layer calls input.
    let layer = quantized::Linear::from_slices(2, 2, &[1.0; 4], None).unwrap();
    let error = layer.forward(&[1.0, f32::NAN], 1, &mut [0.0; 2], &mut Workspace::default(), 1).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { what, index: 1, .. } if what == "input"), "{error}");
    // In the weights.
    let Layer::Conv2d(conv) = model.node("conv2").unwrap().layer() else { panic!() };
    let mut weight = conv.weight().clone();
    weight.as_mut_slice()[5] = f32::NAN;
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(20), Dim::Any, Dim::Any]).unwrap();
    let x = net.add("broken", lowprec::nn::Conv2d::new(conv.geometry().clone(), weight, None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let error = quantize_dynamic(&net.build().unwrap(), &[LayerKind::Conv2d]).unwrap_err();
    assert!(error.to_string().contains("`broken`") && error.to_string().contains("weight"), "{error}");
    assert!(matches!(error.kind(), Error::NonFinite { index: 5, .. }));
}

#[test]
fn constant_zero_and_empty_inputs_are_no_errors() {
    let model = network(15);
    let int8 = quantize_dynamic(&model, &BOTH).unwrap();
    for value in [0.0, 1.0, -3.7, 1e-40, 1e30] {
        let x = Tensor::full([1, 3, 8, 8], value).unwrap();
        close(&model.forward(&x).unwrap(), &int8.forward(&x).unwrap(), 0.05);
    }
    let none = Tensor::new([0, 3, 8, 8], vec![]).unwrap();
    assert_eq!(int8.forward(&none).unwrap().dims(), [0, 7]);
}

#[test]
fn progress_is_reported_and_cancels() {
    let model = network(16);
    let mut seen = Vec::new();
    let progress = Progress::new(|step| {
        seen.push((step.item.to_owned(), step.done, step.total));
        ControlFlow::Continue(())
    });
    DynamicQuantization::new(&BOTH).with_progress(progress).apply(&model).unwrap();
    let names: Vec<&str> = seen.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["conv1", "depthwise", "grouped", "conv2", "fc"]);
    assert_eq!((seen[4].1, seen[4].2), (4, 5));
    let stop = Progress::new(|step| if step.done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
    let cancelled = DynamicQuantization::new(&BOTH).with_progress(stop).apply(&model);
    assert!(matches!(cancelled, Err(Error::Cancelled { done: 2, total: 5, .. })));
}

#[test]
fn layers_stand_alone_on_slices_and_give_their_codes_back() {
    let (model, x) = (network(17), Random(18).tensor([2, 20, 6, 6], 1.0));
    let Layer::Conv2d(conv) = model.node("conv2").unwrap().layer() else { panic!() };
    let bias = conv.bias().map(Tensor::as_slice);
    let layer = quantized::Conv2d::from_slices(conv.geometry(), conv.weight().as_slice(), bias).unwrap();
    let weight = layer.weight().unwrap();
    assert_eq!(weight.shape().dims(), conv.weight().dims());
    let per_channel: usize = conv.weight().dims()[1..].iter().product();
    for (i, (w, back)) in conv.weight().as_slice().iter().zip(weight.dequantize().as_slice()).enumerate() {
        assert!((w - back).abs() <= layer.scales()[i / per_channel] * 0.5001, "weight {i}: {w} and {back}");
    }
    // The same layer from its own codes, on another instruction set.
    let twin = quantized::Conv2d::from_codes(conv.geometry(), &weight, bias, &DynamicScheme::default(), Isa::Scalar).unwrap();
    let [oh, ow] = conv.geometry().output_size(6, 6).unwrap();
    let shape = lowprec::kernels::ImageShape { n: 2, h: 6, w: 6, layout: lowprec::kernels::ImageLayout::Nchw };
    let mut outputs = [vec![0.0; 2 * oh * ow * 33], vec![0.0; 2 * oh * ow * 33]];
    let mut workspace = Workspace::default();
    layer.forward(x.as_slice(), shape, &mut outputs[0], &mut workspace, 2).unwrap();
    twin.forward(x.as_slice(), shape, &mut outputs[1], &mut workspace, 1).unwrap();
    assert_eq!(outputs[0], outputs[1]);
    assert!(matches!(layer.forward(x.as_slice(), shape, &mut outputs[0][1..], &mut workspace, 1), Err(Error::Length { .. })));

    let linear = quantized::Linear::from_slices(3, 2, &[1.0, -2.0, 0.5, 0.0, 0.0, 0.0], None).unwrap();
    assert_eq!(linear.weight().unwrap().codes()[..3], [64, -127, 32]);
    assert!(matches!(quantized::Linear::from_slices(3, 2, &[1.0], None), Err(Error::Length { expected: 6, got: 1, .. })));
    // Neither too short nor too long: a slice that holds more than its rows was meant for other rows.
    let float = lowprec::nn::Linear::new(Tensor::full([2, 3], 1.0).unwrap(), None).unwrap();
    for (input, output) in [(6, 4), (5, 4), (7, 4), (6, 3), (6, 5), (9, 6)] {
        let (x, mut y) = (vec![1.0; input], vec![0.0; output]);
        let done = [linear.forward(&x, 2, &mut y, &mut workspace, 1), float.forward(&x, 2, &mut y, 1)];
        assert!(done.iter().all(|done| matches!(done, Err(Error::Length { .. })) != ((input, output) == (6, 4))), "{done:?}");
    }
}

#[test]
fn shapes_that_no_memory_holds_are_errors() {
    let mut workspace = Workspace::default();
    let overflow = |error: lowprec::Result<()>| matches!(error, Err(Error::ShapeOverflow { .. }));
    let linear = quantized::Linear::from_slices(3, 2, &[1.0; 6], None).unwrap();
    assert!(overflow(linear.forward(&[], usize::MAX / 2, &mut [], &mut workspace, 1)));
    assert!(overflow(quantized::Linear::from_slices(0, 1 << 60, &[], None).map(drop)));
    assert!(overflow(lowprec::nn::Linear::new(Tensor::new([1 << 61, 0], vec![]).unwrap(), None).map(drop)));
    let per_tensor = DynamicScheme { weights: Scheme::INT8_WEIGHT_PER_TENSOR, ..DynamicScheme::default() };
    assert!(overflow(quantized::Linear::from_float(0, 1 << 61, &[], None, &per_tensor, Isa::best()).map(drop)));
    let geometry = lowprec::kernels::Conv2dGeometry::new(3, 1, [1, 1]);
    let int8 = quantized::Conv2d::from_slices(&geometry, &[1.0; 3], None).unwrap();
    let float = lowprec::nn::Conv2d::new(geometry, Tensor::full([1, 3, 1, 1], 1.0).unwrap(), None).unwrap();
    for (h, w) in [(1, usize::MAX / 2), (1 << 40, 1 << 40)] {
        let shape = lowprec::kernels::ImageShape { n: 0, h, w, layout: lowprec::kernels::ImageLayout::Nhwc };
        assert!(overflow(int8.forward(&[], shape, &mut [], &mut workspace, 1)), "{h} x {w}");
        assert!(overflow(float.forward(&[], shape, &mut [], &mut workspace, 1)), "{h} x {w}");
    }
}

#[test]
fn inputs_and_names_are_checked() {
    let model = network(19);
    let wrong = Tensor::full([1, 4, 8, 8], 1.0).unwrap();
    assert!(matches!(model.forward(&wrong), Err(Error::Shape { .. })));
    // The last convolution's kernel does not fit what two poolings leave of a single pixel.
    let tiny = model.forward(&Tensor::full([1, 3, 1, 1], 1.0).unwrap()).unwrap_err();
    assert!(tiny.to_string().contains("layer `pool`"), "{tiny}");
    let x = Value::from(Tensor::full([1, 3, 8, 8], 1.0).unwrap());
    assert!(matches!(model.run(&[("picture", &x)]), Err(Error::Unknown { what: "input", .. })));
    assert!(matches!(model.run(&[]), Err(Error::Unknown { .. })));
    assert!(matches!(model.run(&[("image", &x), ("image", &x)]), Err(Error::Duplicate { .. })));
    let codes = Value::from(Tensor::new([1, 3, 8, 8], vec![0u8; 192]).unwrap());
    assert!(matches!(model.run(&[("image", &codes)]), Err(Error::Type { got: "u8", .. })));
    let outputs = model.run(&[("image", &x)]).unwrap();
    assert_eq!(outputs[0].0, "probabilities");
}
