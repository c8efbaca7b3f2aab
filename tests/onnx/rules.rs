//! Codes, qparams and dynamic layers against the numbers that the ONNX rules give (`tests/reference/quant_fixtures.py`).

use std::collections::BTreeMap;

use lowprec::io::safetensors;
use lowprec::kernels::{Conv2dGeometry, ImageLayout, ImageShape, Isa, Workspace};
use lowprec::nn::quantized::{Conv2d, DynamicScheme, Linear};
use lowprec::quant::observer::MinMax;
use lowprec::quant::{Affine, Quantizer};
use lowprec::{Granularity, I4, Observer, QParams, QuantElem, QuantizedTensor, Scheme, Tensor, U4, Value};
use serde_json::Value as Json;

struct Fixtures {
    tensors: BTreeMap<String, Value>,
    cases: Vec<(String, Json)>,
}

impl Fixtures {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quant.safetensors");
        let file = safetensors::read_tensors(&std::fs::read(path).unwrap()).unwrap();
        let cases = file.metadata.iter().map(|(name, json)| (name.clone(), serde_json::from_str(json).unwrap())).collect();
        Fixtures { tensors: file.tensors.into_iter().collect(), cases }
    }

    /// The cases of one operator; a fixture file that lost some must not pass.
    fn of(&self, op: &str, count: usize) -> Vec<(&str, &Json)> {
        let cases: Vec<_> = self.cases.iter().filter(|(_, case)| case["op"] == op).map(|(name, case)| (name.as_str(), case)).collect();
        assert_eq!(cases.len(), count, "cases of {op}");
        cases
    }

    fn optional(&self, case: &str, key: &str) -> Option<&Tensor> {
        self.tensors.get(&format!("{case}.{key}")).and_then(|value| value.get::<f32>())
    }

    fn f32(&self, case: &str, key: &str) -> &Tensor {
        self.optional(case, key).unwrap_or_else(|| panic!("{case}.{key}"))
    }

    fn integers(&self, case: &str, key: &str) -> Vec<i32> {
        match &self.tensors[&format!("{case}.{key}")] {
            Value::U8(t) => t.as_slice().iter().map(|&x| x.into()).collect(),
            Value::I8(t) => t.as_slice().iter().map(|&x| x.into()).collect(),
            Value::I32(t) => t.as_slice().to_vec(),
            other => panic!("{case}.{key} is {}", other.dtype()),
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn dynamic_quantize_linear() {
    let fixtures = Fixtures::load();
    for (name, case) in fixtures.of("dynamic_quantize_linear", 40) {
        assert_eq!(asymmetric::<u8>(&fixtures, name, &Scheme::UINT8_ACTIVATION).0, rule(&fixtures, name), "{name}: {case}");
    }
}

#[test]
fn asymmetric_int8() {
    let fixtures = Fixtures::load();
    for (name, case) in fixtures.of("asymmetric_int8", 9) {
        assert_eq!(asymmetric::<i8>(&fixtures, name, &Scheme::INT8_ACTIVATION).0, rule(&fixtures, name), "{name}: {case}");
    }
}

/// The one departure from the rule: constants always come back exactly. Where they do under the rule too, it is followed.
#[test]
fn constants() {
    let fixtures = Fixtures::load();
    for (name, case) in fixtures.of("constant", 12) {
        let (ours, back) = asymmetric::<u8>(&fixtures, name, &Scheme::UINT8_ACTIVATION);
        assert_eq!(bits(back.as_slice()), bits(fixtures.f32(name, "x").as_slice()), "{name}: {case}");
        assert_eq!(ours == rule(&fixtures, name), case["exact"].as_bool().unwrap(), "{name}: {case}");
    }
}

/// Scale, zero point and codes.
type Quantized = (Vec<u32>, Vec<i32>, Vec<i32>);

/// Those of a case's values by their range, and the values back.
fn asymmetric<T: QuantElem>(fixtures: &Fixtures, name: &str, scheme: &Scheme) -> (Quantized, Tensor) {
    let x = fixtures.f32(name, "x");
    let quantizer = Affine::<T>::fit(x, scheme).unwrap();
    let codes = quantizer.quantize(x).unwrap();
    let params = quantizer.qparams();
    ((bits(params.scales()), vec![params.at(0).1], codes.codes()), codes.dequantize())
}

fn rule(fixtures: &Fixtures, name: &str) -> Quantized {
    (bits(fixtures.f32(name, "scale").as_slice()), fixtures.integers(name, "zero_point"), fixtures.integers(name, "codes"))
}

fn check_linear<T: QuantElem>(fixtures: &Fixtures, name: &str, case: &Json) {
    let x = fixtures.f32(name, "x");
    let granularity = case["axis"].as_u64().map_or(Granularity::PerTensor, |axis| Granularity::PerChannel { axis: axis as usize });
    let scales = fixtures.f32(name, "scale").as_slice().to_vec();
    let params = QParams::new(scales, fixtures.integers(name, "zero_point"), granularity, T::QMIN, T::QMAX).unwrap();
    let codes = QuantizedTensor::<T>::quantize(x, &params).unwrap();
    assert_eq!(codes.codes(), fixtures.integers(name, "codes"), "{name}: {case}");
    assert_eq!(bits(codes.dequantize().as_slice()), bits(fixtures.f32(name, "dequantized").as_slice()), "{name}: {case}");
}

#[test]
fn quantize_linear_and_back() {
    let fixtures = Fixtures::load();
    for (name, case) in fixtures.of("quantize_linear", 32) {
        match case["dtype"].as_str().unwrap() {
            "uint8" => check_linear::<u8>(&fixtures, name, case),
            "int8" => check_linear::<i8>(&fixtures, name, case),
            "uint4" => check_linear::<U4>(&fixtures, name, case),
            "int4" => check_linear::<I4>(&fixtures, name, case),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn symmetric_weights() {
    let fixtures = Fixtures::load();
    for (name, _) in fixtures.of("symmetric_weight", 2) {
        let weight = fixtures.f32(name, "weight");
        let mut observer = MinMax::new(Granularity::PerChannel { axis: 0 });
        observer.observe(weight).unwrap();
        let params = observer.qparams(&Scheme::INT8_WEIGHT).unwrap();
        assert_eq!(bits(params.scales()), bits(fixtures.f32(name, "scale").as_slice()), "{name}");
        assert_eq!(QuantizedTensor::<i8>::quantize(weight, &params).unwrap().codes(), fixtures.integers(name, "codes"), "{name}");
    }
}

fn pair<const N: usize>(case: &Json, key: &str) -> [usize; N] {
    std::array::from_fn(|i| case[key][i].as_u64().unwrap() as usize)
}

/// The whole layer, to the bit: range, codes, products, dequantization, bias.
#[test]
fn dynamic_convolutions() {
    let fixtures = Fixtures::load();
    for (name, case) in fixtures.of("conv2d_dynamic", 9) {
        let (x, weight) = (fixtures.f32(name, "x"), fixtures.f32(name, "weight"));
        let (&[n, c, h, w], &[out, _, kh, kw]) = (x.dims(), weight.dims()) else { panic!("{name}") };
        let geometry = Conv2dGeometry::new(c, out, [kh, kw])
            .with_stride(pair(case, "stride"))
            .with_padding(pair(case, "padding"))
            .with_dilation(pair(case, "dilation"))
            .with_groups(case["groups"].as_u64().unwrap() as usize);
        let bias = fixtures.optional(name, "bias").map(Tensor::as_slice);
        for isa in Isa::available() {
            let layer = Conv2d::from_float(&geometry, weight.as_slice(), bias, &DynamicScheme::default(), isa).unwrap();
            assert_eq!(layer.weight().unwrap().codes(), fixtures.integers(name, "weight_codes"), "{name}");
            assert_eq!(bits(layer.scales()), bits(fixtures.f32(name, "weight_scale").as_slice()), "{name}");
            let expected = fixtures.f32(name, "output");
            let &[_, _, oh, ow] = expected.dims() else { panic!("{name}") };
            let mut nhwc = vec![0.0; expected.len()];
            let shape = ImageShape { n, h, w, layout: ImageLayout::Nchw };
            layer.forward(x.as_slice(), shape, &mut nhwc, &mut Workspace::default(), 1).unwrap();
            let mut output = vec![0.0; expected.len()];
            lowprec::nn::reorder::nhwc_to_nchw(&nhwc, [n, out, oh, ow], &mut output).unwrap();
            assert_eq!(bits(&output), bits(expected.as_slice()), "{name} on {}: {case}", isa.name());
        }
    }
}

#[test]
fn dynamic_linear_layers() {
    let fixtures = Fixtures::load();
    for (name, case) in fixtures.of("linear_dynamic", 4) {
        let (x, weight) = (fixtures.f32(name, "x"), fixtures.f32(name, "weight"));
        let &[out, input] = weight.dims() else { panic!("{name}") };
        let bias = fixtures.optional(name, "bias").map(Tensor::as_slice);
        for isa in Isa::available() {
            let layer = Linear::from_float(input, out, weight.as_slice(), bias, &DynamicScheme::default(), isa).unwrap();
            assert_eq!(layer.weight().unwrap().codes(), fixtures.integers(name, "weight_codes"), "{name}");
            let expected = fixtures.f32(name, "output");
            let mut output = vec![0.0; expected.len()];
            layer.forward(x.as_slice(), x.len() / input, &mut output, &mut Workspace::default(), 1).unwrap();
            assert_eq!(bits(&output), bits(expected.as_slice()), "{name} on {}: {case}", isa.name());
        }
    }
}
