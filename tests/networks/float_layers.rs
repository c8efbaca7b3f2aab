//! Every float layer against PyTorch's output (`tests/reference/layer_fixtures.py`), each as a model of one node, run on
//! every path that the executor has: row-major input, channels-last input, one and two threads.

use lowprec::io::safetensors;
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{AvgPool2d, BatchNorm2d, Conv2d, Dim, Executor, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Model, StateDict};
use lowprec::{DType, Tensor, metrics};
use serde_json::Value as Json;

fn numbers<const N: usize>(case: &Json, key: &str) -> [usize; N] {
    let list = case[key].as_array().unwrap_or_else(|| panic!("{key} in {case}"));
    std::array::from_fn(|i| list[i].as_u64().unwrap() as usize)
}

fn layer(name: &str, case: &Json, state: &mut StateDict) -> Layer {
    let dims = |state: &StateDict, key: &str| state.get(&format!("{name}.{key}")).map(|value| value.shape().dims().to_vec());
    let flag = |key: &str| case[key].as_bool().unwrap();
    match case["op"].as_str().unwrap() {
        "conv2d" => {
            let [out, per_group, kh, kw] = dims(state, "weight").unwrap()[..] else { panic!("{name}") };
            let groups = case["groups"].as_u64().unwrap() as usize;
            let geometry = Conv2dGeometry::new(per_group * groups, out, [kh, kw])
                .with_stride(numbers(case, "stride"))
                .with_padding(numbers(case, "padding"))
                .with_dilation(numbers(case, "dilation"))
                .with_groups(groups);
            let bias = dims(state, "bias").is_some();
            Conv2d::from_state(state, name, geometry, bias).unwrap().into()
        }
        "linear" => {
            let [out, input] = dims(state, "weight").unwrap()[..] else { panic!("{name}") };
            let bias = dims(state, "bias").is_some();
            Linear::from_state(state, name, input, out, bias).unwrap().into()
        }
        "batch_norm2d" => {
            let channels = dims(state, "weight").unwrap()[0];
            BatchNorm2d::from_state(state, name, channels, case["eps"].as_f64().unwrap() as f32).unwrap().into()
        }
        "max_pool2d" => MaxPool2d::new(numbers(case, "kernel"))
            .with_stride(numbers(case, "stride"))
            .with_padding(numbers(case, "padding"))
            .with_dilation(numbers(case, "dilation"))
            .with_ceil_mode(flag("ceil_mode"))
            .into(),
        "avg_pool2d" => AvgPool2d::new(numbers(case, "kernel"))
            .with_stride(numbers(case, "stride"))
            .with_padding(numbers(case, "padding"))
            .with_ceil_mode(flag("ceil_mode"))
            .with_count_include_pad(flag("count_include_pad"))
            .into(),
        "global_avg_pool" => GlobalAvgPool2d.into(),
        "relu" => Layer::Relu,
        "relu6" => Layer::Relu6,
        "add" => Layer::Add,
        "flatten" => Layer::Flatten { axis: 1 },
        "softmax" => Layer::Softmax { axis: case["axis"].as_u64().unwrap() as usize },
        other => panic!("no layer for {other}"),
    }
}

/// The layer alone, or behind a 1x1 convolution that passes every channel on, so that its input is channels-last.
fn model(layer: &Layer, rank: usize, channels: Option<usize>, inputs: usize) -> Model {
    let mut net = Model::builder();
    let edges: Vec<_> = (0..inputs)
        .map(|i| {
            let edge = net.input(&format!("input{i}"), DType::F32, &vec![Dim::Any; rank]).unwrap();
            let Some(c) = channels else { return edge };
            let identity = (0..c * c).map(|i| if i % (c + 1) == 0 { 1.0 } else { 0.0 }).collect();
            let pass = Conv2d::new(Conv2dGeometry::new(c, c, [1, 1]), Tensor::new([c, c, 1, 1], identity).unwrap(), None).unwrap();
            net.add(&format!("pass{i}"), pass, &[edge]).unwrap()
        })
        .collect();
    let y = net.add("layer", layer.clone(), &edges).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

#[test]
fn every_layer_is_pytorchs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/layers.safetensors");
    let file = safetensors::read_tensors(&std::fs::read(path).unwrap()).unwrap();
    let mut checked = std::collections::BTreeMap::new();
    for (name, case) in &file.metadata {
        let case: Json = serde_json::from_str(case).unwrap();
        let of_case = file.tensors.iter().filter(|(key, _)| key.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.')));
        let mut state = StateDict::new(of_case.map(|(key, value)| (key.clone(), value.clone()))).unwrap();
        let tensor = |state: &StateDict, key: &str| state.get(&format!("{name}.{key}")).and_then(|value| value.get::<f32>()).cloned();
        let (input, expected) = (tensor(&state, "input").unwrap(), tensor(&state, "output").unwrap());
        let inputs: Vec<Tensor> = [Some(input), tensor(&state, "other")].into_iter().flatten().collect();
        let layer = layer(name, &case, &mut state);
        let rank = inputs[0].dims().len();
        let mut models = vec![model(&layer, rank, None, inputs.len())];
        if rank == 4 {
            models.push(model(&layer, rank, Some(inputs[0].dims()[1]), inputs.len()));
        }
        for (model, threads) in models.iter().flat_map(|model| [(model, 1), (model, 2)]) {
            let values: Vec<(String, lowprec::Value)> =
                inputs.iter().enumerate().map(|(i, x)| (format!("input{i}"), x.clone().into())).collect();
            let given: Vec<(&str, &lowprec::Value)> = values.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let outputs = Executor::new(model).with_threads(threads).unwrap().run(&given).unwrap();
            let y = outputs[0].1.get::<f32>().unwrap();
            assert_eq!(y.dims(), expected.dims(), "{name}");
            let error = metrics::relative_error(expected.as_slice(), y.as_slice()).unwrap();
            assert!(error < 1e-4, "{name}: {error}");
        }
        *checked.entry(case["op"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    // Every kind of layer has its cases: a fixture file that lost some would otherwise pass.
    let kinds: Vec<&str> = checked.keys().map(String::as_str).collect();
    assert_eq!(
        kinds,
        ["add", "avg_pool2d", "batch_norm2d", "conv2d", "flatten", "global_avg_pool", "linear", "max_pool2d", "relu", "relu6", "softmax"]
    );
    assert_eq!(checked.values().sum::<i32>(), 48);
}
