//! Damaged ONNX files: an error or a model, and what such a model does: never a panic, never more memory than there is
//! reason for.
#![cfg(all(feature = "onnx", feature = "safetensors"))]

mod nodes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lowprec::nn::operator::{ConstantOfShape, Unary};
use lowprec::nn::{Dim, Executor};
use lowprec::ptq::DynamicQuantization;
use lowprec::{DType, Error, Model, Shape, Tensor, Value, onnx};
use nodes::suite::{Case, Suite};

/// Counts bytes, and refuses what would make them more than `LIMIT`, as a system does that has no more. What can't take a
/// refusal aborts this test.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
const LIMIT: usize = 64 << 20;

impl Counting {
    fn take(bytes: usize) -> bool {
        let held = HELD.fetch_add(bytes, Relaxed).saturating_add(bytes);
        if held > LIMIT {
            HELD.fetch_sub(bytes, Relaxed);
            return false;
        }
        PEAK.fetch_max(held, Relaxed);
        true
    }
}

#[allow(unsafe_code)]
// SAFETY: hands everything that it doesn't refuse to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Counting::take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !Counting::take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while one is copied to the other.
        if !Counting::take(size) {
            return std::ptr::null_mut();
        }
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(p, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// One that counts, or one that no file should have.
    fn number(&mut self) -> i64 {
        const LARGE: [i64; 8] = [1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62, i64::MAX, i64::MIN];
        match self.below(3) {
            0 => LARGE[self.below(LARGE.len())],
            _ => self.below(12) as i64 - 3,
        }
    }
}

/// Mostly one change: a bit, a byte, a run of bytes, eight bytes that are an integer, a byte more or less, the end cut off.
/// Half of them early in the file, where a large one has its nodes.
fn damaged(file: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = file.to_vec();
    let changes = if random.below(4) == 0 { 1 + random.below(4) } else { 1 };
    for _ in 0..changes {
        if bytes.is_empty() {
            break;
        }
        let reach = if random.below(2) == 0 { bytes.len() } else { bytes.len().min(3000) };
        let at = random.below(reach);
        let run = at..bytes.len().min(at + 8);
        match random.below(8) {
            0..=2 => bytes[at] ^= 1 << random.below(8),
            3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            4 => bytes[at] = random.next() as u8,
            5 => {
                let number = random.number().to_le_bytes();
                bytes[run.clone()].copy_from_slice(&number[..run.len()]);
            }
            6 if random.below(2) == 0 => drop(bytes.remove(at)),
            6 => bytes.insert(at, random.next() as u8),
            _ if random.below(4) == 0 => bytes.truncate(at),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
    bytes
}

/// A field of a message: key, the number if it is one, the rest as it is.
type Field<'a> = (u64, Option<u64>, &'a [u8]);

/// The fields of a message; `None` for what is none.
fn fields(mut bytes: &[u8]) -> Option<Vec<Field<'_>>> {
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let end = bytes.iter().take(10).position(|byte| *byte < 0x80)?;
        let value = bytes[..=end].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *bytes = &bytes[end + 1..];
        Some(value)
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let length = match key & 7 {
            _ if key < 8 => return None,
            0 => {
                fields.push((key, Some(varint(&mut bytes)?), &[][..]));
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (payload, rest) = bytes.split_at_checked(length)?;
        fields.push((key, None, payload));
        bytes = rest;
    }
    Some(fields)
}

/// How many numbers there are in a message and those in it.
fn numbers(message: &[u8]) -> usize {
    let inner = |&(key, number, payload): &(u64, Option<u64>, &[u8])| match number {
        Some(_) => 1,
        None if key & 7 == 2 => numbers(payload),
        None => 0,
    };
    fields(message).map_or(0, |fields| fields.iter().map(inner).sum())
}

/// The message with its number `which` changed, all lengths right.
fn changed(message: &[u8], which: &mut usize, to: u64) -> Vec<u8> {
    fn put(bytes: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
    }
    let Some(fields) = fields(message) else { return message.to_vec() };
    let mut bytes = Vec::new();
    for (key, number, payload) in fields {
        put(&mut bytes, key);
        match number {
            Some(number) => {
                put(&mut bytes, if *which == 0 { to } else { number });
                *which = which.wrapping_sub(1);
            }
            None if key & 7 == 2 => {
                let payload = changed(payload, which, to);
                put(&mut bytes, payload.len() as u64);
                bytes.extend(payload);
            }
            None => bytes.extend(payload),
        }
    }
    bytes
}

/// A file whose numbers lie, one or two of them: lengths of axes, windows, types, versions.
fn lying(file: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for _ in 0..1 + random.below(2) {
        let mut which = random.below(numbers(&bytes).max(1));
        bytes = changed(&bytes, &mut which, random.number() as u64);
    }
    bytes
}

/// A small value for each of the model's inputs: what the undamaged one is given where that fits, else a pattern; `None`
/// where the model asks for much.
fn inputs(model: &Model, given: &BTreeMap<String, Value>, ones: usize) -> Option<Vec<(String, Value)>> {
    let value = |input: &lowprec::nn::Input| {
        let known = given.get(input.name()).filter(|value| value.dtype() == input.dtype());
        let fits = |value: &&Value| {
            let dims = value.shape().dims();
            let fits = |(dim, length): (&Dim, &usize)| matches!(dim, Dim::Any) || *dim == Dim::Fixed(*length);
            dims.len() == input.dims().len() && input.dims().iter().zip(dims).all(fits)
        };
        if let (0, Some(value)) = (ones, known.filter(fits)) {
            return Some((input.name().to_owned(), value.clone()));
        }
        let length = |dim: &Dim| if let Dim::Fixed(length) = dim { *length } else { 2 };
        let shape = Shape::new(input.dims().iter().map(length).collect::<Vec<_>>()).ok()?;
        if shape.elements() > 1 << 14 {
            return None;
        }
        let bytes: Vec<u8> = (0..shape.elements() * input.dtype().bytes()).map(|i| u8::from(ones > 0 && i % ones == 0)).collect();
        Some((input.name().to_owned(), Value::from_bytes(input.dtype(), shape, &bytes).unwrap()))
    };
    model.inputs().iter().map(value).collect()
}

fn run(model: &Model, inputs: &[(String, Value)]) -> Result<(), Error> {
    let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    Executor::new(model).with_threads(1)?.run(&inputs).map(drop)
}

/// A field of a message, of bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 128 {
        bytes.push(length as u8 | 128);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(content);
    bytes
}

/// A model of nodes, each an operator, its inputs and its output, that may read 65536 as `many` and 8 as `eight`.
fn model_of(nodes: &[(&str, &[&str], String)], output: &str) -> Vec<u8> {
    let mut graph = Vec::new();
    for (operator, inputs, output) in nodes {
        let inputs = inputs.iter().flat_map(|name| field(1, name.as_bytes()));
        graph.extend(field(1, &inputs.chain(field(2, output.as_bytes())).chain(field(4, operator.as_bytes())).collect::<Vec<u8>>()));
    }
    for (name, value) in [("many", 65536i64), ("eight", 8)] {
        // One dimension, of one; int64.
        let tensor = [vec![0x08, 1, 0x10, 7], field(8, name.as_bytes()), field(9, &value.to_le_bytes())].concat();
        graph.extend(field(5, &tensor));
    }
    graph.extend(field(12, &field(1, output.as_bytes())));
    // The format's version 8, and opset 17.
    [vec![0x08, 8], field(8, &[0x10, 17]), field(7, &graph)].concat()
}

/// Constants that grow from node to node, or are many, are not all computed while loading.
fn constants_of_constants_take_little_memory() {
    let zeros = ("ConstantOfShape", &["many"][..], "0".to_owned());
    let names: Vec<String> = (0..9).map(|i| i.to_string()).collect();
    let tiles: Vec<[&str; 2]> = names.iter().map(|name| [name.as_str(), "eight"]).collect();
    let grown: Vec<_> = tiles.iter().enumerate().map(|(i, inputs)| ("Tile", &inputs[..], (i + 1).to_string())).collect();
    let chain = [vec![zeros], grown].concat();
    let wide: Vec<_> = (0..500).map(|i| ("ConstantOfShape", &["many"][..], i.to_string())).collect();
    for (nodes, output) in [(chain, "9"), (wide, "7")] {
        let bytes = model_of(&nodes, output);
        let before = HELD.load(Relaxed);
        PEAK.store(before, Relaxed);
        let model = onnx::from_bytes(&bytes).unwrap();
        let peak = PEAK.load(Relaxed) - before;
        assert!(peak <= 4 << 20, "{peak} bytes for a file of {}", bytes.len());
        assert!(model.nodes().len() > 1, "some are left to the run");
    }
}

/// What came of the mutations.
#[derive(Debug, Default)]
struct Counts {
    refused: usize,
    loaded: usize,
    ran: usize,
    failed: usize,
    quantized: usize,
}

impl Counts {
    fn one(&mut self, bytes: &[u8], given: &BTreeMap<String, Value>) {
        let before = HELD.load(Relaxed);
        PEAK.store(before, Relaxed);
        let model = onnx::from_bytes(bytes);
        let peak = PEAK.load(Relaxed) - before;
        assert!(peak <= 8 * bytes.len() + (1 << 20), "{peak} bytes for a file of {}", bytes.len());
        let Ok(model) = model else {
            self.refused += 1;
            return;
        };
        self.loaded += 1;
        let quantized = DynamicQuantization::new(DynamicQuantization::KINDS).apply(&model).ok();
        self.quantized += usize::from(quantized.is_some());
        for ones in [0, 1, 8] {
            let Some(inputs) = inputs(&model, given, ones) else { continue };
            for model in [Some(&model), quantized.as_ref()].into_iter().flatten() {
                match run(model, &inputs) {
                    Ok(()) => self.ran += 1,
                    Err(error) => {
                        self.failed += 1;
                        drop(error.to_string());
                    }
                }
            }
        }
    }
}

/// Mutations in all, and of the digits networks, which are a hundred times as large as the others.
const MUTATIONS: usize = 10_000;
const DIGITS: usize = 1600;
/// One of floats, every other time, and those that ONNX Runtime's tool quantized.
const NETWORKS: [&str; 4] = ["digits_cnn", "digits_residual_qdq_i8", "digits_separable_qoperator_i8", "digits_squeeze_qoperator"];

// One test alone in this binary: others would allocate on their own threads meanwhile.
#[test]
fn no_mutation_panics_aborts_or_takes_much_memory() {
    constants_of_constants_take_little_memory();
    let suite = Suite::load();
    let digits = NETWORKS.map(|name| {
        let path = format!("{}/tests/fixtures/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
        Case { model: std::fs::read(path).unwrap(), ..Case::default() }
    });
    let small: Vec<(&str, &Case)> =
        suite.cases.iter().filter(|(_, case)| case.model.len() < 4000).map(|(name, case)| (name.as_str(), case)).collect();
    let (mut random, mut counts, mut panics) = (Random(3), Counts::default(), Vec::new());
    for i in 0..MUTATIONS {
        let which = if i % 2 == 0 { 0 } else { 1 + i / 2 % (NETWORKS.len() - 1) };
        let (name, case) = if i < DIGITS { (NETWORKS[which], &digits[which]) } else { small[i % small.len()] };
        let change = if random.below(2) == 0 { damaged } else { lying };
        let bytes = change(&case.model, &mut random);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| counts.one(&bytes, &case.inputs))) {
            let text = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            panics.push(format!("mutation {i} of {name}: {}", text.unwrap_or_default()));
        }
    }
    assert!(panics.is_empty(), "{} panics: {panics:#?}", panics.len());
    assert_eq!(counts.refused + counts.loaded, MUTATIONS);
    // Neither everything is refused nor nothing, and of what loads some runs and some doesn't.
    assert!([counts.refused, counts.loaded, counts.ran, counts.failed].iter().all(|&count| count > MUTATIONS / 10), "{counts:?}");
    assert!(counts.quantized > 100, "{counts:?}");
    what_memory_cannot_hold_is_an_error();
}

/// A value for which there is no room, and one whose bytes no number counts.
fn what_memory_cannot_hold_is_an_error() {
    let mut net = Model::builder();
    let dims = net.input("dims", DType::I64, &[Dim::Any]).unwrap();
    let zeros = net.add("zeros", ConstantOfShape::zero().unwrap(), &[dims]).unwrap();
    let huge = net.add("huge", Unary::Exp, &[zeros]).unwrap();
    net.output("huge", huge).unwrap();
    let model = net.build().unwrap();
    let mut executor = Executor::new(&model).with_threads(1).unwrap();
    let mut error = |dims: &[i64]| executor.run(&[("dims", &Tensor::new([dims.len()], dims.to_vec()).unwrap().into())]).unwrap_err();
    for dims in [&[LIMIT as i64][..], &[1 << 20, 1 << 30], &[1 << 62], &[i64::MAX]] {
        let error = error(dims);
        assert!(matches!(error.kind(), Error::ShapeOverflow { .. }) && error.to_string().contains("`zeros`"), "{dims:?}: {error}");
    }
    assert!(matches!(error(&[1 << 62, 2]).kind(), Error::ShapeOverflow { .. }));
    // And what fits runs on.
    let outputs = executor.run(&[("dims", &Tensor::new([2], vec![2i64, 3]).unwrap().into())]).unwrap();
    assert_eq!(outputs[0].1.get::<f32>().unwrap().as_slice(), [1.0; 6]);
}
