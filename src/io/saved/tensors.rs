//! The tensors of a file by name: put in one by one, taken out one by one.

use std::collections::BTreeMap;

use super::document::{Codes, Packed};
use super::format_error;
use crate::error::{Error, Result};
use crate::num::code_bits;
use crate::quant::PackedCodes;
use crate::tensor::{DType, Element, Granularity, QParams, QuantizedTensor, Shape, Tensor, Value};

/// Those of a file to be written.
#[derive(Debug, Default)]
pub struct Writer {
    pub tensors: BTreeMap<String, Value>,
}

impl Writer {
    pub fn put(&mut self, name: String, value: impl Into<Value>) -> Result<()> {
        match self.tensors.insert(name.clone(), value.into()) {
            None => Ok(()),
            Some(_) => Err(Error::Duplicate { what: "tensor", name }),
        }
    }

    /// A value of any type; those that the format hasn't go in as bytes.
    pub fn put_value(&mut self, name: String, value: &Value) -> Result<Option<Packed>> {
        let dtype = value.dtype();
        if dtype.bits() == 8 * dtype.bytes() {
            return self.put(name, value.clone()).map(|()| None);
        }
        let bytes = value.to_packed().into_owned();
        self.put(name, Tensor::new([bytes.len()], bytes)?)?;
        Ok(Some(Packed { dtype: dtype.name().to_owned(), dims: value.shape().dims().to_vec() }))
    }

    pub fn put_list(&mut self, name: String, list: &[f32]) -> Result<()> {
        self.put(name, Tensor::new([list.len()], list.to_vec())?)
    }

    /// Codes and scales of a weight, in as few bits as its codes need.
    pub fn put_codes(&mut self, node: &str, weight: &QuantizedTensor<i8>) -> Result<Codes> {
        let (params, dims) = (weight.params(), weight.shape().dims());
        let (qmin, qmax) = (params.qmin(), params.qmax());
        let bits = code_bits(qmin, qmax);
        let axis = match params.granularity() {
            Granularity::PerChannel { axis } => Some(axis),
            _ => None,
        };
        self.put_list(format!("{node}.weight_scale"), params.scales())?;
        let zeros = !params.zero_points().is_empty();
        if zeros {
            let points = params.zero_points().iter().map(|&zero| zero as i8).collect::<Vec<i8>>();
            self.put(format!("{node}.weight_zero"), Tensor::new([points.len()], points)?)?;
        }
        let name = format!("{node}.weight");
        if bits == 8 {
            self.put(name, Tensor::new(dims, weight.storage().to_vec())?)?;
            return Ok(Codes { bits, qmin, qmax, axis, zeros, dims: None });
        }
        let mask = (1 << bits) - 1;
        let packed = PackedCodes::new(bits, weight.storage().iter().map(|&code| code as u32 & mask))?;
        self.put(name, Tensor::new([packed.as_bytes().len()], packed.as_bytes().to_vec())?)?;
        Ok(Codes { bits, qmin, qmax, axis, zeros, dims: Some(dims.to_vec()) })
    }
}

/// Those of a file that was read.
#[derive(Debug)]
pub struct Reader {
    left: BTreeMap<String, Value>,
}

impl Reader {
    pub fn new(tensors: Vec<(String, Value)>) -> Self {
        Reader { left: tensors.into_iter().collect() }
    }

    pub fn take<T: Element>(&mut self, name: &str) -> Result<Tensor<T>> {
        let value = self.left.remove(name).ok_or_else(|| self.missing(name))?;
        match value.get::<T>() {
            Some(tensor) => Ok(tensor.clone()),
            None => Err(Error::Type { what: format!("tensor `{name}`"), expected: T::DTYPE.name(), got: value.dtype().name() }),
        }
    }

    /// The tensor, where the file has it.
    pub fn take_some<T: Element>(&mut self, name: &str) -> Result<Option<Tensor<T>>> {
        if self.left.contains_key(name) { self.take(name).map(Some) } else { Ok(None) }
    }

    /// The tensor, where the file has it in this type.
    pub fn take_some_of<T: Element>(&mut self, name: &str) -> Option<Tensor<T>> {
        self.left.get(name)?.get::<T>()?;
        self.take(name).ok()
    }

    pub fn take_value(&mut self, name: &str, packed: Option<&Packed>) -> Result<Value> {
        let Some(Packed { dtype, dims }) = packed else { return self.left.remove(name).ok_or_else(|| self.missing(name)) };
        let bytes = self.take::<u8>(name)?;
        Value::from_packed(element_type(dtype)?, Shape::new(dims.clone())?, bytes.as_slice())
    }

    pub fn take_codes(&mut self, node: &str, codes: &Codes) -> Result<QuantizedTensor<i8>> {
        let Codes { bits, qmin, qmax, axis, zeros, dims } = codes;
        let name = format!("{node}.weight");
        let scales = self.take::<f32>(&format!("{node}.weight_scale"))?;
        if scales.dims().len() != 1 {
            return Err(Error::shape(format!("tensor `{node}.weight_scale`"), "one axis", scales.dims()));
        }
        let (shape, storage) = match (bits, dims) {
            (8, None) => {
                let tensor = self.take::<i8>(&name)?;
                (tensor.shape().clone(), tensor.into_vec())
            }
            (2..=7, Some(dims)) => {
                let shape = Shape::new(dims.clone())?;
                let packed = PackedCodes::from_bytes(*bits, shape.elements(), self.take::<u8>(&name)?.into_vec())?;
                let shift = 32 - bits;
                (shape, packed.iter().map(|code| ((code << shift) as i32 >> shift) as i8).collect())
            }
            _ => return Err(Error::parameter("bits of codes", bits, "must be 8, or 2 to 7 with the shape in `dims`")),
        };
        let granularity = axis.map_or(Granularity::PerTensor, |axis| Granularity::PerChannel { axis });
        if *qmin < -128 || *qmax > 127 {
            return Err(Error::parameter("range of codes", (qmin, qmax), "must lie within -128..=127"));
        }
        let zeros = match zeros {
            true => self.take::<i8>(&format!("{node}.weight_zero"))?.as_slice().iter().map(|&zero| zero.into()).collect(),
            false => Vec::new(),
        };
        let params = QParams::of_any_axis(scales.into_vec(), zeros, granularity, *qmin, *qmax)?;
        QuantizedTensor::from_storage(storage, shape, params)
    }

    pub fn finish(self) -> Result<()> {
        match self.left.is_empty() {
            true => Ok(()),
            false => Err(Error::Unused { names: self.left.into_keys().collect() }),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::Unknown { what: "tensor", name: name.to_owned(), present: self.left.keys().collect() }
    }
}

/// The element type of that name.
pub fn element_type(name: &str) -> Result<DType> {
    DType::ALL
        .iter()
        .copied()
        .find(|dtype| dtype.name() == name)
        .ok_or_else(|| format_error("input", format!("`{name}` is no element type")))
}
