//! 8-bit codes as files describe them: those of activations, and those of weights.

use super::call::Argument;
use crate::convert::CodeRange;
use crate::error::Result;
use crate::nn::Edge;
use crate::tensor::{DType, Element, Granularity, QParams, QuantizedTensor, Shape, Tensor, Value};

/// Scale and zero point of a whole tensor of codes, u8 or i8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    pub scale: f32,
    pub zero_point: i32,
    pub dtype: DType,
}

impl Grid {
    /// That of codes of type `dtype` by the inputs `scale` and `zero_point` of a node. `None` when they are not constant single
    /// numbers of the right types, or no valid ones.
    pub fn of(arguments: &[Option<Argument>], [scale, zero_point]: [usize; 2], dtype: DType) -> Option<Self> {
        let given = |i: usize| arguments.get(i).and_then(Option::as_ref);
        let scale = single(given(scale)?.constant.as_ref()?.get::<f32>()?)?;
        let zero_point = match given(zero_point) {
            None => 0,
            Some(argument) => match argument.constant.as_ref()? {
                Value::U8(tensor) if dtype == DType::U8 => single(tensor)?.into(),
                Value::I8(tensor) if dtype == DType::I8 => single(tensor)?.into(),
                _ => return None,
            },
        };
        (matches!(dtype, DType::U8 | DType::I8) && scale.is_finite() && scale > 0.0).then_some(Grid { scale, zero_point, dtype })
    }

    /// As u8 codes.
    pub fn range(self) -> Result<CodeRange> {
        let (qmin, qmax) = if self.dtype == DType::I8 { (-128, 127) } else { (0, 255) };
        CodeRange::new(&QParams::per_tensor(self.scale, self.zero_point, qmin, qmax)?)
    }

    /// Scale and zero point as tensors without axes.
    pub fn values(self) -> Result<[Value; 2]> {
        let zero_point = match self.dtype {
            DType::I8 => Tensor::new(Vec::new(), vec![self.zero_point as i8])?.into(),
            _ => Tensor::new(Vec::new(), vec![self.zero_point as u8])?.into(),
        };
        Ok([Tensor::new(Vec::new(), vec![self.scale])?.into(), zero_point])
    }
}

/// The only element of a tensor of at most one axis.
fn single<T: Element>(tensor: &Tensor<T>) -> Option<T> {
    match (tensor.dims().len(), tensor.as_slice()) {
        (0 | 1, &[x]) => Some(x),
        _ => None,
    }
}

/// A value of the file in codes: those of a float value of the model, which is rounded to their grid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes {
    pub of: Edge,
    pub grid: Grid,
    /// The node of the file that writes them.
    pub writer: usize,
}

/// The codes that constant floats were made of: symmetric, one scale or one for each entry of an axis.
#[derive(Debug)]
pub(super) struct WeightCodes {
    codes: Tensor<i8>,
    scales: Vec<f32>,
    axis: Option<usize>,
}

impl WeightCodes {
    /// `None` when they are no such codes; those of type u8 are if their zero points are 128.
    pub fn new(codes: &Value, scale: &Value, zero_point: Option<&Value>, axis: i64) -> Option<Self> {
        let codes = match (codes, zero_point) {
            (Value::I8(codes), None) => codes.clone(),
            // In memory each has a byte of its own.
            (Value::I4(_) | Value::I2(_), None) => {
                Tensor::new(codes.shape().dims(), codes.bytes().iter().map(|&code| code as i8).collect()).ok()?
            }
            (Value::I8(codes), Some(Value::I8(zero))) if zero.as_slice().iter().all(|&zero| zero == 0) => codes.clone(),
            (Value::U8(codes), Some(Value::U8(zero))) if zero.as_slice().iter().all(|&zero| zero == 128) => {
                Tensor::new(codes.dims(), codes.as_slice().iter().map(|&code| (code ^ 0x80) as i8).collect()).ok()?
            }
            _ => return None,
        };
        let scale = scale.get::<f32>()?;
        let rank = codes.dims().len();
        let axis = match (scale.dims(), scale.len()) {
            ([] | [_], 1) => None,
            ([_], count) => {
                let axis = usize::try_from(if axis < 0 { axis.saturating_add(i64::try_from(rank).ok()?) } else { axis }).ok()?;
                (codes.dims().get(axis) == Some(&count)).then_some(Some(axis))?
            }
            _ => return None,
        };
        let scales = scale.as_slice().to_vec();
        (!codes.is_empty() && scales.iter().all(|&scale| scale.is_finite() && scale > 0.0)).then_some(WeightCodes { codes, scales, axis })
    }

    /// Those of the transposed matrix; `None` when they are of no matrix.
    pub fn transposed(&self) -> Option<Self> {
        let &[rows, cols] = self.codes.dims() else { return None };
        let from = self.codes.as_slice();
        let to = (0..cols).flat_map(|col| (0..rows).map(move |row| from[row * cols + col])).collect();
        let codes = Tensor::new([cols, rows], to).ok()?;
        Some(WeightCodes { codes, scales: self.scales.clone(), axis: self.axis.map(|axis| 1 - axis) })
    }

    /// As the weight of a layer, in a shape that keeps the first axis; `None` when the scales belong to another one.
    pub fn weight(&self, dims: &[usize]) -> Result<Option<QuantizedTensor<i8>>> {
        let granularity = match self.axis {
            None => Granularity::PerTensor,
            Some(0) if dims.first() == self.codes.dims().first() => Granularity::PerChannel { axis: 0 },
            Some(_) => return Ok(None),
        };
        let params = QParams::new(self.scales.clone(), Vec::new(), granularity, -128, 127)?;
        QuantizedTensor::from_storage(self.codes.as_slice().to_vec(), Shape::new(dims)?, params).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(value: impl Into<Value>) -> Option<Argument> {
        Some(Argument::constant(value.into()))
    }

    fn scalar<T: Element>(x: T) -> Tensor<T> {
        Tensor::new(Vec::new(), vec![x]).unwrap()
    }

    #[test]
    fn a_grid_is_one_valid_scale_and_a_zero_point_of_the_codes_type() {
        let grid = |scale: Tensor, zero: Option<Argument>, dtype| Grid::of(&[constant(scale), zero], [0, 1], dtype);
        let found = grid(scalar(0.5), constant(scalar(-3i8)), DType::I8).unwrap();
        assert_eq!((found.scale, found.zero_point), (0.5, -3));
        assert_eq!(found.range().unwrap().grid.zero_point(), 125);
        assert_eq!(grid(Tensor::full([1], 0.5).unwrap(), None, DType::U8).unwrap().range().unwrap().grid.zero_point(), 0);
        assert_eq!(grid(scalar(0.5), constant(scalar(3u8)), DType::I8), None);
        assert_eq!(grid(scalar(0.5), constant(scalar(3i32)), DType::U8), None);
        assert_eq!(grid(scalar(0.5), constant(scalar(3i32)), DType::I32), None);
        assert_eq!(grid(Tensor::full([2], 0.5).unwrap(), None, DType::U8), None);
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(grid(scalar(bad), None, DType::U8), None, "{bad}");
        }
        assert_eq!(Grid::of(&[], [0, 1], DType::U8), None);
    }

    #[test]
    fn weights_are_signed_codes_by_the_first_axis_of_their_layer() {
        let codes = Value::from(Tensor::new([2, 3], vec![128u8, 0, 255, 127, 129, 130]).unwrap());
        let (scale, zero) =
            (Value::from(Tensor::new([3], vec![1.0f32, 2.0, 3.0]).unwrap()), Value::from(Tensor::full([3], 128u8).unwrap()));
        let found = WeightCodes::new(&codes, &scale, Some(&zero), -1).unwrap();
        assert!(found.weight(&[2, 3]).unwrap().is_none());
        let weight = found.transposed().unwrap().weight(&[3, 2]).unwrap().unwrap();
        assert_eq!(weight.storage(), [0, -1, -128, 1, 127, 2]);
        assert_eq!(weight.params().scales(), [1.0, 2.0, 3.0]);
        // Without zero points u8 codes are not symmetric, and neither are they around another one.
        assert!(WeightCodes::new(&codes, &scale, None, 1).is_none());
        assert!(WeightCodes::new(&codes, &scale, Some(&Tensor::full([3], 127u8).unwrap().into()), 1).is_none());
        // Three scales are those of an axis of three.
        assert!(WeightCodes::new(&codes, &scale, Some(&zero), 0).is_none());
        assert!(WeightCodes::new(&codes, &scale, Some(&zero), i64::MIN).is_none());
        assert!(WeightCodes::new(&codes, &Tensor::full([3], 0.0f32).unwrap().into(), Some(&zero), 1).is_none());
    }
}
