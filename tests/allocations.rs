//! With one thread and a warm workspace the kernels allocate nothing.
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use lowprec::kernels::{
    Accumulate, Activation, ActivationRule, Conv2dGeometry, Epilogue, FloatEpilogue, ImageLayout, ImageShape, Isa, Matrix, MatrixMut,
    PackedConv2d, PackedFloatConv2d, PackedFloatWeights, PackedWeights, Pairwise, Per, RangeOf, Requantize, WeightLayout, Workspace,
    conv2d, conv2d_dynamic, conv2d_f32, gemm, gemm_dynamic, lookup_for, min_max, quantize_u8, sgemm,
};
use lowprec::num::U8Grid;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)]
// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(p, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// One test alone in this binary: others would allocate on their own threads meanwhile.
#[test]
fn a_warm_workspace_allocates_nothing() {
    let (m, n, k) = (33, 40, 30);
    let codes: Vec<u8> = (0..m * k).map(|i| i as u8).collect();
    let signed: Vec<i8> = codes.iter().map(|&c| c as i8).collect();
    let floats: Vec<f32> = codes.iter().map(|&c| f32::from(c)).collect();
    let zero_points = vec![3; m];
    let epilogue = Epilogue::new(&[0.5]).with_activation(Activation::Relu);
    let shape = ImageShape { n: 1, h: 10, w: 11, layout: ImageLayout::Nchw };
    let nhwc = ImageShape { layout: ImageLayout::Nhwc, ..shape };
    let dense = Conv2dGeometry::new(9, 20, [3, 3]).with_padding([1; 4]);
    let depthwise = Conv2dGeometry::new(9, 18, [3, 3]).with_padding([1; 4]).with_groups(9);
    let by_fewer_products = Conv2dGeometry::new(128, 32, [3, 3]).with_padding([1; 4]);
    let large = ImageShape { n: 1, h: 30, w: 30, layout: ImageLayout::Nhwc };
    let (pixels, mut planes) = (vec![5u8; 128 * 900], vec![0i32; 32 * 900]);
    let grid = U8Grid::new(0.5, 3).unwrap();
    let pairs = Pairwise::sum(grid, grid, grid).unwrap();
    let rule = ActivationRule::default();
    let (mut sums, mut out, mut result) = (vec![0i32; 2200], vec![0u8; 2200], vec![0f32; 2200]);
    for isa in Isa::available() {
        let weights = PackedWeights::pack_for(isa, &vec![1; n * k], n, k, WeightLayout::Nk).unwrap();
        let float_weights = PackedFloatWeights::pack_for(isa, &vec![1.0; n * k], n, k, WeightLayout::Nk).unwrap();
        let convs = [&dense, &depthwise].map(|g| {
            let len = g.weight_shape().iter().product();
            (PackedConv2d::pack_for(isa, g, &vec![1; len]).unwrap(), PackedFloatConv2d::pack_for(isa, g, &vec![1.0; len]).unwrap())
        });
        let wide = PackedConv2d::pack_for(isa, &by_fewer_products, &vec![1; 128 * 32 * 9]).unwrap();
        let mut workspace = Workspace::new();
        let mut pass = || {
            let w = &mut workspace;
            let a = Matrix::new(&codes, m, k).unwrap();
            gemm(a, Per::Row(&zero_points), &weights, &Accumulate, MatrixMut::new(&mut sums, m, n).unwrap(), w, 1).unwrap();
            let (a, c) = (Matrix::new(&signed, m, k).unwrap(), MatrixMut::new(&mut out, m, n).unwrap());
            gemm(a, Per::Tensor(3), &weights, &Requantize::<u8>::new(&[0.1]), c, w, 1).unwrap();
            let a = Matrix::new(&floats, m, k).unwrap();
            for range in [RangeOf::Row, RangeOf::Tensor] {
                let c = MatrixMut::new(&mut result, m, n).unwrap();
                gemm_dynamic(a, range, &rule, &weights, &epilogue, c, w, 1).unwrap();
            }
            sgemm(a, &float_weights, &FloatEpilogue::new(), MatrixMut::new(&mut result, m, n).unwrap(), 1).unwrap();
            for (conv, float) in &convs {
                let channels = conv.geometry().out_channels;
                for shape in [shape, nhwc] {
                    conv2d(&codes, shape, Per::Tensor(3), conv, &Accumulate, &mut sums[..110 * channels], w, 1).unwrap();
                    conv2d(&signed, shape, Per::Row(&[3]), conv, &Accumulate, &mut sums[..110 * channels], w, 1).unwrap();
                    for range in [RangeOf::Row, RangeOf::Tensor] {
                        conv2d_dynamic(&floats, shape, range, &rule, conv, &epilogue, &mut result[..110 * channels], w, 1).unwrap();
                    }
                    conv2d_f32(&floats, shape, float, &FloatEpilogue::new(), &mut result[..110 * channels], w, 1).unwrap();
                }
            }
            conv2d(&pixels, large, Per::Tensor(3), &wide, &Accumulate, &mut planes, w, 1).unwrap();
            let range = min_max(&floats);
            quantize_u8(&floats, range.max / 255.0, 0, 0, 255, &mut out[..m * k]).unwrap();
            pairs.with_isa(isa).unwrap().run(&codes, &codes, &mut out[..m * k], 1).unwrap();
            lookup_for(isa, &[7; 256], &codes, &mut out[..m * k], 1).unwrap();
        };
        pass();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        pass();
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{}", isa.name());
        assert!(workspace.bytes() > 0);
    }
}
