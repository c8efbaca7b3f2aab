//! One range for the whole tensor, where each image or row otherwise has its own.

use lowprec::kernels::{Conv2dGeometry, RangeOf};
use lowprec::nn::{Conv2d, ConvTranspose2d, Dim, Direction, Executor, Gru, Layer, Linear, Lstm, Model, RecurrentOptions};
use lowprec::ptq::{DynamicQuantization, with_input_range};
use lowprec::{DType, Error, LayerKind, Tensor, Value, quantize_dynamic};

use crate::support::{Random, network};

/// A layer of five inputs, of which the last two multiply nothing.
struct Case {
    layer: Layer,
    dims: Vec<usize>,
    /// Parts of what it reads that have ranges of their own.
    parts: usize,
    /// The axis that counts the inputs.
    axis: usize,
}

/// Sets the weights of inputs 3 and 4 to zero, of a weight whose `axis` counts five inputs.
fn blind(mut weight: Tensor, axis: usize) -> Tensor {
    let dims = weight.dims().to_vec();
    let inner: usize = dims[axis + 1..].iter().product();
    weight.as_mut_slice().iter_mut().enumerate().filter(|(i, _)| i / inner % dims[axis] > 2).for_each(|(_, w)| *w = 0.0);
    weight
}

fn cases() -> Vec<Case> {
    let r = &mut Random(31);
    let geometry = || Conv2dGeometry::new(5, 6, [3, 3]).with_padding([1; 4]);
    let options = RecurrentOptions { direction: Direction::Bidirectional, ..RecurrentOptions::new(4) };
    let lstm = Lstm::new(options.clone(), &blind(r.tensor([2, 16, 5], 0.5), 2), &r.tensor([2, 16, 4], 0.5), None, None).unwrap();
    let gru = Gru::new(options, true, &blind(r.tensor([2, 12, 5], 0.5), 2), &r.tensor([2, 12, 4], 0.5), None).unwrap();
    let image = |layer: Layer| Case { layer, dims: vec![3, 5, 4, 6], parts: 3, axis: 1 };
    // Of one sequence alone: the state of a batch has a range of its own.
    let sequence = |layer: Layer| Case { layer, dims: vec![7, 1, 5], parts: 7, axis: 2 };
    vec![
        image(Conv2d::new(geometry(), blind(r.tensor([6, 5, 3, 3], 0.3), 1), Some(r.tensor([6], 0.2))).unwrap().into()),
        image(ConvTranspose2d::new(geometry(), blind(r.tensor([5, 6, 3, 3], 0.3), 0), None).unwrap().into()),
        Case {
            layer: Linear::new(blind(r.tensor([8, 5], 0.3), 1), Some(r.tensor([8], 0.2))).unwrap().into(),
            dims: vec![2, 9, 5],
            parts: 18,
            axis: 2,
        },
        sequence(lstm.into()),
        sequence(gru.into()),
    ]
}

impl Case {
    fn model(&self) -> Model {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &vec![Dim::Any; self.dims.len()]).unwrap();
        let outputs = match self.layer {
            Layer::Lstm(_) => &[Some("y"), None, None][..],
            Layer::Gru(_) => &[Some("y"), None],
            _ => &[Some("y")],
        };
        let y = net.add_node("layer", outputs, self.layer.clone(), &[Some(x)]).unwrap()[0];
        net.output("y", y).unwrap();
        net.build().unwrap()
    }

    /// Values whose parts differ in their ranges; inputs that multiply nothing hold -6 and 9, in these parts.
    fn values(&self, carriers: impl Fn(usize) -> bool) -> Value {
        let mut x = Tensor::new(self.dims.clone(), Random(32).tensor([self.dims.iter().product()], 1.0).into_vec()).unwrap();
        let (len, inner): (usize, usize) = (x.len() / self.parts, self.dims[self.axis + 1..].iter().product());
        let inputs = self.dims[self.axis];
        for (i, value) in x.as_mut_slice().iter_mut().enumerate() {
            let part = i / len;
            *value = match i / inner % inputs {
                3 | 4 if !carriers(part) => 0.0,
                3 => -6.0,
                4 => 9.0,
                _ => *value * (part + 1) as f32 * 0.3,
            };
        }
        x.into()
    }
}

fn run(model: &Model, x: &Value, threads: usize) -> Vec<u32> {
    let outputs = Executor::new(model).with_threads(threads).unwrap().run(&[(model.inputs()[0].name(), x)]).unwrap();
    outputs[0].1.get::<f32>().unwrap().as_slice().iter().map(|y| y.to_bits()).collect()
}

/// What has the same range by itself as the whole has, gives the same by its own range as by that of the whole.
#[test]
fn one_range_is_that_of_all_parts() {
    for case in cases() {
        let (model, kind) = (case.model(), case.layer.kind());
        let row = quantize_dynamic(&model, &[kind]).unwrap();
        let tensor = DynamicQuantization::new(&[kind]).with_range(RangeOf::Tensor).apply(&model).unwrap();
        let (first, every) = (case.values(|part| part == 1), case.values(|_| true));
        let expected = run(&row, &every, 1);
        for threads in [1, 2, 3] {
            assert_eq!(run(&tensor, &first, threads), expected, "{kind} on {threads} threads");
        }
        assert_eq!(run(&tensor, &every, 1), expected, "{kind}");
        assert_ne!(run(&row, &first, 1), expected, "{kind}");
        // By its own range a part doesn't know of the others, by that of the whole it does.
        let less = case.values(|_| false);
        assert_ne!(run(&tensor, &less, 1), expected, "{kind}");

        // From one to the other and back: the same weights.
        assert_eq!(run(&with_input_range(&row, RangeOf::Tensor).unwrap(), &first, 1), expected, "{kind}");
        let back = with_input_range(&tensor, RangeOf::Row).unwrap();
        assert_eq!((run(&back, &first, 1), back.to_string()), (run(&row, &first, 1), row.to_string()), "{kind}");
        assert_eq!(back.conversion(), row.conversion());
        let layer = |model: &Model| model.node("layer").unwrap().layer().input_range();
        assert_eq!([layer(&model), layer(&row), layer(&tensor)], [None, Some(RangeOf::Row), Some(RangeOf::Tensor)], "{kind}");
        assert!(tensor.to_string().contains("one range for the tensor") && !row.to_string().contains("one range"), "{tensor}");
    }
}

/// Convolutions hand their ranges on: to those that want one for each image, and to those that want one for all.
#[test]
fn ranges_handed_on_are_those_that_are_measured() {
    let float = network(1);
    let kinds = [LayerKind::Conv2d, LayerKind::Linear];
    let mut x = Random(33).tensor([5, 3, 13, 9], 1.0);
    x.as_mut_slice().iter_mut().enumerate().for_each(|(i, x)| *x *= (i / (3 * 13 * 9) + 1) as f32);
    let tensor = DynamicQuantization::new(&kinds).with_range(RangeOf::Tensor).apply(&float).unwrap();
    let mixed = DynamicQuantization::new(&kinds).with_range(RangeOf::Tensor).include("conv*").unwrap().apply(&float).unwrap();
    let mixed = quantize_dynamic(&mixed, &kinds).unwrap();
    let range = |name: &str| mixed.node(name).unwrap().layer().input_range().unwrap();
    assert_eq!(["conv1", "grouped", "conv2", "fc"].map(range), [RangeOf::Tensor, RangeOf::Row, RangeOf::Tensor, RangeOf::Row]);
    for model in [&tensor, &mixed] {
        let whole = run(model, &x.clone().into(), 1);
        assert_eq!(run(model, &x.clone().into(), 3), whole);
        // Node by node nothing is handed on; what is fused rounds no other way here, as sums are added after they are scaled.
        let shown = model.forward_with(&x, |_| Ok(())).unwrap();
        let bits: Vec<u32> = shown.as_slice().iter().map(|y| y.to_bits()).collect();
        assert_eq!(bits, whole);
        let alone = model.forward(&x.slice(0, 0..1).unwrap()).unwrap();
        assert_ne!(alone.as_slice().iter().map(|y| y.to_bits()).collect::<Vec<_>>(), whole[..7]);
    }
    // Without samples there is nothing to measure.
    let none = Tensor::new([0, 3, 8, 8], vec![]).unwrap();
    assert_eq!(tensor.forward(&none).unwrap().dims(), [0, 7]);
    assert!(matches!(with_input_range(&float, RangeOf::Tensor), Err(Error::Unsupported { .. })));
}

#[cfg(feature = "serde")]
#[test]
fn a_scheme_of_before_has_a_range_for_each_row() {
    use lowprec::nn::quantized::DynamicScheme;
    let scheme = DynamicScheme { range: RangeOf::Tensor, ..DynamicScheme::default() };
    let text = serde_json::to_string(&scheme).unwrap();
    assert_eq!(serde_json::from_str::<DynamicScheme>(&text).unwrap(), scheme);
    let before = text.replace("\"range\":\"Tensor\",", "");
    assert_ne!(before, text);
    assert_eq!(serde_json::from_str::<DynamicScheme>(&before).unwrap(), DynamicScheme::default());
}
