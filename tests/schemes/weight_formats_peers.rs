//! Trained weights in 4.25 and 3.25 bits, everything counted, against the best of ONNX Runtime's and torchao's formats of 4 and 3 bits,
//! whose scales and zero points are counted on top.

use std::collections::BTreeMap;

use lowprec::metrics::sqnr_db;
use lowprec::quant::WeightFormat;
use lowprec::{Layer, Model, Tensor, onnx};

/// By network, tensor and bits: decibels, the format's name, its bits per weight.
type Peers = BTreeMap<String, BTreeMap<String, BTreeMap<String, (f64, String, f64)>>>;

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The weight of that name as a matrix of output channels.
fn matrix(model: &Model, name: &str) -> Tensor {
    let node = model.node(name.strip_suffix(".weight").expect("weights are named after their layer")).unwrap();
    let weight = match node.layer() {
        Layer::Conv2d(conv) => conv.weight(),
        Layer::Linear(linear) => linear.weight(),
        _ => panic!("{name} has no weight"),
    };
    let rows = weight.dims()[0];
    Tensor::new([rows, weight.len() / rows], weight.as_slice().to_vec()).unwrap()
}

/// The better of two trellises, with the smallest groups that so many bits allow: decibels, format, bits.
fn best(x: &Tensor, bits: u32, budget: f64) -> (f64, String, f64) {
    let [rows, columns] = [x.dims()[0], x.dims()[1]];
    let mut best = (f64::NEG_INFINITY, String::new(), 0.0);
    for log in [3, 4] {
        let bytes = |size: usize| (x.len() * bits as usize).div_ceil(8) + (rows * columns.div_ceil(size) * log).div_ceil(8) + 2;
        let held = |size: usize| 8.0 * bytes(size) as f64 / x.len() as f64;
        let Some(size) = (8..=columns).find(|&size| held(size) <= budget) else { continue };
        let text = format!("trellis{bits}:g{size}:log{log}");
        let quantized = text.parse::<WeightFormat>().unwrap().quantize(x).unwrap();
        assert_eq!(quantized.bits_per_weight(), held(size), "{text}");
        let reached = sqnr_db(x.as_slice(), quantized.dequantize().as_slice()).unwrap();
        if reached > best.0 {
            best = (reached, text, held(size));
        }
    }
    best
}

#[test]
fn trained_weights_come_back_better_in_fewer_bits() {
    let peers: Peers = serde_json::from_str(&std::fs::read_to_string(fixture("weight_format_peers.json")).unwrap()).unwrap();
    let mut compared = 0;
    let mut lost = Vec::new();
    for (network, tensors) in &peers {
        let model = onnx::load(fixture(&format!("digits_{network}.onnx"))).unwrap();
        for (name, formats) in tensors {
            let x = matrix(&model, name);
            for (bits, (peer, way, held)) in formats {
                let bits: u32 = bits.parse().unwrap();
                let budget = f64::from(bits) + 0.25;
                let (reached, format, own) = best(&x, bits, budget);
                println!("{network:9} {name:32} {reached:6.2} dB {own:.4} bits {format:18} peer {peer:6.2} dB {held:.2} bits {way}");
                assert!(own <= budget && *held > budget, "{network} {name}: {own} bits, the peer's {held}");
                compared += 1;
                if reached <= *peer {
                    lost.push(format!("{network} {name}, {bits} bits: {reached:.3} dB by {format}, {peer:.3} by {way}"));
                }
            }
        }
    }
    assert_eq!((compared, lost), (58, Vec::new()));
}
