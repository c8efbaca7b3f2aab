//! Files that lie: a typed error, no panic, no allocation that the file doesn't fill.

use lowprec::io::{safetensors, saved};
use lowprec::{Error, LayerKind, Model, Tensor, quantize_dynamic};

use crate::networks::sequence;
use crate::static_support::{everything, observe, samples};
use crate::support::{Random, network};

fn models() -> Vec<Model> {
    let sequence = sequence(1);
    let kinds = [LayerKind::Conv2d, LayerKind::Linear];
    let words = [LayerKind::Embedding, LayerKind::Lstm, LayerKind::Gru, LayerKind::Linear];
    vec![
        quantize_dynamic(&network(1), &kinds).unwrap(),
        observe(&everything(2), &Default::default(), &samples(12)),
        quantize_dynamic(&sequence, &words).unwrap(),
        sequence,
    ]
}

#[test]
fn cut_off_and_corrupted_files_are_errors_or_other_models() {
    let mut random = Random(9);
    for model in models() {
        let bytes = saved::write(&model).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for _ in 0..60 {
            let length = random.next() as usize % bytes.len();
            assert!(saved::read(&bytes[..length]).is_err());
        }
        for _ in 0..400 {
            let mut corrupted = bytes.clone();
            let at = random.next() as usize % header;
            corrupted[at] = random.next() as u8;
            // A number or a name may be another and valid one.
            let _ = saved::read(&corrupted);
        }
    }
}

/// The file with a part of its JSON replaced.
fn with(model: &Model, from: &str, to: &str) -> Result<Model, Error> {
    let contents = safetensors::read_tensors(&saved::write(model).unwrap()).unwrap();
    let mut metadata = contents.metadata.clone();
    let json = metadata.get_mut("lowprec").unwrap();
    assert!(json.contains(from), "{from} in {json}");
    *json = json.replacen(from, to, 1);
    let tensors = contents.tensors.iter().map(|(name, value)| (name.as_str(), value));
    saved::read(&safetensors::write(tensors, &metadata).unwrap())
}

#[test]
fn numbers_that_lie_are_named() {
    let [dynamic, integer, words, _] = <[Model; 4]>::try_from(models()).unwrap();
    let cases: [(&Model, &str, &str); 18] = [
        (&dynamic, "\"groups\":20", "\"groups\":18446744073709551615"),
        (&dynamic, "\"groups\":20", "\"groups\":0"),
        (&dynamic, "\"stride\":[2,1]", "\"stride\":[0,1]"),
        (&dynamic, "\"codes\":{", "\"codes\":{\"bits\":4,"),
        (&dynamic, "\"codes\":{", "\"codes\":{\"qmax\":1000,"),
        (&dynamic, "\"codes\":{", "\"codes\":{\"qmin\":100,"),
        (&dynamic, "\"axis\":0", "\"axis\":3"),
        (&dynamic, "\"writes\":[\"bn1\"]", "\"writes\":[\"bn1\"],\"reads\":[\"elsewhere\"]"),
        (&dynamic, "\"writes\":[\"bn1\"]", "\"writes\":[\"bn1\"],\"reads\":[]"),
        (&integer, "\"grids\":[[\"", "\"grids\":[[\"elsewhere"),
        (&dynamic, "\"writes\":[\"bn1\"]", "\"writes\":[\"image\"]"),
        (&dynamic, "\"QuantizedConv2d\"", "\"SomethingElse\""),
        (&dynamic, "\"dtype\":\"f32\"", "\"dtype\":\"f33\""),
        (&integer, "\"scale\":", "\"scale\":-"),
        (&integer, "\"range\":[", "\"range\":[255,"),
        (&integer, "\"name\":\"Concat\"", "\"name\":\"Loop\""),
        (&words, "\"hidden_size\":{\"int\":5}", "\"hidden_size\":{\"int\":9223372036854775807}"),
        (&words, "\"hidden_size\":{\"int\":5}", "\"hidden_size\":{\"int\":-1}"),
    ];
    for (model, from, to) in cases {
        let error = with(model, from, to).expect_err(to);
        assert!(error.to_string().len() > 20, "{to}: {error}");
    }
}

#[test]
fn tensors_that_are_missing_or_too_many_are_named() {
    let model = &models()[0];
    let contents = safetensors::read_tensors(&saved::write(model).unwrap()).unwrap();
    let all = || contents.tensors.iter().map(|(name, value)| (name.as_str(), value));
    let less = safetensors::write(all().filter(|(name, _)| *name != "conv1.weight_scale"), &contents.metadata).unwrap();
    let error = saved::read(&less).unwrap_err();
    assert!(matches!(error.kind(), Error::Unknown { .. }) && error.to_string().contains("conv1.weight_scale"), "{error}");
    let extra = Tensor::new([1], vec![0.0f32]).unwrap().into();
    let more = safetensors::write(all().chain([("conv1.extra", &extra)]), &contents.metadata).unwrap();
    let error = saved::read(&more).unwrap_err();
    assert!(matches!(error, Error::Unused { .. }) && error.to_string().contains("conv1.extra"), "{error}");
    // A file of another kind, and one of a later version.
    let plain = safetensors::write(all(), &Default::default()).unwrap();
    assert!(matches!(saved::read(&plain), Err(Error::Format { .. })));
    let mut later = contents.metadata.clone();
    later.insert("lowprec".into(), r#"{"version":2,"something":[]}"#.into());
    let error = saved::read(&safetensors::write(all(), &later).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("version 2"), "{error}");
}
