//! The executor: several typed inputs and outputs, plans for changing shapes, taps, and no allocation in steady state.
// A counting allocator can't be written without `unsafe`.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::support::{Random, network};
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{Conv2d, Dim, Executor, Layer, MaxPool2d, Model};
use lowprec::{DType, Error, LayerKind, Tensor, Value, quantize_dynamic};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the count is a thread-local cell that allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    f();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn nothing_is_allocated_after_the_first_run() {
    let float = network(1);
    let x = Value::from(Random(2).tensor([2, 3, 9, 8], 1.0));
    for model in [quantize_dynamic(&float, &[LayerKind::Conv2d, LayerKind::Linear]).unwrap(), float] {
        let mut executor = Executor::new(&model).with_threads(1).unwrap();
        let mut y = Value::from(Tensor::full([2, 7], 0.0f32).unwrap());
        executor.run_into(&[("image", &x)], &mut [("probabilities", &mut y)]).unwrap();
        let first = y.clone();
        let mut y = Value::from(Tensor::full([2, 7], 0.0f32).unwrap());
        let count = allocations(|| executor.run_into(&[("image", &x)], &mut [("probabilities", &mut y)]).unwrap());
        assert_eq!(count, 0);
        assert_eq!(y, first);
    }
}

/// Two inputs, one of them of integers; three outputs, of which one is an input passed on and one is reshaped.
fn several() -> Model {
    let r = &mut Random(3);
    let mut net = Model::builder();
    let a = net.input("a", DType::F32, &[Dim::Any, Dim::Fixed(4), Dim::Any, Dim::Any]).unwrap();
    let ids = net.input("ids", DType::I64, &[Dim::Any, Dim::Any]).unwrap();
    let conv = net.add("conv", crate::support::conv(r, Conv2dGeometry::new(4, 4, [3, 3]).with_padding([1; 4]), true), &[a]).unwrap();
    // One operand is channels-last, the other row-major.
    let sum = net.add("sum", Layer::Add, &[a, conv]).unwrap();
    let flat = net.add("flat", Layer::Flatten { axis: 1 }, &[sum]).unwrap();
    let flat_ids = net.add("flat_ids", Layer::Flatten { axis: 0 }, &[ids]).unwrap();
    net.output("sum", sum).unwrap();
    net.output("flat", flat).unwrap();
    net.output("ids", flat_ids).unwrap();
    net.output("same", a).unwrap();
    net.build().unwrap()
}

#[test]
fn named_typed_inputs_and_outputs() {
    let model = several();
    let mut executor = Executor::new(&model);
    for [h, w] in [[5, 6], [3, 3], [5, 6]] {
        let a = Random(4).tensor([2, 4, h, w], 1.0);
        let ids = Tensor::new([2, 3], vec![1i64, 2, 3, 4, 5, 6]).unwrap();
        let (a_value, ids_value) = (Value::from(a.clone()), Value::from(ids.clone()));
        // Order of the names is the caller's.
        let outputs = executor.run(&[("ids", &ids_value), ("a", &a_value)]).unwrap();
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["sum", "flat", "ids", "same"]);
        let Layer::Conv2d(conv) = model.node("conv").unwrap().layer() else { panic!() };
        let alone = alone(conv.clone(), 4).forward(&a).unwrap();
        let expected: Vec<f32> = a.as_slice().iter().zip(alone.as_slice()).map(|(a, b)| a + b).collect();
        assert_eq!(outputs[0].1, Value::from(Tensor::new([2, 4, h, w], expected.clone()).unwrap()));
        assert_eq!(outputs[1].1, Value::from(Tensor::new([2, 4 * h * w], expected).unwrap()));
        assert_eq!(outputs[2].1, Value::from(ids.reshape([6]).unwrap()));
        assert_eq!(outputs[3].1, a_value);
    }
    let a = Tensor::full([1, 4, 4, 4], 0.0).unwrap();
    assert!(matches!(model.forward(&a), Err(Error::Unsupported { .. })));
    assert!(matches!(executor.run(&[("a", &a.clone().into())]), Err(Error::Unknown { name, .. }) if name == "ids"));
    assert!(matches!(executor.run(&[("a", &a.clone().into()), ("ids", &a.into())]), Err(Error::Type { got: "f32", .. })));
}

#[test]
fn an_output_that_is_an_input_is_copied_into_place() {
    let model = several();
    let mut executor = Executor::new(&model).with_threads(1).unwrap();
    let a = Value::from(Random(9).tensor([2, 4, 3, 3], 1.0));
    let ids = Value::from(Tensor::new([2, 3], vec![1i64, 2, 3, 4, 5, 6]).unwrap());
    let mut flat = Value::from(Tensor::full([6], 0i64).unwrap());
    let mut same = Value::from(Tensor::full([2, 4, 3, 3], 0.0f32).unwrap());
    for round in 0..2 {
        let places = (flat.get::<i64>().unwrap().as_slice().as_ptr(), same.get::<f32>().unwrap().as_slice().as_ptr());
        let count = allocations(|| {
            executor.run_into(&[("a", &a), ("ids", &ids)], &mut [("ids", &mut flat), ("same", &mut same)]).unwrap();
        });
        assert_eq!(count == 0, round == 1, "{count} allocations in round {round}");
        assert_eq!(places, (flat.get::<i64>().unwrap().as_slice().as_ptr(), same.get::<f32>().unwrap().as_slice().as_ptr()));
        assert_eq!(flat.get::<i64>().unwrap().as_slice(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(same, a);
    }
    // Of another type or shape, it is replaced.
    let mut other = Value::from(Tensor::full([6], 0i32).unwrap());
    executor.run_into(&[("a", &a), ("ids", &ids)], &mut [("ids", &mut other), ("same", &mut flat)]).unwrap();
    assert_eq!((other.get::<i64>().unwrap().as_slice(), flat), (&[1, 2, 3, 4, 5, 6][..], a));
}

fn alone(layer: impl Into<Layer>, channels: usize) -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(channels), Dim::Any, Dim::Any]).unwrap();
    let y = net.add("layer", layer, &[x]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

#[test]
fn values_outlive_the_buffers_they_could_share() {
    // A long chain over few buffers, with an early value read again at the end and as an output.
    let r = &mut Random(5);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2), Dim::Any, Dim::Any]).unwrap();
    let same = || Conv2dGeometry::new(2, 2, [3, 3]).with_padding([1; 4]);
    let convs: Vec<Conv2d> = (0..5).map(|_| crate::support::conv(r, same(), true)).collect();
    let early = net.add("c0", convs[0].clone(), &[x]).unwrap();
    let mut y = early;
    for (i, conv) in convs.iter().enumerate().skip(1) {
        y = net.add(&format!("c{i}"), conv.clone(), &[y]).unwrap();
    }
    let y = net.add("sum", Layer::Add, &[y, early]).unwrap();
    net.output("early", early).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();

    let x = r.tensor([1, 2, 6, 5], 1.0);
    let early = alone(convs[0].clone(), 2).forward(&x).unwrap();
    let mut y = early.clone();
    for conv in &convs[1..] {
        y = alone(conv.clone(), 2).forward(&y).unwrap();
    }
    let sum: Vec<f32> = y.as_slice().iter().zip(early.as_slice()).map(|(a, b)| a + b).collect();
    let outputs = model.run(&[("x", &x.clone().into())]).unwrap();
    assert_eq!(outputs[0].1, Value::from(early));
    assert_eq!(outputs[1].1, Value::from(Tensor::new([1, 2, 6, 5], sum).unwrap()));
}

#[test]
fn taps_see_every_value_row_major_and_can_stop() {
    let model = network(6);
    let x = Random(7).tensor([1, 3, 8, 8], 1.0);
    let mut seen = Vec::new();
    model
        .forward_with(&x, |tap| {
            seen.push((tap.edge.to_owned(), tap.value.clone()));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen[0], ("image".to_owned(), Value::from(x.clone())));
    assert_eq!(seen.len(), model.nodes().len() + 1);
    // The batch norm of the first convolution, recomputed from its tap.
    let value = |name: &str| seen.iter().find(|(edge, _)| edge == name).unwrap().1.get::<f32>().unwrap().clone();
    let Layer::BatchNorm2d(norm) = model.node("bn1").unwrap().layer() else { panic!() };
    let (scale, shift) = norm.affine();
    let (before, after) = (value("conv1"), value("bn1"));
    for (i, (x, y)) in before.as_slice().iter().zip(after.as_slice()).enumerate() {
        let channel = i / 64;
        assert!((x * scale[channel] + shift[channel] - y).abs() < 1e-5, "element {i}");
    }
    let stopped = model.forward_with(&x, |tap| match tap.edge {
        "bn1" => Err(Error::Empty { what: "patience".into(), way_out: "-" }),
        _ => Ok(()),
    });
    assert!(matches!(stopped, Err(Error::Empty { .. })));
}

#[test]
fn taps_see_models_of_several_inputs_and_outputs() {
    let model = several();
    let (a, ids) = (Value::from(Random(7).tensor([1, 4, 3, 2], 1.0)), Value::from(Tensor::new([1, 2], vec![7i64, 8]).unwrap()));
    let mut seen: Vec<(String, Option<String>, Value)> = Vec::new();
    let outputs = model
        .run_with(&[("ids", &ids), ("a", &a)], |tap| {
            seen.push((tap.edge.to_owned(), tap.node.map(|node| node.name().to_owned()), tap.value.clone()));
            Ok(())
        })
        .unwrap();
    let names: Vec<&str> = seen.iter().map(|(edge, ..)| edge.as_str()).collect();
    assert_eq!(names, ["a", "ids", "conv", "sum", "flat", "flat_ids"]);
    assert!(seen.iter().all(|(edge, node, _)| node.as_deref() == (!["a", "ids"].contains(&edge.as_str())).then_some(edge)));
    let value = |name: &str| &seen.iter().find(|(edge, ..)| edge == name).unwrap().2;
    assert_eq!(outputs, model.run(&[("a", &a), ("ids", &ids)]).unwrap());
    for (output, edge) in outputs.iter().zip(["sum", "flat", "flat_ids", "a"]) {
        assert_eq!(&output.1, value(edge));
    }
    let stopped = model.run_with(&[("a", &a), ("ids", &ids)], |_| Err(Error::Empty { what: "patience".into(), way_out: "-" }));
    assert!(matches!(stopped, Err(Error::Empty { .. })));
}

#[test]
fn graphs_that_make_no_sense_are_refused_while_built() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any]).unwrap();
    let ids = net.input("ids", DType::I64, &[Dim::Any]).unwrap();
    assert!(matches!(net.input("x", DType::F32, &[]), Err(Error::Duplicate { .. })));
    assert!(matches!(net.add("x", Layer::Relu, &[x]), Err(Error::Duplicate { .. })));
    assert!(matches!(net.add("sum", Layer::Add, &[x]).unwrap_err().kind(), Error::Length { expected: 2, got: 1, .. }));
    let typed = net.add("relu", Layer::Relu, &[ids]).unwrap_err();
    assert!(matches!(typed.kind(), Error::Type { got: "i64", .. }) && typed.to_string().contains("`relu`"), "{typed}");
    assert!(matches!(Model::builder().add("relu", Layer::Relu, &[x]).unwrap_err().kind(), Error::Parameter { .. }));
    // An edge of another builder fits by its number, and is none of this one's.
    let mut other = Model::builder();
    let foreign = other.input("x", DType::F32, &[Dim::Any]).unwrap();
    assert!(matches!(net.add("relu", Layer::Relu, &[foreign]).unwrap_err().kind(), Error::Parameter { what: "edge", .. }));
    assert!(matches!(net.output("y", foreign), Err(Error::Parameter { what: "edge", .. })));
    assert!(matches!(net.build(), Err(Error::Empty { .. })));
    assert!(matches!(Model::builder().build(), Err(Error::Empty { .. })));
}

#[test]
fn a_pool_and_a_flatten_behind_a_convolution_keep_pytorchs_order() {
    let r = &mut Random(8);
    let conv = crate::support::conv(r, Conv2dGeometry::new(2, 3, [1, 1]), true);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2), Dim::Any, Dim::Any]).unwrap();
    let y = net.add("conv", conv.clone(), &[x]).unwrap();
    let y = net.add("pool", MaxPool2d::new([2, 2]), &[y]).unwrap();
    let y = net.add("flat", Layer::Flatten { axis: 1 }, &[y]).unwrap();
    net.output("y", y).unwrap();
    let x = r.tensor([1, 2, 4, 4], 1.0);
    let y = net.build().unwrap().forward(&x).unwrap();
    let features = alone(conv, 2).forward(&x).unwrap();
    let at = |c: usize, i: usize, j: usize| features.as_slice()[c * 16 + i * 4 + j];
    for (k, y) in y.as_slice().iter().enumerate() {
        let (c, i, j) = (k / 4, k / 2 % 2 * 2, k % 2 * 2);
        let expected = at(c, i, j).max(at(c, i, j + 1)).max(at(c, i + 1, j)).max(at(c, i + 1, j + 1));
        assert_eq!(*y, expected, "element {k}");
    }
}
