//! A trained network, its convolutions quantized to int8, and the proof of what that cost.
//!
//!     cargo run --release --example quantize_dynamic
//!
//! The network is a small residual CNN with batch norm, trained in PyTorch on the UCI handwritten digits (8x8 images;
//! `tests/reference/train_digits.py`). The 647 test images were never used for training or tuning.

use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{BatchNorm2d, Conv2d, Dim, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Model, StateDict};
use lowprec::{DType, Error, LayerKind, Tensor, io::safetensors, metrics};

fn main() -> Result<(), Error> {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");
    let model = digits_cnn(safetensors::read_file(format!("{data}/digits_cnn.safetensors"))?)?;
    let (images, labels) = test_set(&format!("{data}/digits.safetensors"))?;

    let int8 = lowprec::quantize_dynamic(&model, &[LayerKind::Conv2d])?;
    println!("{int8}");

    let y = int8.forward(&images.slice(0, 0..10)?)?;
    println!("the first ten: {:?}, the truth: {:?}\n", metrics::top1(y.as_slice(), 10)?, &labels[..10]);

    let report = lowprec::compare(&model, &int8, &images, Some(&labels))?;
    println!("{report}");
    Ok(())
}

/// The network of `train_digits.py`, layer by layer, with the weights that PyTorch saved under its names.
pub fn digits_cnn(mut weights: StateDict) -> Result<Model, Error> {
    let mut net = Model::builder();
    let image = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Fixed(8), Dim::Fixed(8)])?;

    // Convolution 3x3, batch norm, and a ReLU where it follows directly.
    let mut block = |net: &mut lowprec::nn::ModelBuilder, i: usize, x, (channels, out): (usize, usize), stride, relu| {
        let geometry = Conv2dGeometry::new(channels, out, [3, 3]).with_padding([1; 4]).with_stride([stride; 2]);
        let x = net.add(&format!("conv{i}"), Conv2d::from_state(&mut weights, &format!("conv{i}"), geometry, false)?, &[x])?;
        let x = net.add(&format!("bn{i}"), BatchNorm2d::from_state(&mut weights, &format!("bn{i}"), out, 1e-5)?, &[x])?;
        if relu { net.add(&format!("relu{i}"), Layer::Relu, &[x]) } else { Ok(x) }
    };
    let x = block(&mut net, 1, image, (1, 16), 1, true)?;
    let x = block(&mut net, 2, x, (16, 32), 1, true)?;
    let shortcut = net.add("pool1", MaxPool2d::new([2, 2]), &[x])?;
    let x = block(&mut net, 3, shortcut, (32, 32), 1, true)?;
    let x = block(&mut net, 4, x, (32, 32), 1, false)?;
    let x = net.add("add", Layer::Add, &[x, shortcut])?;
    let x = net.add("relu4", Layer::Relu, &[x])?;
    let x = block(&mut net, 5, x, (32, 64), 2, true)?;
    let x = net.add("gap", GlobalAvgPool2d, &[x])?;
    let x = net.add("flatten", Layer::Flatten { axis: 1 }, &[x])?;
    let x = net.add("fc", Linear::from_state(&mut weights, "fc", 64, 10, true)?, &[x])?;
    net.output("logits", x)?;

    weights.finish()?; // a tensor that no layer took is an error
    net.build()
}

/// The test images as `[647, 1, 8, 8]` in 0..=1, and their labels.
pub fn test_set(path: &str) -> Result<(Tensor, Vec<usize>), Error> {
    let data = safetensors::read_file(path)?;
    let codes = |name: &str| data.get(name).and_then(|value| value.get::<u8>()).cloned();
    let (Some(images), Some(labels)) = (codes("test.images"), codes("test.labels")) else {
        return Err(Error::Format { what: path.into(), format: "digits data", reason: "no u8 tensors test.images, test.labels".into() });
    };
    let pixels = images.as_slice().iter().map(|&grey| f32::from(grey) / 16.0).collect();
    Ok((Tensor::new(images.dims(), pixels)?, labels.as_slice().iter().map(|&digit| usize::from(digit)).collect()))
}
