//! Every weight format: codes that come back, bytes that are held, values that stay, edges.

use crate::support::Random;
use lowprec::num::{F4E2M1, F6E2M3, F6E3M2, F8E4M3, F8E5M2, SmallFloat};
use lowprec::quant::{
    Codebook, Fit, Levels, QuantizedWeights, Rounding, ScaleFormat, Scales, SparseSplit, StoredLevels, WeightFormat, WeightParts,
    WeightQuantizer, Zeros,
};
use lowprec::{Error, NonFinite, Shape, Tensor};

/// One of each kind, with every scale format and rule among them.
const FORMATS: &str = "int2 int3:g32 int4:g32 int4:g32:f32 int5:g24 int6:tensor int7:g16:bf16 int8 int8:range int16 int16:g64:range int4:g32:signedmax \
    int4:g32:signedmax:f32 int4:g32:range:f32 int4:g32:e8m0 int4:g32:e8m0:range int8:g32:e8m0 uint2:g32 uint3:g32:f32 uint4:g32 \
    uint4:g32:range uint4:range uint5:g32 uint8:g64 uint8:range uint16 uint16:g48 offset2:g32 offset4:g32 offset4:range offset8:range midrise1:g32 midrise2:g32 \
    midrise3 nf4:g64 nf4:g64:range nf4:f32 pot3:g32 pot4 pot5:tensor apot2:g32 apot3 apot4:g32 apot5:g64 gauss2:g32 gauss3:g64 gauss4 gauss5:g128 \
    fp8e4m3 fp8e5m2:range fp8e4m3:tensor:range fp6e2m3:g32 fp6e3m2:g32 fp4:g32 fp4:range mxfp8e4m3 mxfp8e5m2 mxfp6e2m3 mxfp6e3m2 mxfp4 mxfp4:mse \
    mxint8 nvfp4:range [-1,-0.25,0,0.125,0.5]:g32";
const OTHERS: &str = "kmeans1 kmeans2:g64 kmeans3:channel kmeans4 kmeans4:g64 kmeans4:g64:zero kmeans3:own:channel kmeans2:own:g64:zero quantile4 \
    quantile4:g64 quantile3:own:channel:zero nf4:g64:double int4:g16:e4m3 int4:g32:double nvfp4:mse int4:g32:half int3:g64:largest=0.01 nf4:g64:smallest=0.05 \
    uint4:g32:sensitive=0.02 shift3:g32:log3 shift4:g32:log4 shift4:g64 shift4 shift3:g32:e4m3 int4:g32:log4 nf4:g64:log6 uint4:g32:log5 int3:g32:log2 \
    trellis1:g32:e4m3 trellis2:tensor trellis3:g16:f32 trellis4 trellis4:g16:double trellis4:g24:largest=0.02 int4:p99 int4:g64:p97.5 uint4:p99.5 uint8:g64:p98 uint16:p99.9 offset16 offset16:g32 int4:f32:p99 offset4:g32:p95 offset4:g32:hqq uint3:g64:hqq uint4:hqq nf4:g64:p97 fp8e4m3:p99.9 kmeans4:g64:p99";

fn format(text: &str) -> WeightFormat {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn weights(seed: u64, dims: [usize; 2]) -> Tensor {
    let random = &mut Random(seed);
    // Bell-shaped, rows of different size.
    let value = |i: usize| (0..6).map(|_| random.unit()).sum::<f32>() * 0.01 * (1 + i / dims[1]) as f32;
    Tensor::new(dims, (0..dims[0] * dims[1]).map(value).collect()).unwrap()
}

fn held(q: &QuantizedWeights) -> usize {
    let scales = |scales: &Scales| match scales {
        Scales::F32(list) => size_of_val(&list[..]),
        Scales::F16(list) => size_of_val(&list[..]),
        Scales::Bf16(list) => size_of_val(&list[..]),
        Scales::E8M0(list) => size_of_val(&list[..]),
        Scales::E4M3 { codes, .. } => size_of_val(&codes[..]) + 4,
        Scales::Double { codes, steps, .. } => size_of_val(&codes[..]) + size_of_val(&steps[..]) + 4,
        Scales::Log(scales) => scales.codes().as_bytes().len() + 2,
        _ => panic!("a format of scales that this test does not know"),
    };
    let zeros = match q.zeros() {
        Zeros::Points(points) | Zeros::Shifts(points) => points.as_bytes().len(),
        Zeros::Offsets(offsets) => scales(offsets),
        _ => 0,
    };
    let levels = match q.stored_levels() {
        StoredLevels::Shared(book) => size_of_val(book.levels()),
        StoredLevels::Own(levels) => size_of_val(&levels[..]),
        _ => 0,
    };
    let kept = q.kept().map_or(0, |kept| 4 * (kept.rows() + 1) + 6 * kept.len());
    q.packed().as_bytes().len() + scales(q.scales()) + zeros + levels + kept
}

#[test]
fn bytes_reported_are_bytes_held() {
    // 150 columns: the last group of a row is short.
    for x in [weights(1, [6, 192]), weights(2, [5, 150]), weights(3, [1, 1])] {
        for text in FORMATS.split_whitespace().chain(OTHERS.split_whitespace()) {
            let q = format(text).quantize(&x).unwrap();
            assert_eq!(q.bytes(), held(&q), "{text}");
            assert_eq!(q.packed().as_bytes().len(), (x.len() * format(text).bits() as usize).div_ceil(8), "{text}");
            assert_eq!(q.bits_per_weight(), 8.0 * held(&q) as f64 / x.len() as f64);
            assert_eq!(q.scales().len(), q.groups());
            assert_eq!((0..q.groups()).flat_map(|group| q.group(group)).collect::<Vec<_>>(), (0..x.len()).collect::<Vec<_>>());
        }
    }
    let bits = |text: &str| format(text).quantize(&weights(1, [64, 256])).unwrap().bits_per_weight();
    assert_eq!([bits("mxfp8e4m3"), bits("mxfp6e2m3"), bits("mxfp4"), bits("int3:g128")], [8.25, 6.25, 4.25, 3.125]);
    assert_eq!(bits("nvfp4"), 4.5 + 32.0 / 16384.0);
    assert_eq!(bits("nf4:g64:double"), 4.125 + 64.0 / 16384.0);
    assert_eq!(bits("uint4:g128"), 4.0 + 20.0 / 128.0);
    assert_eq!([bits("shift4:g32:log3"), bits("shift3:g32:log4")], [4.0 + 7.0 / 32.0 + 16.0 / 16384.0, 3.25 + 16.0 / 16384.0]);
    assert_eq!(bits("trellis4:g16:log3"), 4.0 + 3.0 / 16.0 + 16.0 / 16384.0);
    assert_eq!(bits("int4:g128:largest=0.0625"), 4.125 + 3.0 + 65.0 * 32.0 / 16384.0);
}

#[test]
fn parts_there_and_back() {
    let x = weights(4, [5, 150]);
    let all: Vec<QuantizedWeights> =
        FORMATS.split_whitespace().chain(OTHERS.split_whitespace()).map(|text| format(text).quantize(&x).unwrap()).collect();
    for q in &all {
        let (format, shape, parts) = q.clone().into_parts();
        let rebuilt = parts.kept.as_ref().map(|kept| SparseSplit::from_entries(&shape, &kept.iter().collect::<Vec<_>>()).unwrap());
        assert_eq!(
            &QuantizedWeights::from_parts(format.clone(), shape.clone(), WeightParts { kept: rebuilt, ..parts.clone() }).unwrap(),
            q
        );
        let narrow = Shape::new([5, 149]).unwrap();
        assert!(QuantizedWeights::from_parts(format.clone(), narrow, parts.clone()).is_err(), "{format}");
        // The parts of another format never pass for this one's, unless all that differs is how scales are chosen.
        for other in &all {
            let (other, _, foreign) = other.clone().into_parts();
            if let Ok(taken) = QuantizedWeights::from_parts(format.clone(), shape.clone(), foreign) {
                assert!((taken.scales().format(), taken.packed().bits()) == (other.scale_format(), other.bits()), "{format} took {other}");
                assert!(taken.dequantize().len() == x.len());
            }
        }
    }
    let shape = Shape::new([2, 3]).unwrap();
    assert!(SparseSplit::from_entries(&shape, &[(6, 1.0)]).is_err() && SparseSplit::from_entries(&shape, &[(1, 1.0), (1, 2.0)]).is_err());
    let q = format("fp8e4m3:e4m3").quantize(&x).unwrap();
    let (format, shape, parts) = q.into_parts();
    let nan = Scales::E4M3 { codes: vec![F8E4M3::from_bits(0x7f); 5], tensor: 1.0 };
    assert!(matches!(QuantizedWeights::from_parts(format, shape, WeightParts { scales: nan, ..parts }), Err(Error::Parameter { .. })));
}

#[test]
fn text_there_and_back() {
    for text in FORMATS.split_whitespace().chain(OTHERS.split_whitespace()) {
        let parsed = format(text);
        assert_eq!(format(&parsed.to_string()), parsed, "{text} became {parsed}");
    }
    for (text, said) in
        [("int4:g32:f16:mse", "int4:g32"), ("fp4:g32:e8m0:ocp", "mxfp4"), ("fp4:e4m3:g16:range", "nvfp4"), ("kmeans4:tensor", "kmeans4")]
    {
        assert_eq!(format(text).to_string(), said);
    }
    for wrong in [
        "",
        "int",
        "int1",
        "int9",
        "int4:g0",
        "int4:h32",
        "nf3",
        "mx",
        "mxnf4",
        "nf4:own",
        "pot9",
        "[1,0]",
        "[1]",
        "int4:largest=2",
        "offset4:e8m0",
        "nf4:ocp",
        "nf4:half",
        "int4:e8m0:signedmax",
        "int16:mse",
        "kmeans9",
        "int99999999999",
        "nf4:largest=",
        "shift2",
        "shift5",
        "shift4:range",
        "trellis5",
        "trellis4:range",
        "int4:log1",
        "int4:hqq",
        "offset16:hqq",
        "int4:p101",
        "int4:p49",
        "int4:pNaN",
        "int4:p",
        "kmeans4:own:p99",
        "shift4:p99",
        "trellis4:p99",
        "uint16:mse",
        "uint12",
        "int4:log3:signedmax",
    ] {
        let error = wrong.parse::<WeightFormat>().expect_err(wrong).to_string();
        assert!(error.len() > 20, "{wrong}: {error}");
    }
}

#[test]
fn quantizing_again_changes_nothing() {
    for seed in 0..8 {
        let x = weights(seed, [4, 192]);
        for text in FORMATS.split_whitespace() {
            let format = format(text);
            let once = format.quantize(&x).unwrap().dequantize();
            let twice = format.quantize(&once).unwrap().dequantize();
            for (i, (a, b)) in once.as_slice().iter().zip(twice.as_slice()).enumerate() {
                // The one f32 over all scales of NVFP4 is taken from the values, and may differ in its last bit.
                let same = if format.scale_format() == ScaleFormat::E4M3 { (a - b).abs() <= 2e-7 * a.abs() } else { a == b };
                assert!(same, "{text}, seed {seed}, weight {i}: {a:e} became {b:e}");
            }
        }
    }
    // Levels are learned anew, but of one list without scales the same come out.
    let x = weights(9, [4, 192]);
    for text in ["kmeans2", "kmeans4", "kmeans4:zero"] {
        let once = format(text).quantize(&x).unwrap().dequantize();
        assert_eq!(format(text).quantize(&once).unwrap().dequantize(), once, "{text}");
    }
}

/// A tensor of each code's value comes back code for code, at a scale that the extremes pin to 1.
#[test]
fn every_code_comes_back() {
    fn floats<T: SmallFloat>(text: &str) {
        let values: Vec<f32> = (0..1u32 << T::BITS).map(|code| T::from_bits(code as u8).to_f32()).filter(|x| x.is_finite()).collect();
        let codes: Vec<i32> = (0..1i32 << T::BITS).filter(|&code| T::from_bits(code as u8).to_f32().is_finite()).collect();
        for text in [format!("{text}:tensor:range"), format!("{text}:tensor"), format!("mx{text}:tensor")] {
            let x = Tensor::new([values.len()], values.clone()).unwrap();
            let q = format(&text).quantize(&x).unwrap();
            assert_eq!(q.codes(), codes, "{text}");
            assert_eq!(q.dequantize(), x, "{text}");
            assert_eq!(q.table(0).len(), 1 << T::BITS);
        }
    }
    floats::<F8E4M3>("fp8e4m3");
    floats::<F8E5M2>("fp8e5m2");
    floats::<F6E2M3>("fp6e2m3");
    floats::<F6E3M2>("fp6e3m2");
    floats::<F4E2M1>("fp4");

    for bits in [2, 3, 4, 5, 6, 7, 8, 16] {
        let half = 1i32 << (bits - 1);
        let codes: Vec<i32> = (-half..half).collect();
        let x = Tensor::new([codes.len()], codes.iter().map(|&code| code as f32).collect()).unwrap();
        let rules: &[&str] = if bits == 16 { &["range"] } else { &["mse", "signedmax"] };
        for rule in rules {
            let q = format(&format!("int{bits}:{rule}")).quantize(&x).unwrap();
            if *rule == "range" {
                // The code below -qmax is what the range of a symmetric grid leaves out.
                let scale = q.scales().at(0);
                assert!((scale - 32768.0 / 32767.0).abs() < 1e-6);
                continue;
            }
            assert_eq!((q.codes(), q.scales().at(0)), (codes.clone(), 1.0), "int{bits}:{rule}");
            assert_eq!(q.dequantize(), x);
        }
        if bits <= 8 {
            let shifted: Vec<f32> = (0..1 << bits).map(|code| (code - half / 2) as f32).collect();
            let x = Tensor::new([shifted.len()], shifted).unwrap();
            for text in [format!("uint{bits}:range"), format!("uint{bits}"), format!("offset{bits}"), format!("offset{bits}:range")] {
                let q = format(&text).quantize(&x).unwrap();
                assert_eq!(q.codes(), (0..1 << bits).collect::<Vec<_>>(), "{text}");
                assert_eq!(q.dequantize(), x, "{text}");
            }
        }
    }
    for text in [
        "nf4",
        "pot2",
        "pot4",
        "pot6",
        "apot2",
        "apot3",
        "apot4",
        "apot5",
        "midrise1",
        "midrise4",
        "midrise8",
        "gauss2",
        "gauss5",
        "[-3,1,2,8]",
    ] {
        let format = format(text);
        let book = match format.levels() {
            Levels::Table(table) => table.codebook().unwrap(),
            Levels::Custom(book) => book.clone(),
            other => panic!("{other:?}"),
        };
        let x = Tensor::new([book.levels().len()], book.levels().to_vec()).unwrap();
        for fit in [Fit::Range, Fit::LeastSquares] {
            let q = format.clone().with_fit(fit).unwrap().quantize(&x).unwrap();
            // Where levels are mirrored, a negative scale could turn them; a scale of one is the first of equals.
            assert_eq!(q.dequantize(), x, "{text} {fit:?}");
        }
    }
}

#[test]
fn specifications_of_blocks() {
    let one = |text: &str, values: &[f32]| format(text).quantize(&Tensor::new([values.len()], values.to_vec()).unwrap()).unwrap();
    // E2M1 at scales 2, 3 and 4: ONNX's vectors, the largest value saturating.
    assert_eq!(one("mxfp4", &[7.9, 2.5, -5.0, 0.25]).dequantize().as_slice(), [6.0, 2.0, -4.0, 0.0]);
    assert_eq!(one("mxfp4", &[8.0, 5.0]).dequantize().as_slice(), [8.0, 4.0]);
    // floor(log2(amax)) - emax: 2^(8 - 8), so 480 saturates at 448 and 464 is a tie that goes there too.
    assert_eq!(one("mxfp8e4m3", &[480.0, 464.0, 0.001953125]).dequantize().as_slice(), [448.0, 448.0, 0.001953125]);
    // Int8 at 2^0: -2 would be -128, which is never given.
    assert_eq!(one("mxint8", &[-1.9999, 1.0, 0.0078125]).codes(), [-127, 64, 0]);
    assert_eq!(one("mxint8", &[1.5, 0.0234375]).codes(), [96, 2]);
    // Rounded up, nothing clips.
    assert_eq!(one("fp4:g32:e8m0:range", &[7.9, 1.0]).dequantize().as_slice(), [8.0, 1.0]);
    // NVFP4: 2688 is 6 · 448 at a tensor scale of 1; the second block has its own E4M3 scale.
    let q = one("nvfp4", &[[2688.0; 16], [6.0; 16]].concat());
    assert_eq!((q.scales().at(0), q.scales().at(1)), (448.0, 1.0));
    assert!(matches!(q.scales(), Scales::E4M3 { tensor: 1.0, .. }));
    // A block far below the others keeps the smallest scale, not none.
    let q = one("nvfp4", &[[2688.0; 16], [1e-3; 16]].concat());
    assert_eq!(q.scales().at(1), 0.001953125);
    // NF4 of zeros has the code of zero.
    assert_eq!(one("nf4:g64", &[0.0; 3]).codes(), [7, 7, 7]);
    // Ties go to the lower level.
    let book = Codebook::new(vec![0.0, 1.0]).unwrap();
    assert_eq!((book.code(0.5), book.code(0.5f32.next_up()), book.code(f32::NAN)), (0, 1, 0));
}

#[test]
fn edges() {
    let zeros = Tensor::new([2, 40], vec![0.0; 80]).unwrap();
    let empty = [Tensor::new([0, 8], vec![]).unwrap(), Tensor::new([3, 0], vec![]).unwrap()];
    for text in FORMATS.split_whitespace().chain(OTHERS.split_whitespace()) {
        let format = format(text);
        // A power of two is never 0: levels without zero then leave 2^-127 at most.
        assert!(format.quantize(&zeros).unwrap().dequantize().as_slice().iter().all(|&y| y == 0.0), "{text}");
        for x in &empty {
            assert_eq!(&format.quantize(x).unwrap().dequantize(), x, "{text}");
        }
        // Of a magnitude that the scale's format has no room for: an error that says so, or numbers.
        for magnitude in [f32::MAX, 1e38, 1e-38, 1e-44] {
            let x = weights(1, [2, 64]);
            let largest = x.as_slice().iter().fold(0.0f32, |l, x| l.max(x.abs()));
            let x = Tensor::new([2, 64], x.as_slice().iter().map(|x| x / largest * magnitude).collect()).unwrap();
            match format.quantize(&x) {
                Ok(q) => assert!(q.dequantize().as_slice().iter().all(|y| y.is_finite()), "{text} at {magnitude:e}"),
                Err(error) => assert!(magnitude > 1e37 && matches!(error, Error::Parameter { .. }), "{text} at {magnitude:e}: {error}"),
            }
        }
        let x = Tensor::new([1, 6], vec![1.0, f32::NAN, f32::INFINITY, -0.5, f32::NEG_INFINITY, 0.25]).unwrap();
        assert!(matches!(format.quantize(&x), Err(Error::NonFinite { index: 1, .. })), "{text}");
        let q = WeightQuantizer::new(format.clone()).with_non_finite(NonFinite::Saturate).quantize(&x).unwrap();
        let y = q.dequantize();
        assert!(y.as_slice().iter().all(|y| y.is_finite()), "{text}: {y:?}");
        assert!(y.as_slice()[2] >= y.as_slice()[0] && y.as_slice()[4] <= y.as_slice()[3], "{text}: {y:?}");
        let table = q.table(0);
        if table.contains(&0.0) && !matches!(format.levels(), Levels::Offset(_)) {
            assert_eq!(y.as_slice()[1], 0.0, "{text}");
        }
    }
    // Subnormals are numbers like others.
    let x = Tensor::new([3], vec![1e-40, -2e-40, 0.0]).unwrap();
    let y = format("int8:mse").quantize(&x).unwrap().dequantize();
    assert!(x.as_slice().iter().zip(y.as_slice()).all(|(x, y)| (x - y).abs() <= 2e-42));
    assert!(matches!(format("int8:tensor:f16").quantize(&Tensor::new([1], vec![1e10]).unwrap()), Err(Error::Parameter { .. })));
    let q = WeightQuantizer::new(format("int4")).with_sensitivities(&[1.0]).quantize(&x);
    assert!(matches!(q, Err(Error::Length { expected: 3, got: 1, .. })));
    assert!(WeightQuantizer::new(format("int4")).with_sensitivities(&[1.0, -1.0, 0.0]).quantize(&x).is_err());
    assert_eq!(
        WeightQuantizer::new(format("int4")).with_rounding(Rounding::Nearest).quantize(&x).unwrap(),
        format("int4").quantize(&x).unwrap()
    );
}

/// Enough weights that they are shared among threads: the same bytes for any number of these.
#[cfg(feature = "parallel")]
#[test]
fn threads_change_nothing() {
    let x = weights(3, [96, 200]);
    let sensitivities: Vec<f32> = (0..x.len()).map(|i| 1.0 + (i % 5) as f32).collect();
    for text in
        "int4:g32 uint4:g32 offset2:g64 shift3:g40:log4 nf4:g64 fp4:g32:e4m3 kmeans3:g64 kmeans2:own:channel int8".split_whitespace()
    {
        let [one, three] = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let quantizer = WeightQuantizer::new(format(text)).with_sensitivities(&sensitivities);
            pool.install(|| {
                let drawn = quantizer.clone().with_rounding(Rounding::Stochastic { seed: 1 }).quantize(&x).unwrap();
                (quantizer.quantize(&x).unwrap(), drawn)
            })
        });
        assert!(one == three, "{text}");
    }
}
