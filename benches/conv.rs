//! Convolutions of known networks on every instruction set, one thread: `cargo bench --bench conv`.
//! The item throughput is operations per second: two for each multiply-accumulate.
use divan::{Bencher, counter::ItemsCount};
use lowprec::kernels::{
    Activation, ActivationRule, Conv2dGeometry, Epilogue, FloatEpilogue, ImageLayout, ImageShape, Isa, PackedConv2d, PackedFloatConv2d,
    Per, RangeOf, Requantize, Workspace, conv2d, conv2d_dynamic, conv2d_f32,
};

fn main() {
    divan::main();
}

/// A convolution over square images: name, size, channels in and out, kernel, stride, groups.
struct Case(&'static str, usize, usize, usize, usize, usize, usize);

const CASES: [Case; 11] = [
    Case("3x3 64@56", 56, 64, 64, 3, 1, 1),
    Case("3x3 128@28", 28, 128, 128, 3, 1, 1),
    Case("3x3 256@14", 14, 256, 256, 3, 1, 1),
    Case("3x3 512@7", 7, 512, 512, 3, 1, 1),
    Case("7x7/2 3-64@224", 224, 3, 64, 7, 2, 1),
    Case("1x1 64-256@56", 56, 64, 256, 1, 1, 1),
    Case("1x1 1024-256@14", 14, 1024, 256, 1, 1, 1),
    Case("1x1 16-96@112", 112, 16, 96, 1, 1, 1),
    Case("depthwise 3x3 96@56", 56, 96, 96, 3, 1, 96),
    Case("depthwise 3x3/2 96@112", 112, 96, 96, 3, 2, 96),
    Case("grouped 3x3 32x4@56", 56, 128, 128, 3, 1, 32),
];

/// A case on an instruction set, which prints as both.
struct On(&'static Case, Isa);

impl std::fmt::Display for On {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.0.0, self.1.name())
    }
}

fn cases() -> Vec<On> {
    CASES.iter().flat_map(|case| Isa::available().into_iter().map(move |isa| On(case, isa))).collect()
}

impl Case {
    fn geometry(&self) -> Conv2dGeometry {
        let Case(_, _, input, output, kernel, stride, groups) = *self;
        Conv2dGeometry::new(input, output, [kernel; 2]).with_stride([stride; 2]).with_padding([kernel / 2; 4]).with_groups(groups)
    }

    fn shape(&self) -> ImageShape {
        ImageShape { n: 1, h: self.1, w: self.1, layout: ImageLayout::Nhwc }
    }

    fn inputs(&self) -> usize {
        self.1 * self.1 * self.2
    }

    fn weights(&self) -> usize {
        self.geometry().weight_shape().iter().product()
    }

    /// Elements of the output, and operations.
    fn outputs(&self) -> (usize, ItemsCount) {
        let [h, w] = self.geometry().output_size(self.1, self.1).expect("shapes of real networks");
        (h * w * self.3, ItemsCount::new(2 * self.geometry().macs(h, w)))
    }
}

fn codes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn weights(len: usize) -> Vec<i8> {
    (0..len).map(|i| (i * 29 % 255) as u8 as i8).collect()
}

fn floats(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 31 % 251) as f32 * 0.01 - 1.0).collect()
}

const EPILOGUE: Epilogue<'static> =
    Epilogue { weight_scale: &[0.01], bias: None, accumulate: false, activation: Activation::Relu, ranges: None };

#[divan::bench(args = cases())]
fn conv2d_u8(bencher: Bencher, On(case, isa): &On) {
    let packed = PackedConv2d::pack_for(*isa, &case.geometry(), &weights(case.weights())).expect("available");
    let (input, (len, operations)) = (codes(case.inputs()), case.outputs());
    let (mut dst, mut workspace) = (vec![0u8; len], Workspace::new());
    let stage = Requantize::<u8>::new(&[1e-4]).with_zero_point(3);
    bencher
        .counter(operations)
        .bench_local(|| conv2d(&input, case.shape(), Per::Tensor(128), &packed, &stage, &mut dst, &mut workspace, 1).expect("shapes fit"));
}

#[divan::bench(args = cases())]
fn conv2d_dynamic_f32(bencher: Bencher, On(case, isa): &On) {
    let packed = PackedConv2d::pack_for(*isa, &case.geometry(), &weights(case.weights())).expect("available");
    let (input, (len, operations)) = (floats(case.inputs()), case.outputs());
    let (mut dst, mut workspace) = (vec![0f32; len], Workspace::new());
    let rule = ActivationRule::default();
    bencher.counter(operations).bench_local(|| {
        conv2d_dynamic(&input, case.shape(), RangeOf::Row, &rule, &packed, &EPILOGUE, &mut dst, &mut workspace, 1).expect("shapes fit")
    });
}

#[divan::bench(args = cases())]
fn conv2d_float(bencher: Bencher, On(case, isa): &On) {
    let packed = PackedFloatConv2d::pack_for(*isa, &case.geometry(), &floats(case.weights())).expect("available");
    let (input, (len, operations)) = (floats(case.inputs()), case.outputs());
    let (mut dst, mut workspace) = (vec![0f32; len], Workspace::new());
    bencher.counter(operations).bench_local(|| {
        conv2d_f32(&input, case.shape(), &packed, &FloatEpilogue::new().with_activation(Activation::Relu), &mut dst, &mut workspace, 1)
            .expect("shapes fit")
    });
}
