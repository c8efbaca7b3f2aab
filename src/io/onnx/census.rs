//! What a file would take in memory, found out before anything is decoded: a message of two bytes may become a struct of two
//! hundred, so a file of nothing but such would grow a hundredfold.

use bytes::Buf;

use crate::io::onnx::schema::{
    AttributeProto, DimensionProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto,
    TensorProto, TypeProto, ValueInfoProto,
};

/// Bytes that the structs of any file may take.
const FREE: u64 = 1 << 20;
/// Bytes that they may take for each byte of the file on top of it: no more than nodes take that read and write one value each, with names
/// of one letter.
const PER_BYTE: u64 = 16;
/// Levels of messages in messages, as many as the decoder allows.
const DEPTH: usize = 100;

/// The messages that hold others.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TensorType,
    Shape,
}

/// What a field of a message becomes: bytes of a struct, and the kind of message if it holds more.
fn field(kind: Kind, number: u64) -> (usize, Option<Kind>) {
    let text = size_of::<String>();
    match (kind, number) {
        (Kind::Model, 7) => (size_of::<GraphProto>(), Some(Kind::Graph)),
        (Kind::Model, 8) => (size_of::<OperatorSetIdProto>(), None),
        (Kind::Model, 25) => (size_of::<FunctionProto>(), None),
        (Kind::Graph, 1) => (size_of::<NodeProto>(), Some(Kind::Node)),
        (Kind::Graph, 5) => (size_of::<TensorProto>(), Some(Kind::Tensor)),
        (Kind::Graph, 11 | 12) => (size_of::<ValueInfoProto>(), Some(Kind::ValueInfo)),
        (Kind::Graph, 15) => (size_of::<SparseTensorProto>(), Some(Kind::Sparse)),
        (Kind::Node, 1 | 2) => (text, None),
        (Kind::Node, 5) => (size_of::<AttributeProto>(), Some(Kind::Attribute)),
        (Kind::Attribute, 5) => (size_of::<TensorProto>(), Some(Kind::Tensor)),
        (Kind::Attribute, 6) => (size_of::<GraphProto>(), Some(Kind::Graph)),
        (Kind::Attribute, 9) => (text, None),
        (Kind::Tensor, 13) => (size_of::<StringStringEntryProto>(), None),
        (Kind::Sparse, 1) => (0, Some(Kind::Tensor)),
        (Kind::ValueInfo, 2) => (size_of::<TypeProto>(), Some(Kind::Type)),
        (Kind::Type, 1) => (0, Some(Kind::TensorType)),
        (Kind::TensorType, 2) => (0, Some(Kind::Shape)),
        (Kind::Shape, 1) => (size_of::<DimensionProto>(), None),
        _ => (0, None),
    }
}

/// Whether a model in `source` takes no more memory than its size allows. What can't be read is left to the decoder, which
/// says what is wrong with it.
pub fn is_affordable(mut source: impl Buf) -> bool {
    let size = source.remaining() as u64;
    let mut census = Census { taken: 0, allowed: FREE + PER_BYTE * size };
    // An unreadable file ends the walk early, as it ends the decoder.
    census.walk(Kind::Model, &mut source, 0, DEPTH);
    census.taken <= census.allowed
}

struct Census {
    taken: u64,
    allowed: u64,
}

impl Census {
    /// Walks over a message that ends when `end` bytes are left; `None` when it can't be read to its end, or need not be.
    fn walk(&mut self, kind: Kind, source: &mut impl Buf, end: usize, depth: usize) -> Option<()> {
        while source.remaining() > end {
            let key = varint(source)?;
            let length = match key & 7 {
                0 => {
                    varint(source)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(source)?).ok()?,
                5 => 4,
                // Groups are no part of ONNX.
                _ => return None,
            };
            let rest = source.remaining().checked_sub(length).filter(|&rest| rest >= end)?;
            match field(kind, key >> 3) {
                (bytes, inner) if key & 7 == 2 => {
                    self.taken += bytes as u64;
                    if self.taken > self.allowed {
                        return None;
                    }
                    match inner {
                        Some(inner) => self.walk(inner, source, rest, depth.checked_sub(1)?)?,
                        None => source.advance(length),
                    }
                }
                _ => source.advance(length),
            }
        }
        (source.remaining() == end).then_some(())
    }
}

fn varint(source: &mut impl Buf) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if !source.has_remaining() {
            return None;
        }
        let byte = source.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::io::onnx::schema::ModelProto;

    #[test]
    fn files_of_nothing_but_empty_messages_are_refused() {
        let graph = |node: usize, empty: &[u8]| {
            let graph = [empty.repeat(node), vec![]].concat();
            let mut model = vec![0x3a];
            prost::encoding::encode_varint(graph.len() as u64, &mut model);
            [model, graph].concat()
        };
        for empty in [[0x0a, 0], [0x2a, 0], [0x5a, 0]] {
            assert!(is_affordable(graph(1000, &empty).as_slice()));
            assert!(!is_affordable(graph(4_000_000, &empty).as_slice()), "{empty:?}");
        }
        // Nodes with one input without a name.
        assert!(!is_affordable(graph(2_000_000, &[0x0a, 2, 0x0a, 0]).as_slice()));
    }

    #[test]
    fn many_small_nodes_are_welcome() {
        let node = NodeProto { input: vec!["a".into()], output: vec!["b".into()], op_type: Some("Abs".into()), ..Default::default() };
        let graph = GraphProto { node: vec![node; 300_000], ..Default::default() };
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        let mut census = Census { taken: 0, allowed: u64::MAX };
        census.walk(Kind::Model, &mut bytes.as_slice(), 0, DEPTH).unwrap();
        assert!(is_affordable(bytes.as_slice()), "{} for {}", census.taken, bytes.len());
    }

    #[test]
    fn weights_count_for_nothing() {
        let tensor = TensorProto { dims: vec![1 << 20], raw_data: Some(vec![0; 1 << 22].into()), ..Default::default() };
        let graph = GraphProto { initializer: vec![tensor; 8], ..Default::default() };
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        let mut census = Census { taken: 0, allowed: u64::MAX };
        census.walk(Kind::Model, &mut bytes.as_slice(), 0, DEPTH).unwrap();
        assert_eq!(census.taken as usize, 8 * size_of::<TensorProto>() + size_of::<GraphProto>());
    }

    #[test]
    fn what_cannot_be_read_is_left_to_the_decoder() {
        for bytes in [&[0x3a, 5, 1][..], &[0xff; 12], &[0x3b, 0x3c], &[0x3a, 2, 0x0a, 1]] {
            assert!(is_affordable(bytes));
        }
    }
}
