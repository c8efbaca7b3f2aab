//! Ranges of float outputs, measured where they are written and given to whoever reads them; sums added to what is there.
use std::cell::Cell;

use lowprec::kernels::{
    Activation, ActivationRule, Conv2dGeometry, Epilogue, FloatEpilogue, ImageLayout, ImageShape, InputRule, Isa, Matrix, MatrixMut,
    PackedConv2d, PackedFloatConv2d, PackedFloatWeights, PackedWeights, Range, RangeOf, WeightLayout, Workspace, conv2d_dynamic,
    conv2d_f32, gemm_dynamic, min_max_for, sgemm,
};
use lowprec::{Error, NonFinite};
use proptest::prelude::*;

use crate::kernel_support::{Random, bits};

const NOTHING: Range = Range { min: 9.0, max: -9.0, finite: false };

/// Images to which layers are applied one after the other.
struct Images {
    values: Vec<f32>,
    shape: ImageShape,
}

impl Images {
    fn len(&self) -> usize {
        self.values.len() / self.shape.n
    }

    /// What a pass over each image finds, or over all of them.
    fn ranges(&self, isa: Isa, cells: usize) -> Vec<Range> {
        let len = if cells == 1 { self.values.len() } else { self.len() };
        self.values.chunks(len).map(|x| min_max_for(isa, x).unwrap()).collect()
    }
}

struct Layer {
    geometry: Conv2dGeometry,
    activation: Activation,
    accumulate: bool,
    /// Whether the sums are those of floats.
    float: bool,
    /// What the range of its input is of, where it quantizes it.
    range: RangeOf,
}

impl Layer {
    /// The output, and its ranges in `cells` cells.
    fn run(
        &self,
        isa: Isa,
        random: &mut Random,
        input: &Images,
        ranges: Option<&[Range]>,
        cells: usize,
        threads: usize,
    ) -> (Images, Vec<Range>) {
        let (g, shape) = (&self.geometry, input.shape);
        let [h, w] = g.output_size(shape.h, shape.w).unwrap();
        let output = ImageShape { n: shape.n, h, w, layout: ImageLayout::Nhwc };
        let weights = random.floats(g.weight_shape().iter().product());
        let (bias, scales) = (random.floats(g.out_channels), random.scales(g.out_channels));
        let mut dst = random.floats(shape.n * h * w * g.out_channels);
        let found = vec![Cell::new(NOTHING); cells];
        let mut workspace = Workspace::new();
        if self.float {
            let packed = PackedFloatConv2d::pack_for(isa, g, &weights).unwrap();
            let epilogue = FloatEpilogue::new().with_bias(Some(&bias)).with_activation(self.activation);
            let epilogue = epilogue.with_accumulate(self.accumulate).with_ranges((cells > 0).then_some(&found));
            conv2d_f32(&input.values, shape, &packed, &epilogue, &mut dst, &mut workspace, threads).unwrap();
        } else {
            let codes: Vec<i8> = weights.iter().map(|x| (x * 127.0) as i8).collect();
            let packed = PackedConv2d::pack_for(isa, g, &codes).unwrap();
            let epilogue = Epilogue::new(&scales).with_bias(Some(&bias)).with_activation(self.activation);
            let epilogue = epilogue.with_accumulate(self.accumulate).with_ranges((cells > 0).then_some(&found));
            let rule = ActivationRule::default();
            let rule = InputRule { rule: &rule, ranges };
            conv2d_dynamic(&input.values, shape, self.range, rule, &packed, &epilogue, &mut dst, &mut workspace, threads).unwrap();
        }
        (Images { values: dst, shape: output }, found.into_iter().map(Cell::into_inner).collect())
    }
}

fn activation(i: u64) -> Activation {
    [Activation::None, Activation::Relu, Activation::Clamp { lo: 0.125, hi: 1.5 }][i as usize % 3]
}

/// A layer, the ranges that it found, and a second layer that is given them.
fn chain(geometry: &Conv2dGeometry, shape: ImageShape, seed: u64) {
    let mut random = Random(seed);
    let input = Images { values: random.floats(shape.n * geometry.in_channels * shape.h * shape.w), shape };
    for isa in Isa::available() {
        let after_floats = if seed.is_multiple_of(3) { RangeOf::Tensor } else { RangeOf::Row };
        for (float, range) in [(false, RangeOf::Row), (false, RangeOf::Tensor), (true, after_floats)] {
            let (activation, accumulate) = (activation(seed), seed.is_multiple_of(2));
            let layer = Layer { geometry: geometry.clone(), activation, accumulate, float, range };
            let state = random.0;
            let (output, _) = layer.run(isa, &mut Random(state), &input, None, 0, 1);
            for (threads, cells) in [(1, shape.n), (2, shape.n), (3, 1)] {
                let (again, found) = layer.run(isa, &mut Random(state), &input, None, cells, threads);
                let context = format!("{geometry:?} over {shape:?} on {} with {threads} threads, float: {float}", isa.name());
                assert_eq!(bits(&again.values), bits(&output.values), "{context}");
                assert_eq!(found, output.ranges(isa, cells), "{context}");
            }
            let next = Layer {
                geometry: Conv2dGeometry::new(geometry.out_channels, 7, [1, 1]),
                activation: Activation::None,
                accumulate: false,
                float: false,
                range,
            };
            let ranges = output.ranges(isa, if range == RangeOf::Tensor { 1 } else { shape.n });
            let (measured, _) = next.run(isa, &mut Random(state), &output, None, 0, 1);
            let (given, _) = next.run(isa, &mut Random(state), &output, Some(&ranges), 0, 2);
            assert_eq!(bits(&given.values), bits(&measured.values), "{geometry:?} on {}", isa.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn convolutions_report_and_take_ranges(
        kernel in prop::array::uniform2(1usize..4), stride in prop::array::uniform2(1usize..3), padding in prop::array::uniform4(0usize..3),
        (kind, a, b) in (0u8..4, 1usize..9, 1usize..6), (n, h, w) in (1usize..4, 1usize..10, 1usize..10), nchw in any::<bool>(), seed in any::<u64>(),
    ) {
        let (input, output, groups) = match kind {
            0 => (a, 5 * b, 1),
            1 => (4 * a, 4 * a, a),
            2 => (3 * a + 2, 3 * a + 2, 3 * a + 2),
            _ => (a + 1, b * (a + 1), a + 1),
        };
        let geometry = Conv2dGeometry::new(input, output, kernel).with_stride(stride).with_padding(padding).with_groups(groups);
        prop_assume!(geometry.output_size(h, w).is_ok());
        chain(&geometry, ImageShape { n, h, w, layout: if nchw { ImageLayout::Nchw } else { ImageLayout::Nhwc } }, seed);
    }

    #[test]
    fn products_report_and_take_ranges(m in 0usize..40, n in 0usize..50, k in 0usize..40, seed in any::<u64>(), threads in 1usize..4, one in any::<bool>()) {
        let mut random = Random(seed);
        let (lhs, before) = (random.floats(m * k), random.floats(m * n));
        let weights = random.floats(n * k);
        let codes: Vec<i8> = weights.iter().map(|x| (x * 127.0) as i8).collect();
        let scales = random.scales(n.max(1));
        let rule = ActivationRule::default();
        for isa in Isa::available() {
            let packed = PackedWeights::pack_for(isa, &codes, n, k, WeightLayout::Nk).unwrap();
            let float = PackedFloatWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap();
            let a = Matrix::new(&lhs, m, k).unwrap();
            for range in [RangeOf::Tensor, RangeOf::Row] {
                let found = vec![Cell::new(NOTHING); if one { 1 } else { m }];
                let run = |rule: InputRule<'_>, found: Option<&[Cell<Range>]>| {
                    let mut dst = before.clone();
                    let epilogue = Epilogue::new(&scales).with_accumulate(true).with_activation(activation(seed)).with_ranges(found);
                    let c = MatrixMut::new(&mut dst, m, n).unwrap();
                    gemm_dynamic(a, range, rule, &packed, &epilogue, c, &mut Workspace::new(), threads).unwrap();
                    dst
                };
                if n == 0 { continue; }
                let expected = run(InputRule::from(&rule), None);
                let given: Vec<Range> = match range {
                    RangeOf::Row => (0..m).map(|i| min_max_for(isa, a.row(i)).unwrap()).collect(),
                    _ => vec![min_max_for(isa, &lhs).unwrap()],
                };
                let dst = run(InputRule { rule: &rule, ranges: Some(&given) }, Some(&found));
                prop_assert_eq!(bits(&dst), bits(&expected), "{}", isa.name());
                for (i, cell) in found.iter().enumerate() {
                    let of = if one { &dst[..] } else { &dst[i * n..][..n] };
                    prop_assert_eq!(cell.get(), min_max_for(isa, of).unwrap(), "{}", isa.name());
                }
            }
            let found = vec![Cell::new(NOTHING); m];
            let mut dst = before.clone();
            let epilogue = FloatEpilogue::new().with_accumulate(true).with_ranges(Some(&found));
            sgemm(a, &float, &epilogue, MatrixMut::new(&mut dst, m, n).unwrap(), threads).unwrap();
            let mut plain = vec![0.0; m * n];
            sgemm(a, &float, &FloatEpilogue::new(), MatrixMut::new(&mut plain, m, n).unwrap(), threads).unwrap();
            plain.iter_mut().zip(&before).for_each(|(x, before)| *x += before);
            prop_assert_eq!(bits(&dst), bits(&plain));
            for (i, cell) in found.iter().enumerate() {
                prop_assert_eq!(cell.get(), min_max_for(isa, &dst[i * n..][..n]).unwrap());
            }
        }
    }
}

#[test]
fn larger_images() {
    let depthwise = |channels, kernel| Conv2dGeometry::new(channels, channels, kernel).with_groups(channels).with_padding([1; 4]);
    for (i, (geometry, h, w)) in [
        (Conv2dGeometry::new(64, 20, [3, 3]).with_padding([1; 4]), 40, 61),
        (Conv2dGeometry::new(16, 96, [1, 1]), 45, 37),
        (depthwise(96, [3, 3]), 19, 23),
        (depthwise(40, [3, 3]).with_stride([2, 2]), 31, 30),
        (depthwise(300, [3, 2]), 9, 8),
        (depthwise(96, [3, 3]), 9, 60),
        (Conv2dGeometry::new(20, 40, [3, 3]).with_groups(20).with_padding([1; 4]), 9, 60),
        (depthwise(32, [5, 5]), 20, 29),
        (Conv2dGeometry::new(64, 64, [3, 3]).with_groups(16).with_padding([1; 4]), 30, 31),
    ]
    .into_iter()
    .enumerate()
    {
        for n in [1, 2] {
            chain(&geometry, ImageShape { n, h, w, layout: ImageLayout::Nhwc }, 2 * i as u64 + n as u64);
        }
    }
}

#[test]
fn results_that_are_not_finite_have_no_place_in_a_range() {
    let geometry = Conv2dGeometry::new(2, 1, [1, 1]);
    let shape = ImageShape { n: 2, h: 1, w: 3, layout: ImageLayout::Nhwc };
    let image = [1.0, f32::INFINITY, 3.0, 0.0, -2.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0];
    for isa in Isa::available() {
        let weights = PackedFloatConv2d::pack_for(isa, &geometry, &[1.0, 1.0]).unwrap();
        let (mut dst, found) = ([0.0; 6], vec![Cell::new(NOTHING); 2]);
        let epilogue = FloatEpilogue::new().with_ranges(Some(&found));
        conv2d_f32(&image, shape, &weights, &epilogue, &mut dst, &mut Workspace::new(), 1).unwrap();
        assert_eq!(found[0].get(), Range { min: -2.0, max: 3.0, finite: false });
        assert_eq!(found[1].get(), Range { min: 2.0, max: 6.0, finite: true });
    }
}

#[test]
fn given_ranges_are_checked_and_saturate() {
    let geometry = Conv2dGeometry::new(1, 1, [1, 1]);
    let shape = ImageShape { n: 1, h: 1, w: 2, layout: ImageLayout::Nhwc };
    let weights = PackedConv2d::pack(&geometry, &[1]).unwrap();
    let rule = ActivationRule::default();
    let run = |input: &[f32; 2], rule: &ActivationRule, ranges: &[Range], cells: &[Cell<Range>]| {
        let mut dst = [9.0; 2];
        let epilogue = Epilogue::new(&[1.0]).with_ranges(Some(cells));
        let rule = InputRule { rule, ranges: Some(ranges) };
        conv2d_dynamic(input, shape, RangeOf::Row, rule, &weights, &epilogue, &mut dst, &mut Workspace::new(), 1).map(|()| dst)
    };
    let (range, cells) = (Range { min: 0.0, max: 255.0, finite: true }, [Cell::new(NOTHING)]);
    assert_eq!(run(&[-7.0, 300.0], &rule, &[range], &cells).unwrap(), [0.0, 255.0]);
    assert_eq!(cells[0].get(), range);
    assert!(matches!(run(&[0.0; 2], &rule, &[range; 2], &cells), Err(Error::Length { expected: 1, got: 2, .. })));
    assert!(matches!(run(&[0.0; 2], &rule, &[range], &[]), Err(Error::Length { expected: 1, got: 0, .. })));
    assert!(matches!(run(&[0.0; 2], &rule, &[Range { min: f32::NAN, ..range }], &cells), Err(Error::Parameter { .. })));
    assert!(matches!(run(&[0.0; 2], &rule, &[Range { max: -1.0, ..range }], &cells), Err(Error::Parameter { .. })));
    let infinite = Range { finite: false, ..range };
    assert!(matches!(run(&[1.0, f32::INFINITY], &rule, &[infinite], &cells), Err(Error::NonFinite { index: 1, .. })));
    let rule = ActivationRule { non_finite: NonFinite::Saturate, ..rule };
    assert_eq!(run(&[1.0, f32::INFINITY], &rule, &[infinite], &cells).unwrap(), [1.0, 255.0]);
}
