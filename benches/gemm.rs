//! Products of known networks on every instruction set, one thread: `cargo bench --bench gemm`.
//! The item throughput is operations per second: two for each multiply-accumulate.
use divan::{Bencher, counter::ItemsCount};
use lowprec::kernels::{
    Accumulate, Activation, ActivationRule, Epilogue, FloatEpilogue, Isa, Matrix, MatrixMut, PackedFloatWeights, PackedWeights, Per,
    RangeOf, Requantize, WeightLayout, Workspace, gemm, gemm_dynamic, sgemm,
};

fn main() {
    divan::main();
}

/// A product: name, m, n, k.
struct Case(&'static str, usize, usize, usize);

const CASES: [Case; 10] = [
    Case("128x384x384", 128, 384, 384),
    Case("128x768x768", 128, 768, 768),
    Case("128x3072x768", 128, 3072, 768),
    Case("128x768x3072", 128, 768, 3072),
    Case("1024 square", 1024, 1024, 1024),
    Case("2048 square", 2048, 2048, 2048),
    Case("8x4096x4096", 8, 4096, 4096),
    Case("16x384x1536", 16, 384, 1536),
    Case("1x4096x4096", 1, 4096, 4096),
    Case("1x64x32", 1, 64, 32),
];

/// A case on an instruction set, which prints as both.
struct On(&'static Case, Isa);

impl std::fmt::Display for On {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.0.0, self.1.name())
    }
}

/// Every case on every instruction set, but the largest not without vectors, where one call takes longer than all others together.
fn cases() -> Vec<On> {
    let all = CASES.iter().flat_map(|case| Isa::available().into_iter().map(move |isa| On(case, isa)));
    all.filter(|On(Case(_, m, n, k), isa)| *isa != Isa::Scalar || m * n * k < 1 << 32).collect()
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
fn gemm_i32(bencher: Bencher, On(Case(_, m, n, k), isa): &On) {
    let packed = PackedWeights::pack_for(*isa, &weights(n * k), *n, *k, WeightLayout::Nk).expect("available");
    let (lhs, mut dst, mut workspace) = (codes(m * k), vec![0i32; m * n], Workspace::new());
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        let (a, c) = (Matrix::new(&lhs, *m, *k).expect("fits"), MatrixMut::new(&mut dst, *m, *n).expect("fits"));
        gemm(a, Per::Tensor(128), &packed, &Accumulate, c, &mut workspace, 1).expect("shapes fit")
    });
}

#[divan::bench(args = cases())]
fn gemm_u8(bencher: Bencher, On(Case(_, m, n, k), isa): &On) {
    let packed = PackedWeights::pack_for(*isa, &weights(n * k), *n, *k, WeightLayout::Nk).expect("available");
    let (lhs, mut dst, mut workspace) = (codes(m * k), vec![0u8; m * n], Workspace::new());
    let stage = Requantize::<u8>::new(&[1e-4]).with_zero_point(3);
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        let (a, c) = (Matrix::new(&lhs, *m, *k).expect("fits"), MatrixMut::new(&mut dst, *m, *n).expect("fits"));
        gemm(a, Per::Tensor(128), &packed, &stage, c, &mut workspace, 1).expect("shapes fit")
    });
}

#[divan::bench(args = cases())]
fn gemm_dynamic_f32(bencher: Bencher, On(Case(_, m, n, k), isa): &On) {
    let packed = PackedWeights::pack_for(*isa, &weights(n * k), *n, *k, WeightLayout::Nk).expect("available");
    let (lhs, mut dst, mut workspace) = (floats(m * k), vec![0f32; m * n], Workspace::new());
    let rule = ActivationRule::default();
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        let (a, c) = (Matrix::new(&lhs, *m, *k).expect("fits"), MatrixMut::new(&mut dst, *m, *n).expect("fits"));
        gemm_dynamic(a, RangeOf::Row, &rule, &packed, &EPILOGUE, c, &mut workspace, 1).expect("shapes fit")
    });
}

#[divan::bench(args = cases())]
fn gemm_float(bencher: Bencher, On(Case(_, m, n, k), isa): &On) {
    let packed = PackedFloatWeights::pack_for(*isa, &floats(n * k), *n, *k, WeightLayout::Nk).expect("available");
    let (lhs, mut dst) = (floats(m * k), vec![0f32; m * n]);
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        let (a, c) = (Matrix::new(&lhs, *m, *k).expect("fits"), MatrixMut::new(&mut dst, *m, *n).expect("fits"));
        sgemm(a, &packed, &FloatEpilogue::new().with_activation(Activation::Relu), c, 1).expect("shapes fit")
    });
}

/// Quantizing and packing the float weights of a layer. Items are weights.
#[divan::bench(args = [(768, 3072), (4096, 4096)])]
fn quantize_weights(bencher: Bencher, (n, k): (usize, usize)) {
    let weights = floats(n * k);
    bencher.counter(ItemsCount::new(n * k)).bench_local(|| PackedWeights::quantize(&weights, n, k, WeightLayout::Nk).expect("finite"));
}
