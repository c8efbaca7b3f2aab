//! Operators that rename values, and those that make them of a rule, in models of one node.

use lowprec::nn::operator::{
    ConstantOfShape, Dropout, EyeLike, Flatten, Identity, Operator, Range, Reshape, SizeOf, Squeeze, Trilu, Unsqueeze,
};
use lowprec::nn::{Dim, Layer, Model};
use lowprec::{DType, Error, Result, Tensor, Value};

fn run(operator: impl Into<Operator>, inputs: &[Value]) -> Result<Vec<Value>> {
    let mut net = Model::builder();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let mut edges = Vec::new();
    for (name, value) in names.iter().zip(inputs) {
        edges.push(Some(net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()])?));
    }
    for (i, edge) in net.add_node("node", &[], Layer::Operator(operator.into()), &edges)?.into_iter().enumerate() {
        net.output(&format!("y{i}"), edge)?;
    }
    let given: Vec<(&str, &Value)> = names.iter().map(String::as_str).zip(inputs).collect();
    Ok(net.build()?.run(&given)?.into_iter().map(|(_, value)| value).collect())
}

fn floats(dims: &[usize]) -> Value {
    let count = dims.iter().product::<usize>();
    Tensor::new(dims.to_vec(), (0..count).map(|i| i as f32).collect()).unwrap().into()
}

fn list(values: &[i64]) -> Value {
    Tensor::new([values.len()], values.to_vec()).unwrap().into()
}

fn scalar<T: lowprec::tensor::Element>(value: T) -> Value {
    T::into_value(Tensor::new(Vec::new(), vec![value]).unwrap())
}

fn dims(result: Result<Vec<Value>>) -> Vec<usize> {
    result.unwrap()[0].shape().dims().to_vec()
}

#[test]
fn reshape() {
    let x = floats(&[2, 3, 4]);
    let to = |shape: &[i64]| run(Reshape::new(), &[x.clone(), list(shape)]);
    assert_eq!(dims(to(&[4, -1])), [4, 6]);
    assert_eq!(dims(to(&[0, -1])), [2, 12]);
    assert_eq!(dims(to(&[-1, 0, 1, 4])), [2, 3, 1, 4]);
    assert_eq!(to(&[24]).unwrap()[0].bytes(), x.bytes());
    assert_eq!(dims(run(Reshape::to([3, -1]), std::slice::from_ref(&x))), [3, 8]);
    for wrong in [&[5, -1][..], &[-1, -1], &[25], &[-2, 12], &[2, 3, 4, 0], &[i64::MAX, -1], &[i64::MAX, i64::MAX]] {
        assert!(to(wrong).is_err(), "{wrong:?}");
    }
    // A batch of none still has rows of a known length; a length of 0 that is meant leaves nothing to tell.
    let empty = floats(&[0, 3, 4]);
    assert_eq!(dims(run(Reshape::new(), &[empty.clone(), list(&[0, -1])])), [0, 12]);
    assert_eq!(dims(run(Reshape::new().with_allow_zero(true), &[empty.clone(), list(&[3, 0])])), [3, 0]);
    assert!(run(Reshape::new().with_allow_zero(true), &[empty, list(&[0, -1])]).is_err());
    assert!(matches!(run(Reshape::new(), &[x.clone(), x.clone()]).unwrap_err().kind(), Error::Type { .. }));
}

#[test]
fn flatten_squeeze_unsqueeze() {
    let x = floats(&[2, 1, 3, 1]);
    let flat = |axis| run(Flatten::new(axis), std::slice::from_ref(&x));
    for (axis, expected) in [(0, [1, 6]), (1, [2, 3]), (3, [6, 1]), (4, [6, 1]), (-4, [1, 6]), (-1, [6, 1])] {
        assert_eq!(dims(flat(axis)), expected, "axis {axis}");
    }
    assert!(flat(5).is_err() && flat(-5).is_err() && flat(i64::MIN).is_err());
    assert_eq!(dims(run(Flatten::new(0), &[scalar(1f32)])), [1, 1]);
    assert_eq!(dims(run(Squeeze::new(), std::slice::from_ref(&x))), [2, 3]);
    assert_eq!(dims(run(Squeeze::new().with_axes([-1]), std::slice::from_ref(&x))), [2, 1, 3]);
    assert_eq!(dims(run(Squeeze::new(), &[x.clone(), list(&[1])])), [2, 3, 1]);
    assert!(run(Squeeze::new(), &[x.clone(), list(&[0])]).is_err());
    assert_eq!(dims(run(Unsqueeze::new(), &[x.clone(), list(&[-1, 0])])), [1, 2, 1, 3, 1, 1]);
    assert_eq!(dims(run(Unsqueeze::new().with_axes([1]), &[list(&[7])])), [1, 1]);
    for wrong in [&[0, 0][..], &[6], &[0, -6]] {
        assert!(run(Unsqueeze::new(), &[x.clone(), list(wrong)]).is_err(), "{wrong:?}");
    }
}

#[test]
fn identity_dropout_size() {
    let x = floats(&[3, 5]);
    assert_eq!(run(Identity, std::slice::from_ref(&x)).unwrap(), std::slice::from_ref(&x));
    assert_eq!(run(Dropout::new(), &[x.clone(), scalar(0.7f32), scalar(false)]).unwrap(), std::slice::from_ref(&x));
    let y = run(Dropout::new().with_mask(true), &[x.clone(), scalar(0f32), scalar(true)]).unwrap();
    assert_eq!(y, [x.clone(), Tensor::full([3, 5], true).unwrap().into()]);
    let trains = run(Dropout::new(), &[x.clone(), scalar(0.5f32), scalar(true)]).unwrap_err();
    assert!(trains.to_string().contains("unsupported"), "{trains}");
    assert_eq!(run(SizeOf, &[x]).unwrap(), [scalar(15i64)]);
}

#[test]
fn ranges() {
    let range = |start: Value, limit: Value, delta: Value| run(Range::new(), &[start, limit, delta]).map(|mut y| y.remove(0));
    assert_eq!(range(scalar(3i64), scalar(10i64), scalar(3i64)).unwrap(), list(&[3, 6, 9]));
    assert_eq!(range(scalar(3i64), scalar(-3i64), scalar(-3i64)).unwrap(), list(&[3, 0]));
    assert_eq!(range(scalar(3i64), scalar(4i64), scalar(-3i64)).unwrap(), list(&[]));
    assert_eq!(range(scalar(i64::MIN), scalar(i64::MAX), scalar(i64::MAX)).unwrap(), list(&[i64::MIN, -1, i64::MAX - 1]));
    let halves = Tensor::new([3], vec![1.0f32, 1.5, 2.0]).unwrap();
    assert_eq!(range(scalar(1f32), scalar(2.25f32), scalar(0.5f32)).unwrap(), halves.into());
    assert!(range(scalar(0i64), scalar(1i64), scalar(0i64)).is_err());
    assert!(range(scalar(0f32), scalar(1f32), scalar(f32::NAN)).is_err());
    assert!(range(scalar(0f32), scalar(f32::INFINITY), scalar(1f32)).is_err());
    assert!(range(scalar(0f32), scalar(1i64), scalar(1f32)).is_err());
}

#[test]
fn constants_diagonals_triangles() {
    let ones = ConstantOfShape::new(Tensor::full([1], -7i16).unwrap()).unwrap();
    assert_eq!(run(ones.clone(), &[list(&[2, 3])]).unwrap(), [Tensor::full([2, 3], -7i16).unwrap().into()]);
    assert_eq!(run(ConstantOfShape::zero().unwrap(), &[list(&[])]).unwrap(), [scalar(0f32)]);
    assert!(run(ones.clone(), &[list(&[2, -3])]).is_err() && run(ones, &[list(&[i64::MAX, 2])]).is_err());
    let eye = EyeLike::new().with_dtype(DType::F64).with_diagonal(1);
    let expected = Tensor::new([2, 3], vec![0f64, 1.0, 0.0, 0.0, 0.0, 1.0]).unwrap();
    assert_eq!(run(eye, &[floats(&[2, 3])]).unwrap(), [lowprec::Value::F64(expected)]);
    let below = EyeLike::new().with_diagonal(-1);
    assert_eq!(run(below, &[floats(&[2, 2])]).unwrap(), [Tensor::new([2, 2], vec![0f32, 0.0, 1.0, 0.0]).unwrap().into()]);
    assert!(run(EyeLike::new().with_diagonal(i64::MAX), &[floats(&[2, 2])]).is_ok());
    let x = floats(&[2, 3, 3]);
    for (upper, k) in [(true, 0), (true, 1), (true, -1), (false, 0), (false, 2), (false, -5), (true, i64::MAX), (false, i64::MIN)] {
        let y = run(Trilu::new(upper), &[x.clone(), scalar(k)]).unwrap();
        let kept = |i: i64, j: i64| if upper { j - i >= k } else { j - i <= k };
        let expected: Vec<f32> = (0..18).map(|at| if kept(at / 3 % 3, at % 3) { at as f32 } else { 0.0 }).collect();
        assert_eq!(y, [Tensor::new([2, 3, 3], expected).unwrap().into()], "{upper} {k}");
    }
    assert_eq!(dims(run(Trilu::new(true), &[floats(&[0, 4])])), [0, 4]);
}
