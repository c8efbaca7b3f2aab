//! What a range for each image is worth, where an exported file has one for the batch.

use lowprec::eval::{Comparison, compare_ranges};
use lowprec::kernels::RangeOf;
use lowprec::ptq::{DynamicQuantization, with_input_range};
use lowprec::{Error, LayerKind, Model, Tensor, metrics, quantize_dynamic};

use crate::networks::{DIGITS, digits, images, static_digits};

const KINDS: [LayerKind; 2] = [LayerKind::Conv2d, LayerKind::Linear];

#[test]
fn both_are_compared_with_float_on_the_same_samples() {
    let (test, labels) = images("test");
    let (test, labels) = (test.slice(0, 0..200).unwrap(), &labels[..200]);
    let top = |y: &Tensor| metrics::top1(y.as_slice(), 10).unwrap();
    for name in DIGITS {
        let float = digits(name);
        let row = quantize_dynamic(&float, &KINDS).unwrap();
        let tensor = DynamicQuantization::new(&KINDS).with_range(RangeOf::Tensor).apply(&float).unwrap();
        let found = compare_ranges(&float, &row, &test, Some(labels), 200).unwrap();
        // Whichever of them it is told.
        assert_eq!(compare_ranges(&float, &tensor, &test, Some(labels), 200).unwrap(), found, "{name}");
        let y = float.forward(&test).unwrap();
        for (i, model) in [&row, &tensor].into_iter().enumerate() {
            let made = model.forward(&test).unwrap();
            let db = metrics::sqnr_db(y.as_slice(), made.as_slice()).unwrap();
            assert!((found.sqnr_db[i] - db).abs() < 1e-9, "{name}: {found}");
            let classes = &found.classification.as_ref().unwrap()[i];
            assert_eq!(classes.flips, top(&y).iter().zip(top(&made)).filter(|(a, b)| **a != *b).count(), "{name}");
            let right = |y: &Tensor| top(y).iter().zip(labels).filter(|(a, b)| a == b).count();
            assert_eq!(classes.hits, Some([right(&y), right(&made)]), "{name}");
        }
        assert_ne!(found.sqnr_db[0], found.sqnr_db[1], "{name}: {found}");
        assert!(found.to_string().contains("200 samples, 200 at once") && found.to_string().contains("flipped"), "{found}");
        // An image by itself is the batch.
        let alone = compare_ranges(&float, &row, &test, None, 1).unwrap();
        assert_eq!(alone.sqnr_db[0], alone.sqnr_db[1], "{name}: {alone}");
        assert_eq!(alone.sqnr_db[0], found.sqnr_db[0], "{name}: {alone}");
        // A comparison runs as many at once as it is told; node by node, where sums are rounded otherwise than where they are fused.
        let whole = Comparison::new(&float, &tensor).with_batch(200).with_isolated_samples(0).run(&test, None).unwrap();
        assert!((whole.sqnr_db - found.sqnr_db[1]).abs() < 0.01, "{name}: {} and {found}", whole.sqnr_db);
    }
}

#[test]
fn a_layer_by_itself_is_judged_by_the_range_that_it_has() {
    let float = digits("digits_cnn");
    let (test, _) = images("test");
    // One image that is four times as bright takes codes from all others.
    let mut test = test.slice(0, 0..40).unwrap();
    let len = test.len() / 40;
    test.as_mut_slice()[..len].iter_mut().for_each(|x| *x *= 4.0);
    let row = quantize_dynamic(&float, &KINDS).unwrap();
    let input = |model: &Model| {
        let report = Comparison::new(&float, model).run(&test, None).unwrap();
        report.layers.iter().find(|layer| layer.name.contains("conv1")).unwrap().isolated.unwrap().input_db.unwrap()
    };
    let [row, tensor] = [input(&row), input(&with_input_range(&row, RangeOf::Tensor).unwrap())];
    assert!(row > tensor + 3.0, "{row} and {tensor} dB");
}

#[test]
fn what_has_no_ranges_is_told() {
    let float = digits("digits_cnn");
    let x = images("test").0.slice(0, 0..4).unwrap();
    for model in [&float, &static_digits(&float)] {
        assert!(matches!(compare_ranges(&float, model, &x, None, 4), Err(Error::Unsupported { .. })));
    }
    let int8 = quantize_dynamic(&float, &KINDS).unwrap();
    assert!(matches!(compare_ranges(&float, &int8, &x, None, 0), Err(Error::Parameter { .. })));
    assert!(matches!(compare_ranges(&float, &int8, &x, Some(&[1]), 4), Err(Error::Length { .. })));
}
