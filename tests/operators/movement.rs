//! Operators that move elements, in models of one node: row-major, and behind a layer that leaves images channels-last.

use lowprec::nn::operator::{
    Combine, Concat, DepthOrder, DepthToSpace, Expand, Gather, GatherElements, GatherNd, OneHot, Operator, Pad, PadMode, ReverseSequence,
    ScatterElements, ScatterNd, Slice, SpaceToDepth, Split, Tile, TopK, Transpose,
};
use lowprec::nn::{Dim, Layer, MaxPool2d, Model};
use lowprec::tensor::Element;
use lowprec::{DType, I4, Result, Tensor, Value};

/// Runs one node; `last` puts images of floats through a layer that writes channels-last first.
fn run(operator: impl Into<Operator>, inputs: &[Value], last: bool) -> Result<Vec<Value>> {
    let mut net = Model::builder();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let mut edges = Vec::new();
    for (name, value) in names.iter().zip(inputs) {
        let edge = net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()])?;
        let image = last && value.dtype() == DType::F32 && value.shape().rank() == 4 && value.shape().elements() > 0;
        edges.push(Some(if image { net.add(&format!("last of {name}"), MaxPool2d::new([1, 1]), &[edge])? } else { edge }));
    }
    for (i, edge) in net.add_node("node", &[], Layer::Operator(operator.into()), &edges)?.into_iter().enumerate() {
        net.output(&format!("y{i}"), edge)?;
    }
    let given: Vec<(&str, &Value)> = names.iter().map(String::as_str).zip(inputs).collect();
    Ok(net.build()?.run(&given)?.into_iter().map(|(_, value)| value).collect())
}

fn tensor<T: Element>(dims: &[usize], data: Vec<T>) -> Value {
    T::into_value(Tensor::new(dims.to_vec(), data).unwrap())
}

fn floats(dims: &[usize]) -> Value {
    tensor(dims, (0..dims.iter().product::<usize>()).map(|i| i as f32).collect())
}

fn list(values: &[i64]) -> Value {
    tensor(&[values.len()], values.to_vec())
}

/// `y[i] = x[source(i)]` for all indices of `dims`.
fn picked(x: &Value, dims: &[usize], source: impl Fn(&[usize]) -> Option<Vec<usize>>) -> Value {
    let data = x.get::<f32>().unwrap().as_slice();
    let at = |index: &[usize]| source(index).map_or(-1.0, |from| data[from.iter().zip(x.shape().dims()).fold(0, |at, (i, d)| at * d + i)]);
    let values = (0..dims.iter().product::<usize>()).map(|mut i| {
        let mut index = vec![0; dims.len()];
        for (index, &length) in index.iter_mut().zip(dims).rev() {
            (*index, i) = (i % length, i / length);
        }
        at(&index)
    });
    tensor(dims, values.collect())
}

#[test]
fn transposed_images_in_either_order() {
    let x = floats(&[2, 5, 3, 4]);
    for perm in [[0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 1, 2], [3, 2, 1, 0], [1, 0, 3, 2], [0, 1, 3, 2], [2, 3, 0, 1]] {
        let dims = perm.map(|axis: usize| x.shape().dims()[axis]);
        let expected = picked(&x, &dims, |index| Some((0..4).map(|axis| index[perm.iter().position(|&p| p == axis).unwrap()]).collect()));
        for last in [false, true] {
            let y = run(Transpose::new().with_perm(perm.map(|p| p as i64)), std::slice::from_ref(&x), last).unwrap();
            assert_eq!(y, std::slice::from_ref(&expected), "{perm:?} {last}");
        }
    }
    assert_eq!(run(Transpose::new(), &[floats(&[0, 3])], false).unwrap()[0].shape().dims(), [3, 0]);
    for wrong in [&[0, 0, 1, 2][..], &[0, 1, 2], &[0, 1, 2, 4]] {
        assert!(run(Transpose::new().with_perm(wrong), std::slice::from_ref(&x), false).is_err());
    }
    let codes = tensor(&[2, 3], [1, 2, 3, -4, -5, -6].map(|c| I4::new(c).unwrap()).to_vec());
    let turned = tensor(&[3, 2], [1, -4, 2, -5, 3, -6].map(|c| I4::new(c).unwrap()).to_vec());
    assert_eq!(run(Transpose::new(), &[codes], false).unwrap(), [turned]);
}

#[test]
fn concat_and_split_undo_each_other() {
    let x = floats(&[2, 7, 3, 4]);
    for last in [false, true] {
        for (axis, lengths) in [(1, vec![3, 0, 4]), (-1, vec![1, 3]), (0, vec![1, 1]), (2, vec![2, 1])] {
            let parts = run(Split::new(axis, lengths.len()), &[x.clone(), list(&lengths)], last).unwrap();
            let place = axis.rem_euclid(4) as usize;
            let mut start = 0;
            for (part, &length) in parts.iter().zip(&lengths) {
                let mut dims = x.shape().dims().to_vec();
                dims[place] = length as usize;
                let shifted = |index: &[usize]| (0..4).map(|a| index[a] + if a == place { start } else { 0 }).collect();
                assert_eq!(*part, picked(&x, &dims, |index| Some(shifted(index))), "{axis} {last}");
                start += length as usize;
            }
            assert_eq!(run(Concat::new(axis), &parts, last).unwrap(), std::slice::from_ref(&x), "{axis} {last}");
        }
    }
    let even = run(Split::new(0, 3), &[floats(&[7])], false).unwrap();
    assert_eq!(even.iter().map(|y| y.shape().dims()[0]).collect::<Vec<_>>(), [3, 3, 1]);
    assert!(run(Split::new(0, 2).with_lengths([3, 5]), &[floats(&[7])], false).is_err());
    assert!(run(Split::new(0, 2).with_lengths([-1, 8]), &[floats(&[7])], false).is_err());
    assert!(run(Concat::new(0), &[floats(&[2, 3]), floats(&[2, 4])], false).is_err());
    assert!(run(Concat::new(0), &[floats(&[2]), list(&[1])], false).is_err());
}

#[test]
fn slices_forwards_and_backwards() {
    let x = floats(&[3, 5, 4, 6]);
    for last in [false, true] {
        let y =
            run(Slice::new(), &[x.clone(), list(&[-2, 4, 0]), list(&[i64::MAX, i64::MIN, 5]), list(&[1, 3, 2]), list(&[1, -2, 3])], last);
        let expected = picked(&x, &[3, 2, 2, 3], |i| Some(vec![i[0], i[1] + 3, 3 * i[2], 4 - 2 * i[3]]));
        assert_eq!(y.unwrap(), [expected], "{last}");
    }
    let line = floats(&[10]);
    let cut = |start, end, step| {
        let y = run(Slice::new().with_range([start], [end]).with_steps([step]), std::slice::from_ref(&line), false);
        y.map(|y| y[0].get::<f32>().unwrap().as_slice().to_vec())
    };
    assert_eq!(cut(2, 8, 3).unwrap(), [2.0, 5.0]);
    assert_eq!(cut(-3, 100, 1).unwrap(), [7.0, 8.0, 9.0]);
    assert_eq!(cut(100, -100, -4).unwrap(), [9.0, 5.0, 1.0]);
    assert!(cut(5, 5, 1).unwrap().is_empty());
    assert_eq!(cut(i64::MIN, i64::MAX, i64::MAX).unwrap(), [0.0]);
    assert_eq!(cut(i64::MAX, i64::MIN, i64::MIN).unwrap(), [9.0]);
    assert!(cut(0, 1, 0).is_err());
}

#[test]
fn expanded_and_tiled() {
    let x = floats(&[3, 1]);
    let expected = picked(&x, &[2, 3, 4], |i| Some(vec![i[1], 0]));
    assert_eq!(run(Expand::new(), &[x.clone(), list(&[2, 1, 4])], false).unwrap(), [expected]);
    assert!(run(Expand::new(), &[x.clone(), list(&[2, 4, 4])], false).is_err());
    assert_eq!(run(Expand::to([0, 1, 1]), std::slice::from_ref(&x), false).unwrap()[0].shape().dims(), [0, 3, 1]);
    let x = floats(&[2, 3]);
    let expected = picked(&x, &[4, 9], |i| Some(vec![i[0] % 2, i[1] % 3]));
    assert_eq!(run(Tile::new(), &[x.clone(), list(&[2, 3])], false).unwrap(), [expected]);
    assert_eq!(run(Tile::new().with_repeats([0, 3]), std::slice::from_ref(&x), false).unwrap()[0].shape().dims(), [0, 9]);
    assert!(run(Tile::new(), &[x.clone(), list(&[2])], false).is_err());
    assert!(run(Tile::new(), &[x, list(&[i64::MAX, i64::MAX])], false).is_err());
}

#[test]
fn padded_in_every_mode() {
    let x = floats(&[2, 3, 4, 5]);
    let reflect = |at: i64, length: i64| (at.rem_euclid(2 * length - 2)).min(2 * length - 2 - at.rem_euclid(2 * length - 2));
    for last in [false, true] {
        for mode in [PadMode::Constant, PadMode::Reflect, PadMode::Edge, PadMode::Wrap] {
            // Deeper than the image in height, channels too, one column taken away.
            let pads = list(&[0, 1, 5, 2, 0, 2, 0, -1]);
            let y = run(Pad::new(mode), &[x.clone(), pads, tensor(&[1], vec![-1f32])], last).unwrap();
            let along = |at: usize, before: i64, length: i64| {
                let at = at as i64 - before;
                let found = match mode {
                    PadMode::Constant => (0..length).contains(&at).then_some(at)?,
                    PadMode::Reflect => reflect(at, length),
                    PadMode::Edge => at.clamp(0, length - 1),
                    PadMode::Wrap => at.rem_euclid(length),
                };
                Some(found as usize)
            };
            let expected = picked(&x, &[2, 6, 9, 6], |i| Some(vec![i[0], along(i[1], 1, 3)?, along(i[2], 5, 4)?, along(i[3], 2, 4)?]));
            assert_eq!(y, [expected], "{mode:?} {last}");
        }
    }
    let y = run(Pad::new(PadMode::Constant).with_pads([1, 0, 0, 1]), &[tensor(&[1, 2], vec![7i16, 8])], false).unwrap();
    assert_eq!(y, [tensor(&[2, 3], vec![0i16, 0, 0, 7, 8, 0])]);
    assert!(run(Pad::new(PadMode::Constant).with_pads([-1, -1]), &[floats(&[1])], false).is_err());
    assert!(run(Pad::new(PadMode::Edge).with_pads([1, 0]), &[floats(&[0])], false).is_err());
    assert!(run(Pad::new(PadMode::Constant).with_pads([i64::MAX, i64::MAX]), &[floats(&[1])], false).is_err());
    assert_eq!(run(Pad::new(PadMode::Constant).with_pads([1, 1]), &[floats(&[0])], false).unwrap(), [tensor(&[2], vec![0f32, 0.0])]);
}

#[test]
fn gathered() {
    let x = floats(&[3, 4, 2]);
    let y = run(Gather::new(1), &[x.clone(), tensor(&[2, 2], vec![0i32, -1, 3, 1])], false).unwrap();
    let rows = [[0, 3], [3, 1]];
    assert_eq!(y, [picked(&x, &[3, 2, 2, 2], |i| Some(vec![i[0], rows[i[1]][i[2]], i[3]]))]);
    for wrong in [4, -5, i64::MAX, i64::MIN] {
        let error = run(Gather::new(1), &[x.clone(), list(&[wrong])], false).unwrap_err().to_string();
        assert!(error.contains("must lie within -4..4") && error.contains("node"), "{error}");
    }
    assert!(run(Gather::new(0), &[floats(&[0, 2]), list(&[0])], false).is_err());
    let indices = tensor(&[2, 4, 2], vec![2i64, 0, 1, 1, -1, 0, 0, 2, 0, 0, 1, 2, -3, 1, 2, -2]);
    let y = run(GatherElements::new(0), &[x.clone(), indices.clone()], false).unwrap();
    let at = indices.get::<i64>().unwrap().as_slice();
    let expected = picked(&x, &[2, 4, 2], |i| Some(vec![at[i[0] * 8 + i[1] * 2 + i[2]].rem_euclid(3) as usize, i[1], i[2]]));
    assert_eq!(y, [expected]);
    assert!(run(GatherElements::new(0), &[x.clone(), tensor(&[1, 5, 1], vec![0i64; 5])], false).is_err());
    let y = run(GatherNd::new(1), &[x.clone(), tensor(&[3, 1], vec![3i64, -1, 0])], false).unwrap();
    assert_eq!(y, [picked(&x, &[3, 2], |i| Some(vec![i[0], [3, 3, 0][i[0]], i[1]]))]);
    let y = run(GatherNd::new(0), &[x.clone(), tensor(&[2, 3], vec![0i64, 1, 1, -1, 2, 0])], false).unwrap();
    assert_eq!(y, [tensor(&[2], vec![3f32, 20.0])]);
    assert!(run(GatherNd::new(0), &[x.clone(), tensor(&[1, 4], vec![0i64; 4])], false).is_err());
    assert!(run(GatherNd::new(0), &[x, tensor(&[1, 1], vec![3i64])], false).is_err());
}

#[test]
fn scattered() {
    let x = tensor(&[4], vec![1f32, 2.0, 3.0, 4.0]);
    let with = |reduction| {
        let inputs = [x.clone(), list(&[1, -1, 1]), tensor(&[3], vec![10f32, 5.0, 0.5])];
        run(ScatterElements::new(0).with_reduction(reduction), &inputs, false).unwrap().remove(0)
    };
    assert_eq!(with(Combine::None), tensor(&[4], vec![1f32, 0.5, 3.0, 5.0]));
    assert_eq!(with(Combine::Add), tensor(&[4], vec![1f32, 12.5, 3.0, 9.0]));
    assert_eq!(with(Combine::Mul), tensor(&[4], vec![1f32, 10.0, 3.0, 20.0]));
    assert_eq!(with(Combine::Max), tensor(&[4], vec![1f32, 10.0, 3.0, 5.0]));
    assert_eq!(with(Combine::Min), tensor(&[4], vec![1f32, 0.5, 3.0, 4.0]));
    let bytes = [tensor(&[2, 2], vec![250u8, 1, 2, 3]), tensor(&[1, 1], vec![0i64]), tensor(&[1, 2], vec![10u8, 1])];
    let y = run(ScatterNd::new().with_reduction(Combine::Add), &bytes, false).unwrap();
    assert_eq!(y, [tensor(&[2, 2], vec![4u8, 2, 2, 3])]);
    assert!(run(ScatterElements::new(0), &[x.clone(), list(&[4]), tensor(&[1], vec![0f32])], false).is_err());
    assert!(run(ScatterElements::new(0), &[x.clone(), list(&[0]), tensor(&[2], vec![0f32; 2])], false).is_err());
    assert!(run(ScatterNd::new(), &[x, tensor(&[1, 1], vec![-5i64]), tensor(&[1], vec![0f32])], false).is_err());
}

#[test]
fn depth_and_space() {
    let x = floats(&[2, 12, 3, 2]);
    for last in [false, true] {
        for order in [DepthOrder::BlockFirst, DepthOrder::ChannelFirst] {
            let y = run(DepthToSpace::new(2).unwrap().with_order(order), std::slice::from_ref(&x), last).unwrap();
            let channel = |c: usize, dy: usize, dx: usize| match order {
                DepthOrder::BlockFirst => (dy * 2 + dx) * 3 + c,
                DepthOrder::ChannelFirst => (c * 2 + dy) * 2 + dx,
            };
            let expected = picked(&x, &[2, 3, 6, 4], |i| Some(vec![i[0], channel(i[1], i[2] % 2, i[3] % 2), i[2] / 2, i[3] / 2]));
            assert_eq!(y, [expected], "{order:?} {last}");
            assert_eq!(
                run(SpaceToDepth::new(2).unwrap().with_order(order), &y, last).unwrap(),
                std::slice::from_ref(&x),
                "{order:?} {last}"
            );
        }
    }
    assert!(DepthToSpace::new(0).is_err() && SpaceToDepth::new(usize::MAX).is_err());
    assert!(run(SpaceToDepth::new(2).unwrap(), std::slice::from_ref(&x), false).is_err());
    let y = run(ReverseSequence::new(1).unwrap(), &[floats(&[2, 3, 1]), list(&[2, 0])], false).unwrap();
    assert_eq!(y, [tensor(&[2, 3, 1], vec![1f32, 0.0, 2.0, 3.0, 4.0, 5.0])]);
    assert!(run(ReverseSequence::new(0).unwrap(), &[floats(&[2, 1]), list(&[3])], false).is_err());
}

#[test]
fn one_hot_and_top_k() {
    let values = tensor(&[2], vec![0i32, 5]);
    let y = run(OneHot::new(0), &[tensor(&[3], vec![1f32, -1.0, 7.0]), list(&[3]), values.clone()], false).unwrap();
    assert_eq!(y, [tensor(&[3, 3], vec![0, 0, 0, 5, 0, 0, 0, 5, 0])]);
    assert!(run(OneHot::new(0), &[list(&[1]), list(&[-3]), values], false).is_err());
    let x = tensor(&[2, 5], vec![3f32, f32::NAN, 1.0, 3.0, 2.0, -1.0, -1.0, -2.0, 0.0, -0.0]);
    let y = run(TopK::new(-1), &[x.clone(), list(&[3])], false).unwrap();
    assert_eq!(y[1], tensor(&[2, 3], vec![1i64, 0, 3, 3, 4, 0]));
    assert!(y[0].get::<f32>().unwrap().as_slice()[0].is_nan());
    let y = run(TopK::new(-1).with_smallest(true).with_k(5), std::slice::from_ref(&x), false).unwrap();
    assert_eq!(y[1], tensor(&[2, 5], vec![2i64, 4, 0, 3, 1, 2, 0, 1, 3, 4]));
    let y = run(TopK::new(0), &[tensor(&[3, 2], vec![1u8, 6, 3, 4, 2, 5]), list(&[2])], false).unwrap();
    assert_eq!(y, [tensor(&[2, 2], vec![3u8, 6, 2, 5]), tensor(&[2, 2], vec![1i64, 0, 2, 2])]);
    assert!(run(TopK::new(0), &[x, list(&[3])], false).is_err());
}
