//! What several test files share: seeded numbers and a small network.
#![allow(dead_code)]

use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{BatchNorm2d, Conv2d, Dim, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Model};
use lowprec::{DType, Tensor};

/// SplitMix64: the same numbers on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn tensor<const N: usize>(&mut self, dims: [usize; N], scale: f32) -> Tensor {
        let data = (0..dims.iter().product()).map(|_| self.unit() * scale).collect();
        Tensor::new(dims, data).unwrap()
    }
}

pub fn norm(random: &mut Random, channels: usize) -> BatchNorm2d {
    let positive = |t: Tensor| Tensor::new([channels], t.as_slice().iter().map(|x| x.abs() + 0.5).collect()).unwrap();
    let (weight, variance) = (positive(random.tensor([channels], 1.0)), positive(random.tensor([channels], 1.0)));
    BatchNorm2d::new(weight, random.tensor([channels], 0.3), random.tensor([channels], 0.3), variance, 1e-5).unwrap()
}

pub fn conv(random: &mut Random, geometry: Conv2dGeometry, bias: bool) -> Conv2d {
    let fan_in: usize = geometry.weight_shape()[1..].iter().product();
    let weight = random.tensor(geometry.weight_shape(), 1.7 / (fan_in as f32).sqrt());
    let bias = bias.then(|| random.tensor([geometry.out_channels], 0.2));
    Conv2d::new(geometry, weight, bias).unwrap()
}

/// Residual, with batch norm, a depthwise and a grouped convolution, odd channels, stride, and a linear head.
pub fn network(seed: u64) -> Model {
    let r = &mut Random(seed);
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let same = |i, o| Conv2dGeometry::new(i, o, [3, 3]).with_padding([1; 4]);
    let x = net.add("conv1", conv(r, same(3, 20), false), &[x]).unwrap();
    let x = net.add("bn1", norm(r, 20), &[x]).unwrap();
    let shortcut = net.add("relu1", Layer::Relu, &[x]).unwrap();
    let x = net.add("depthwise", conv(r, same(20, 20).with_groups(20), true), &[shortcut]).unwrap();
    let x = net.add("relu2", Layer::Relu6, &[x]).unwrap();
    let x = net.add("grouped", conv(r, same(20, 20).with_groups(4), false), &[x]).unwrap();
    let x = net.add("bn2", norm(r, 20), &[x]).unwrap();
    let x = net.add("add", Layer::Add, &[x, shortcut]).unwrap();
    let x = net.add("pool", MaxPool2d::new([2, 2]), &[x]).unwrap();
    let x =
        net.add("conv2", conv(r, Conv2dGeometry::new(20, 33, [3, 2]).with_stride([2, 1]).with_padding([1, 0, 0, 1]), true), &[x]).unwrap();
    let x = net.add("gap", GlobalAvgPool2d, &[x]).unwrap();
    let x = net.add("flatten", Layer::Flatten { axis: 1 }, &[x]).unwrap();
    let x = net.add("fc", Linear::new(r.tensor([7, 33], 0.3), Some(r.tensor([7], 0.1))).unwrap(), &[x]).unwrap();
    let x = net.add("softmax", Layer::Softmax { axis: 1 }, &[x]).unwrap();
    net.output("probabilities", x).unwrap();
    net.build().unwrap()
}
