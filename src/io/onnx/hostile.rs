//! Files that are damaged or lie: an error or a graph, never a panic, and never more memory than the file gives reason for.

use prost::Message;

use crate::error::Error;
use crate::io::onnx::schema::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
    attribute_type,
};
use crate::io::onnx::{Graph, read, read_file};
use crate::tensor::Shape;

/// A file with tensors in every field that holds data.
fn whole() -> Vec<u8> {
    let tensor = |name: &str, code, dims: &[i64]| TensorProto {
        name: Some(name.into()),
        data_type: Some(code),
        dims: dims.to_vec(),
        ..Default::default()
    };
    let initializer = vec![
        TensorProto { raw_data: Some(vec![7; 36].into()), ..tensor("raw", 1, &[1, 1, 3, 3]) },
        TensorProto { raw_data: Some(vec![0x21; 2].into()), ..tensor("int4", 22, &[3]) },
        TensorProto { float_data: vec![1.0; 4], ..tensor("float", 1, &[2, 2]) },
        TensorProto { int32_data: vec![300; 4], ..tensor("half", 10, &[4]) },
        TensorProto { int64_data: vec![-1, 1 << 40], ..tensor("int64", 7, &[2]) },
        TensorProto { double_data: vec![0.1; 3], ..tensor("double", 11, &[3, 1]) },
        TensorProto { uint64_data: vec![9; 2], ..tensor("uint32", 12, &[2]) },
    ];
    let attribute = |name: &str, kind| AttributeProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() };
    let constant = TensorProto { raw_data: Some(vec![1, 0].into()), ..tensor("", 9, &[2]) };
    let mut attributes = vec![
        AttributeProto { i: Some(1), ..attribute("group", attribute_type::INT) },
        AttributeProto { f: Some(0.5), ..attribute("alpha", attribute_type::FLOAT) },
        AttributeProto { s: Some(b"SAME_UPPER".into()), ..attribute("auto_pad", attribute_type::STRING) },
        AttributeProto { ints: vec![1, 1, 1, 1], ..attribute("pads", attribute_type::INTS) },
        AttributeProto { t: Some(Box::new(constant)), ..attribute("value", attribute_type::TENSOR) },
    ];
    let names = ["x", "a", "b", "y"];
    let node = (0..3)
        .map(|i| NodeProto {
            input: vec![names[i].into(), "raw".into()],
            output: vec![names[i + 1].into()],
            op_type: Some("Conv".into()),
            attribute: attributes.drain(..attributes.len().min(2)).collect(),
            ..Default::default()
        })
        .collect();
    let info = |name: &str| ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type: Some(1), shape: Some(Default::default()) }) }),
    };
    let graph = GraphProto { node, initializer, input: vec![info("x")], output: vec![info("y")], ..Default::default() };
    let opset = OperatorSetIdProto { domain: None, version: Some(17) };
    ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: Some(graph), ..Default::default() }.encode_to_vec()
}

/// Bytes that the tensors of a graph take.
fn held(graph: &Graph) -> usize {
    graph.initializers.iter().map(|(_, value)| value.bytes().len()).sum()
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[test]
fn no_truncation_and_no_mutation_panics() {
    let whole = whole();
    let graph = read(&whole).unwrap();
    assert_eq!((graph.nodes.len(), graph.initializers.len(), held(&graph)), (3, 7, 36 + 3 + 16 + 8 + 16 + 24 + 8));
    // A file that ends between two fields of its outermost message is whole, but for what is missing.
    let read_short = (0..whole.len()).filter(|&length| read(&whole[..length]).is_ok()).count();
    assert!(read_short <= 1, "{read_short}");
    let (mut state, mut valid) = (1, 0);
    for _ in 0..10_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random(&mut state) % 4 {
            let at = random(&mut state) as usize % bytes.len();
            match random(&mut state) % 4 {
                0 => bytes[at] ^= 1 << (random(&mut state) % 8),
                1 => bytes[at] = [0, 0x7f, 0x80, 0xff][random(&mut state) as usize % 4],
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, random(&mut state) as u8),
            }
        }
        if let Ok(graph) = read(&bytes) {
            valid += 1;
            // An element of a byte in the file has eight at most in memory.
            assert!(held(&graph) <= 8 * bytes.len());
        }
    }
    assert!((1..10_000).contains(&valid), "{valid} of 10000 mutations are valid");
}

#[test]
fn graphs_in_graphs_end_somewhere() {
    let mut graph = GraphProto::default();
    for _ in 0..1000 {
        let attribute = AttributeProto { name: Some("body".into()), g: Some(Box::new(graph)), ..Default::default() };
        let node = NodeProto { op_type: Some("Loop".into()), attribute: vec![attribute], ..Default::default() };
        graph = GraphProto { node: vec![node], ..Default::default() };
    }
    let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
    assert!(matches!(read(&bytes), Err(Error::Format { .. })));
}

#[test]
fn a_file_gives_what_its_bytes_give() {
    let path = std::env::temp_dir().join(format!("lowprec-{}.onnx", std::process::id()));
    let whole = whole();
    std::fs::write(&path, &whole).unwrap();
    let (from_file, from_bytes) = (read_file(&path).unwrap(), read(&whole).unwrap());
    assert_eq!(from_file.initializers, from_bytes.initializers);
    assert_eq!(from_file.nodes.len(), from_bytes.nodes.len());
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let error = read_file(&path).unwrap_err();
    assert!(matches!(&error, Error::Format { .. }) && error.to_string().contains(path.to_str().unwrap()), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(read_file(&path), Err(Error::File { .. })));
}

#[test]
fn small_files_with_large_shapes_allocate_nothing() {
    for (dims, code) in [(vec![1 << 30], 1), (vec![1 << 20, 1 << 20], 7), (vec![i64::MAX], 22)] {
        let elements = Shape::new(dims.iter().map(|&d| d as usize).collect::<Vec<_>>());
        assert!(elements.is_ok(), "a shape that can't be is no test");
        let tensor =
            TensorProto { name: Some("w".into()), dims, data_type: Some(code), raw_data: Some(vec![0; 8].into()), ..Default::default() };
        let graph = GraphProto { initializer: vec![tensor], ..Default::default() };
        let opset = OperatorSetIdProto { domain: None, version: Some(17) };
        let bytes = ModelProto { opset_import: vec![opset], graph: Some(graph), ..Default::default() }.encode_to_vec();
        let error = read(&bytes).unwrap_err();
        assert!(matches!(&error, Error::Format { .. }) && error.to_string().contains("`w`"), "{error}");
    }
}
