//! Plain operators in files: spelled as the standard spells them, but for those that it doesn't have.

use super::decode::{grid, unknown};
use super::document::{Attributes, LayerEntry, Parameter, Real, Stored};
use super::encode::{self, unspoken};
use super::tensors::{Reader, Writer, element_type};
use crate::error::{Error, Result};
use crate::io::onnx::attribute;
use crate::io::onnx::import;
use crate::nn::Layer;
use crate::nn::operator::{
    Attribute, Attributes as Spelled, CodeTable, MaskedSoftmax, Operator, Pool, QuantizedAdd, QuantizedAvgPool, QuantizedGlobalAvgPool,
    QuantizedMaxPool, QuantizedMul,
};

use crate::tensor::Tensor;

/// The version of the standard that is meant where none is said.
const LATEST: i64 = 28;

pub fn encode(tensors: &mut Writer, node: &str, operator: &Operator) -> Result<LayerEntry> {
    Ok(match operator {
        Operator::MaskedSoftmax(softmax) => LayerEntry::MaskedSoftmax { scale: Real(softmax.scale()) },
        Operator::QuantizedAdd(sum) => LayerEntry::QuantizedAdd { grids: sum.grids().map(encode::grid), range: sum.range() },
        Operator::QuantizedMul(product) => LayerEntry::QuantizedMul { grids: product.grids().map(encode::grid), range: product.range() },
        Operator::CodeTable(table) => {
            tensors.put(format!("{node}.table"), Tensor::new([256], table.table().to_vec())?)?;
            LayerEntry::CodeTable { name: operator.name().to_owned() }
        }
        Operator::QuantizedMaxPool(pool) => LayerEntry::QuantizedMaxPool(spelled(tensors, node, &pool.pool().clone().into())?),
        Operator::QuantizedAvgPool(pool) => LayerEntry::QuantizedAvgPool {
            pool: spelled(tensors, node, &pool.pool().clone().into())?,
            grids: pool.grids().map(encode::grid),
        },
        Operator::QuantizedGlobalAvgPool(pool) => LayerEntry::QuantizedGlobalAvgPool { grids: pool.grids().map(encode::grid) },
        Operator::MatMul(product) if !product.is_plain() => return Err(unspoken("a product that transposes its operands".into())),
        Operator::Attention(_) => return Err(unspoken("products of matrices around a Softmax in one".into())),
        other => {
            let opset = *other.operation().opsets().end();
            LayerEntry::Operator {
                name: other.name().to_owned(),
                opset: (opset != LATEST).then_some(opset),
                attributes: spelled(tensors, node, other)?,
            }
        }
    })
}

fn spelled(tensors: &mut Writer, node: &str, operator: &Operator) -> Result<Attributes> {
    parameters(tensors, node, operator.operation().attributes())
}

/// Parameters as a file holds them.
pub fn parameters(tensors: &mut Writer, node: &str, attributes: Spelled) -> Result<Attributes> {
    let mut parameters = Attributes::new();
    for (name, attribute) in attributes.list {
        let parameter = match attribute {
            Attribute::Int(x) => Parameter::Int(x),
            Attribute::Float(x) => Parameter::Float(Real(x)),
            Attribute::Text(x) => Parameter::Text(x),
            Attribute::Ints(x) => Parameter::Ints(x),
            Attribute::Floats(x) => Parameter::Floats(x.into_iter().map(Real).collect()),
            Attribute::Texts(x) => Parameter::Texts(x),
            Attribute::Type(x) => Parameter::Type(x.name().to_owned()),
            Attribute::Tensor(x) => Parameter::Tensor(Stored { packed: tensors.put_value(format!("{node}.{name}"), &x)? }),
        };
        parameters.insert(name.to_owned(), parameter);
    }
    Ok(parameters)
}

/// Parameters as the importer of the standard's files reads them.
pub fn attributes(tensors: &mut Reader, node: &str, operator: &str, parameters: Attributes) -> Result<attribute::Attributes> {
    let mut list = Vec::with_capacity(parameters.len());
    for (name, parameter) in parameters {
        let attribute = match parameter {
            Parameter::Int(x) => Attribute::Int(x),
            Parameter::Float(x) => Attribute::Float(x.0),
            Parameter::Text(x) => Attribute::Text(x),
            Parameter::Ints(x) => Attribute::Ints(x),
            Parameter::Floats(x) => Attribute::Floats(x.into_iter().map(|x| x.0).collect()),
            Parameter::Texts(x) => Attribute::Texts(x),
            Parameter::Type(x) => Attribute::Type(element_type(&x)?),
            Parameter::Tensor(Stored { packed }) => Attribute::Tensor(tensors.take_value(&format!("{node}.{name}"), packed.as_ref())?),
        };
        list.push((name, attribute));
    }
    Ok(attribute::Attributes::spelled(node, operator, list))
}

/// The operator behind an entry that is one.
pub fn decode(tensors: &mut Reader, node: &str, writes: usize, entry: LayerEntry) -> Result<Layer> {
    Ok(match entry {
        LayerEntry::MaskedSoftmax { scale } => MaskedSoftmax::new(scale.0).into(),
        LayerEntry::QuantizedAdd { grids: [a, b, out], range } => {
            QuantizedAdd::new(grid(a)?, grid(b)?, grid(out)?)?.with_range(range.0, range.1)?.into()
        }
        LayerEntry::QuantizedMul { grids: [a, b, out], range } => {
            QuantizedMul::new(grid(a)?, grid(b)?, grid(out)?)?.with_range(range.0, range.1)?.into()
        }
        LayerEntry::CodeTable { name } => {
            let table = tensors.take::<u8>(&format!("{node}.table"))?;
            let table = table.as_slice().try_into().map_err(|_| Error::length("table of codes", 256, table.len()))?;
            CodeTable::new(import::function_name(&name).ok_or_else(|| unknown("function of codes", &name))?, table).into()
        }
        LayerEntry::QuantizedMaxPool(parameters) => QuantizedMaxPool::new(pool(tensors, node, "MaxPool", parameters)?)?.into(),
        LayerEntry::QuantizedAvgPool { pool: parameters, grids: [x, out] } => {
            QuantizedAvgPool::new(pool(tensors, node, "AveragePool", parameters)?, grid(x)?, grid(out)?)?.into()
        }
        LayerEntry::QuantizedGlobalAvgPool { grids: [x, out] } => QuantizedGlobalAvgPool::new(grid(x)?, grid(out)?)?.into(),
        LayerEntry::Operator { name, opset, attributes: parameters } => {
            standard(tensors, node, &name, opset.unwrap_or(LATEST), writes, parameters)?
        }
        other => return Err(unknown("operator", &format!("{other:?}"))),
    })
}

fn pool(tensors: &mut Reader, node: &str, name: &str, parameters: Attributes) -> Result<Pool> {
    match standard(tensors, node, name, LATEST, 1, parameters)? {
        Layer::Operator(Operator::Pool(pool)) => Ok(pool),
        other => Err(unknown("pooling", &other.kind().to_string())),
    }
}

fn standard(tensors: &mut Reader, node: &str, name: &str, opset: i64, writes: usize, parameters: Attributes) -> Result<Layer> {
    let attributes = attributes(tensors, node, name, parameters)?;
    import::operator(name, opset, writes, attributes)
}
