//! Models of one node.
#![allow(dead_code)]

#[cfg(all(feature = "onnx", feature = "safetensors"))]
pub mod suite;

use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{Conv2d, Dim, Edge, Layer, Model, ModelBuilder};
use lowprec::{DType, Result, Shape, Tensor, Value};

/// What the layer makes of these inputs, `None` for one left out.
pub fn node(layer: impl Into<Layer>, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
    run(layer.into(), inputs, |_, edge, _, _| Ok(edge))
}

/// As [`node`], with every f32 image coming out of a convolution, so that it lies channels-last (its values must be finite).
pub fn node_after_convs(layer: impl Into<Layer>, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
    run(layer.into(), inputs, |net, edge, name, value| match *value.shape().dims() {
        [_, c, _, _] if value.dtype() == DType::F32 && c > 0 => {
            let mut identity = vec![0.0; c * c];
            (0..c).for_each(|i| identity[i * c + i] = 1.0);
            let conv = Conv2d::new(Conv2dGeometry::new(c, c, [1, 1]), Tensor::new([c, c, 1, 1], identity)?, None)?;
            net.add(&format!("{name} as image"), conv, &[edge])
        }
        _ => Ok(edge),
    })
}

/// The one output of [`node`], which must equal that of [`node_after_convs`].
pub fn both(layer: impl Into<Layer>, inputs: &[&Value]) -> Value {
    let (layer, inputs): (Layer, Vec<_>) = (layer.into(), inputs.iter().map(|&value| Some(value)).collect());
    let mut plain = node(layer.clone(), &inputs).unwrap();
    let last = node_after_convs(layer, &inputs).unwrap();
    assert!(plain.iter().zip(&last).all(|(a, b)| same(a, b)), "channels-last: {last:?} not {plain:?}");
    plain.swap_remove(0)
}

/// Whether [`node`] and [`node_after_convs`] both make of the inputs, in the first output, what is expected, to `tolerance`.
#[track_caller]
pub fn both_close(layer: impl Into<Layer>, inputs: &[&Value], dims: &[usize], expected: &[f64], tolerance: f64) {
    let (layer, inputs): (Layer, Vec<_>) = (layer.into(), inputs.iter().map(|&value| Some(value)).collect());
    for outputs in [node(layer.clone(), &inputs).unwrap(), node_after_convs(layer, &inputs).unwrap()] {
        assert_eq!(outputs[0].shape().dims(), dims);
        close(of(&outputs[0]), expected, tolerance);
    }
}

/// Equality to which NaN is equal too.
fn same(a: &Value, b: &Value) -> bool {
    match (a.get::<f32>(), b.get::<f32>()) {
        (Some(x), Some(y)) => {
            x.dims() == y.dims() && x.as_slice().iter().zip(y.as_slice()).all(|(x, y)| x == y || x.is_nan() && y.is_nan())
        }
        // Bytes, since other floats have NaN as well.
        _ => (a.dtype(), a.shape(), a.bytes()) == (b.dtype(), b.shape(), b.bytes()),
    }
}

fn run(
    layer: Layer,
    inputs: &[Option<&Value>],
    pass: impl Fn(&mut ModelBuilder, Edge, &str, &Value) -> Result<Edge>,
) -> Result<Vec<Value>> {
    let mut net = Model::builder();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("input {i}")).collect();
    let (mut edges, mut given) = (Vec::new(), Vec::new());
    for (name, input) in names.iter().zip(inputs) {
        let Some(value) = *input else {
            edges.push(None);
            continue;
        };
        given.push((name.as_str(), value));
        let edge = net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()])?;
        edges.push(Some(pass(&mut net, edge, name, value)?));
    }
    for (i, edge) in net.add_node("node", &[], layer, &edges)?.into_iter().enumerate() {
        net.output(&format!("output {i}"), edge)?;
    }
    Ok(net.build()?.run(&given)?.into_iter().map(|(_, value)| value).collect())
}

/// A tensor of any type.
pub fn value<T: lowprec::tensor::Element>(dims: &[usize], data: Vec<T>) -> Value {
    T::into_value(Tensor::new(dims, data).unwrap())
}

/// Elements `f(0), f(1), …`.
pub fn filled<T: lowprec::tensor::Element>(dims: &[usize], f: impl FnMut(usize) -> T) -> Value {
    let elements = Shape::new(dims).unwrap().elements();
    value(dims, (0..elements).map(f).collect())
}

/// Floats from -3 to 3 that look random and are the same in each run.
pub fn noise(dims: &[usize], seed: usize) -> Value {
    filled(dims, |i| (((i + 131 * seed) * 2_654_435_761) % 6007) as f32 / 1001.0 - 3.0)
}

/// The elements.
pub fn of<T: lowprec::tensor::Element>(value: &Value) -> &[T] {
    value.get::<T>().unwrap_or_else(|| panic!("a tensor of {}", value.dtype())).as_slice()
}

/// Whether all elements lie within `tolerance`, relative to those above 1; NaN equals NaN.
#[track_caller]
pub fn close(got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let got = f64::from(got);
        let near = (got - expected).abs() <= tolerance * expected.abs().max(1.0);
        assert!(near || got == expected || (got.is_nan() && expected.is_nan()), "{got} not {expected} at {i}");
    }
}
