//! The parameters of a node: taken out one by one by who knows the operator, so that none is passed over in silence.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::io::onnx::format_error;
use crate::io::onnx::schema::{AttributeProto, attribute_type};
use crate::io::onnx::tensor::{Places, element_code, value};
use crate::nn::operator;
use crate::tensor::Value;

/// The value of an attribute.
#[derive(Debug)]
enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
    // What is wrong with a tensor comes up when it is asked for: its operator may not be supported at all.
    Tensor(Box<Result<Value>>),
    /// A kind that no supported operator has: its name.
    Other(&'static str),
}

impl Attribute {
    fn kind(&self) -> &'static str {
        match self {
            Attribute::Int(_) => "int",
            Attribute::Float(_) => "float",
            Attribute::Text(_) => "string",
            Attribute::Ints(_) => "ints",
            Attribute::Floats(_) => "floats",
            Attribute::Texts(_) => "strings",
            Attribute::Tensor(_) => "tensor",
            Attribute::Other(kind) => kind,
        }
    }
}

/// The attributes of one node that have not been taken yet. Errors name the node, its operator and the attribute.
#[derive(Debug)]
pub struct Attributes {
    node: String,
    operator: String,
    left: BTreeMap<String, Attribute>,
}

impl Attributes {
    /// Those of the node of that name.
    ///
    /// # Errors
    /// [`Error::Format`] for an attribute without a name, one that is there twice, and one whose value is not of the kind
    /// that it says.
    pub fn new(node: &str, operator: &str, list: Vec<AttributeProto>, places: &mut Places) -> Result<Self> {
        let mut left = BTreeMap::new();
        for mut proto in list {
            let name = proto.name.take().unwrap_or_default();
            let what = described(&name, operator);
            let failed = |reason: &str| Err(format_error(&what, reason).in_node(node, &operator));
            if name.is_empty() {
                return failed("it has no name");
            }
            if left.contains_key(&name) {
                return failed("it is there twice");
            }
            if proto.ref_attr_name.as_ref().is_some_and(|name| !name.is_empty()) {
                return failed("it refers to an attribute of a function, and stands in none");
            }
            let attribute = match proto.r#type.unwrap_or_else(|| kind_of(&proto)) {
                attribute_type::INT => proto.i.map(Attribute::Int),
                attribute_type::FLOAT => proto.f.map(Attribute::Float),
                attribute_type::STRING => match proto.s.map(String::from_utf8) {
                    Some(Err(_)) => return failed("it is not UTF-8"),
                    text => text.and_then(|text| text.ok()).map(Attribute::Text),
                },
                attribute_type::INTS => Some(Attribute::Ints(proto.ints)),
                attribute_type::FLOATS => Some(Attribute::Floats(proto.floats)),
                attribute_type::STRINGS => match proto.strings.into_iter().map(String::from_utf8).collect() {
                    Ok(texts) => Some(Attribute::Texts(texts)),
                    Err(_) => return failed("it is not UTF-8"),
                },
                attribute_type::TENSOR => proto.t.map(|t| Attribute::Tensor(Box::new(value(*t, &what, places)))),
                attribute_type::GRAPH if proto.g.is_none() => None,
                other => {
                    let name = usize::try_from(other).ok().and_then(|other| attribute_type::NAMES.get(other));
                    match name {
                        Some(name) => Some(Attribute::Other(name)),
                        None => return failed("it is of no kind that ONNX has"),
                    }
                }
            };
            match attribute {
                Some(attribute) => left.insert(name, attribute),
                None => return failed("it has no value of its kind"),
            };
        }
        Ok(Attributes { node: node.to_owned(), operator: operator.to_owned(), left })
    }

    /// Those of an operator, as it spells them itself.
    pub fn spelled(node: &str, operator: &str, list: impl IntoIterator<Item = (String, operator::Attribute)>) -> Self {
        let attribute = |value| match value {
            operator::Attribute::Int(x) => Attribute::Int(x),
            operator::Attribute::Float(x) => Attribute::Float(x),
            operator::Attribute::Text(x) => Attribute::Text(x),
            operator::Attribute::Ints(x) => Attribute::Ints(x),
            operator::Attribute::Floats(x) => Attribute::Floats(x),
            operator::Attribute::Texts(x) => Attribute::Texts(x),
            operator::Attribute::Tensor(x) => Attribute::Tensor(Box::new(Ok(x))),
            operator::Attribute::Type(x) => Attribute::Int(element_code(x).into()),
        };
        let left = list.into_iter().map(|(name, value)| (name, attribute(value))).collect();
        Attributes { node: node.to_owned(), operator: operator.to_owned(), left }
    }

    fn take<T>(&mut self, name: &str, kind: &str, into: impl FnOnce(Attribute) -> Result<T, Attribute>) -> Result<Option<T>> {
        let Some(attribute) = self.left.remove(name) else { return Ok(None) };
        into(attribute).map(Some).map_err(|other| self.error(name, format!("its kind is {}, {kind} expected", other.kind())))
    }

    /// An error about the attribute of that name, for values that the operator doesn't have.
    pub fn error(&self, name: &str, reason: impl std::fmt::Display) -> Error {
        format_error(&described(name, &self.operator), reason).in_node(&self.node, &self.operator)
    }

    /// An error about the attribute of that name, for values that the standard has and this crate has not.
    pub fn unsupported(&self, name: &str, what: impl std::fmt::Display, way_out: &str) -> Error {
        let what = format!("{}: {what}", described(name, &self.operator));
        Error::Unsupported { what, way_out: way_out.into() }.in_node(&self.node, &self.operator)
    }

    /// The integer of that name.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no integer.
    pub fn int(&mut self, name: &str) -> Result<Option<i64>> {
        self.take(name, "int", |a| if let Attribute::Int(x) = a { Ok(x) } else { Err(a) })
    }

    /// The integer of that name, which stays there.
    pub fn peek_int(&self, name: &str) -> Option<i64> {
        if let Some(Attribute::Int(x)) = self.left.get(name) { Some(*x) } else { None }
    }

    /// The integers of that name, which stay there.
    pub fn peek_ints(&self, name: &str) -> Option<&[i64]> {
        if let Some(Attribute::Ints(list)) = self.left.get(name) { Some(list) } else { None }
    }

    /// The float of that name, which stays there.
    pub fn peek_float(&self, name: &str) -> Option<f32> {
        if let Some(Attribute::Float(x)) = self.left.get(name) { Some(*x) } else { None }
    }

    /// The integer of that name, or `default`.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no integer.
    pub fn int_or(&mut self, name: &str, default: i64) -> Result<i64> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// The truth value of that name, which ONNX stores as an integer, or `default`.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no integer, or neither 0 nor 1.
    pub fn flag_or(&mut self, name: &str, default: bool) -> Result<bool> {
        match self.int(name)? {
            None => Ok(default),
            Some(flag @ (0 | 1)) => Ok(flag == 1),
            Some(other) => Err(self.error(name, format!("it is {other}, neither 0 nor 1"))),
        }
    }

    /// The float of that name.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no float.
    pub fn float(&mut self, name: &str) -> Result<Option<f32>> {
        self.take(name, "float", |a| if let Attribute::Float(x) = a { Ok(x) } else { Err(a) })
    }

    /// The float of that name, or `default`.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no float.
    pub fn float_or(&mut self, name: &str, default: f32) -> Result<f32> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// The text of that name.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name, "string", |a| if let Attribute::Text(x) = a { Ok(x) } else { Err(a) })
    }

    /// The value that stands beside the text of that name in `choices`, the first one when there is no such attribute.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no text, or none of these.
    pub fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<T> {
        let text = self.text(name)?;
        let text = text.as_deref().or(choices.first().map(|(text, _)| *text)).unwrap_or_default();
        choices.iter().find(|(choice, _)| *choice == text).map(|(_, value)| *value).ok_or_else(|| {
            let choices: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
            self.error(name, format!("it is `{text}`, none of {choices:?}"))
        })
    }

    /// The list of integers of that name.
    ///
    /// # Errors
    /// [`Error::Format`] when it is none.
    pub fn ints(&mut self, name: &str) -> Result<Option<Vec<i64>>> {
        self.take(name, "ints", |a| if let Attribute::Ints(x) = a { Ok(x) } else { Err(a) })
    }

    /// The list of floats of that name.
    ///
    /// # Errors
    /// [`Error::Format`] when it is none.
    pub fn floats(&mut self, name: &str) -> Result<Option<Vec<f32>>> {
        self.take(name, "floats", |a| if let Attribute::Floats(x) = a { Ok(x) } else { Err(a) })
    }

    /// The list of texts of that name.
    ///
    /// # Errors
    /// [`Error::Format`] when it is none.
    pub fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>> {
        self.take(name, "strings", |a| if let Attribute::Texts(x) = a { Ok(x) } else { Err(a) })
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Format`] when it is none, and those of its data.
    pub fn tensor(&mut self, name: &str) -> Result<Option<Value>> {
        let value = self.take(name, "tensor", |a| if let Attribute::Tensor(x) = a { Ok(x) } else { Err(a) })?;
        value.map(|value| value.map_err(|e| e.in_node(&self.node, &self.operator))).transpose()
    }

    /// Drops one that changes nothing here, whatever its kind: said by name.
    pub fn discard(&mut self, name: &str) {
        self.left.remove(name);
    }

    /// Ends the reading of a node.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when attributes are left that nobody took, naming them.
    pub fn finish(self) -> Result<()> {
        if self.left.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self.left.iter().map(|(name, attribute)| format!("`{name}` ({})", attribute.kind())).collect();
        let what = format!("attribute {} of {}", names.join(", "), self.operator);
        Err(Error::Unsupported { what, way_out: "export the model without it".into() }.in_node(&self.node, &self.operator))
    }
}

fn described(name: &str, operator: &str) -> String {
    format!("attribute `{name}` of {operator}")
}

/// The kind of an attribute that doesn't say: that of the value it has.
fn kind_of(proto: &AttributeProto) -> i32 {
    let present = [
        (proto.i.is_some(), attribute_type::INT),
        (proto.f.is_some(), attribute_type::FLOAT),
        (proto.s.is_some(), attribute_type::STRING),
        (proto.t.is_some(), attribute_type::TENSOR),
        (proto.g.is_some(), attribute_type::GRAPH),
        (!proto.floats.is_empty(), attribute_type::FLOATS),
        (!proto.ints.is_empty(), attribute_type::INTS),
        (!proto.strings.is_empty(), attribute_type::STRINGS),
    ];
    // An empty list can't be told from none; of the lists, that of integers is the one that may be empty.
    present.iter().find(|(present, _)| *present).map_or(attribute_type::INTS, |(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::onnx::schema::TensorProto;

    fn attribute(name: &str, kind: i32) -> AttributeProto {
        AttributeProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
    }

    fn attributes(list: Vec<AttributeProto>) -> Result<Attributes> {
        Attributes::new("conv1", "Conv", list, &mut Places::default())
    }

    fn several() -> Attributes {
        let tensor = TensorProto { data_type: Some(7), dims: vec![2], int64_data: vec![5, 6], ..Default::default() };
        let strings = TensorProto { data_type: Some(8), dims: vec![0], ..Default::default() };
        attributes(vec![
            AttributeProto { i: Some(-1), ..attribute("axis", attribute_type::INT) },
            AttributeProto { f: Some(0.5), ..attribute("alpha", attribute_type::FLOAT) },
            AttributeProto { s: Some(b"reflect".into()), ..attribute("mode", attribute_type::STRING) },
            AttributeProto { ints: vec![3, 2], ..attribute("pads", attribute_type::INTS) },
            AttributeProto { floats: vec![1.5], ..attribute("scales", attribute_type::FLOATS) },
            AttributeProto { strings: vec![b"Tanh".into()], ..attribute("activations", attribute_type::STRINGS) },
            AttributeProto { t: Some(Box::new(tensor)), ..attribute("value", attribute_type::TENSOR) },
            AttributeProto { t: Some(Box::new(strings)), ..attribute("words", attribute_type::TENSOR) },
            AttributeProto { g: Some(Box::default()), ..attribute("body", attribute_type::GRAPH) },
        ])
        .unwrap()
    }

    #[test]
    fn every_kind_is_taken_as_what_it_is() {
        let mut all = several();
        assert_eq!((all.int("axis").unwrap(), all.int("axis").unwrap(), all.int_or("axis", 3).unwrap()), (Some(-1), None, 3));
        assert_eq!((all.float_or("alpha", 1.0).unwrap(), all.float_or("beta", 1.0).unwrap()), (0.5, 1.0));
        assert_eq!(all.choice("mode", &[("constant", 0), ("reflect", 1)]).unwrap(), 1);
        assert_eq!(all.choice("mode", &[("constant", 0), ("reflect", 1)]).unwrap(), 0);
        assert_eq!((all.ints("pads").unwrap().unwrap(), all.floats("scales").unwrap().unwrap()), (vec![3, 2], vec![1.5]));
        assert_eq!(all.texts("activations").unwrap().unwrap(), ["Tanh"]);
        assert_eq!(all.tensor("value").unwrap().unwrap().get::<i64>().unwrap().as_slice(), [5, 6]);
        assert!(matches!(all.tensor("words").unwrap_err().kind(), Error::Unsupported { .. }));
        all.discard("body");
        all.finish().unwrap();
    }

    #[test]
    fn errors_name_node_operator_and_attribute() {
        let mut all = several();
        let errors = [
            all.float("axis").unwrap_err(),
            all.choice("mode", &[("edge", 0)]).unwrap_err(),
            all.flag_or("alpha", false).unwrap_err(),
            all.text("body").unwrap_err(),
        ];
        for (error, name) in errors.iter().zip(["`axis`", "`mode`", "`alpha`", "`body`"]) {
            let text = error.to_string();
            assert!(matches!(error.kind(), Error::Format { .. }) && text.contains("`conv1`"), "{text}");
            assert!(text.contains(name) && text.contains("Conv"), "{text}");
        }
        let left = all.finish().unwrap_err();
        let text = left.to_string();
        assert!(matches!(left.kind(), Error::Unsupported { .. }) && text.contains("unsupported"), "{text}");
        assert!(["`pads` (ints)", "`value` (tensor)", "`words`"].iter().all(|name| text.contains(name)), "{text}");
    }

    #[test]
    fn attributes_that_contradict_themselves_are_refused() {
        let int = || AttributeProto { i: Some(1), ..attribute("axis", attribute_type::INT) };
        let cases = [
            vec![attribute("axis", attribute_type::INT)],
            vec![attribute("to", 99)],
            vec![attribute("to", -1)],
            vec![attribute("body", attribute_type::GRAPH)],
            vec![int(), int()],
            vec![AttributeProto { name: None, ..int() }],
            vec![AttributeProto { ref_attr_name: Some("outer".into()), ..int() }],
            vec![AttributeProto { s: Some(vec![0xff]), ..attribute("mode", attribute_type::STRING) }],
        ];
        for case in cases {
            let error = attributes(case.clone()).unwrap_err();
            assert!(matches!(error.kind(), Error::Format { .. }) && error.to_string().contains("`conv1`"), "{case:?}: {error}");
        }
    }

    #[test]
    fn old_files_do_not_say_the_kind() {
        let untyped = |proto| attributes(vec![AttributeProto { name: Some("x".into()), r#type: None, ..proto }]).unwrap();
        assert_eq!(untyped(AttributeProto { f: Some(2.0), ..Default::default() }).float("x").unwrap(), Some(2.0));
        assert_eq!(untyped(AttributeProto { i: Some(2), ..Default::default() }).int("x").unwrap(), Some(2));
        assert_eq!(untyped(AttributeProto::default()).ints("x").unwrap(), Some(vec![]));
    }
}
