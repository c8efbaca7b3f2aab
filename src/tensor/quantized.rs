//! Tensors of codes.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels;
use crate::num::{NonFinite, QuantElem, dequantize, quantize};
use crate::tensor::{Granularity, QParams, Shape, Tensor};

/// A tensor of integer codes of type `T`, truly packed, with the parameters that give them meaning.
///
/// ```
/// use lowprec::{I4, QParams, QuantizedTensor, Tensor};
/// let x = Tensor::new([4], vec![-1.0, 0.0, 0.6, 3.0])?;
/// let q = QuantizedTensor::<I4>::quantize(&x, &QParams::per_tensor(0.5, 0, -8, 7)?)?;
/// assert_eq!(q.codes(), [-2, 0, 1, 6]);
/// assert_eq!(q.dequantize().as_slice(), [-1.0, 0.0, 0.5, 3.0]);
/// assert_eq!(q.bytes(), 2 + 4); // four codes in two bytes, one scale
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct QuantizedTensor<T: QuantElem> {
    storage: Vec<T::Storage>,
    shape: Shape,
    params: QParams,
}

impl<T: QuantElem> QuantizedTensor<T> {
    /// Quantizes by these parameters: `clamp(round(x / scale) + zero_point, qmin, qmax)`.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for NaN or infinities, [`Error::Axis`], [`Error::Group`] or [`Error::Length`] when the
    /// parameters do not fit the shape, [`Error::Parameter`] when they speak of codes that `T` does not have.
    pub fn quantize(tensor: &Tensor, params: &QParams) -> Result<Self> {
        QuantizedTensor::quantize_with(tensor, params, NonFinite::Error)
    }

    /// As [`QuantizedTensor::quantize`], with a policy for NaN and infinities.
    ///
    /// # Errors
    /// Those of [`QuantizedTensor::quantize`].
    pub fn quantize_with(tensor: &Tensor, params: &QParams, non_finite: NonFinite) -> Result<Self> {
        let shape = tensor.shape();
        fits::<T>(shape, params)?;
        let x = tensor.as_slice();
        non_finite.check("tensor to quantize", x)?;
        let mut storage = vec![bytemuck::Zeroable::zeroed(); T::storage_len(x.len())];
        for (run, parameter) in params.granularity().runs(shape)? {
            quantize_run::<T>(&x[run.clone()], params.at(parameter), (params.qmin(), params.qmax()), &mut storage, run)?;
        }
        Ok(QuantizedTensor { storage, shape: shape.clone(), params: params.clone() })
    }

    /// A tensor of codes that exist already, in row-major order.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Code`] for a code outside `qmin..=qmax`, and as for [`QuantizedTensor::quantize`].
    pub fn from_codes(codes: &[i32], shape: Shape, params: QParams) -> Result<Self> {
        if codes.len() != shape.elements() {
            return Err(Error::length(format!("codes for a tensor of shape {shape:?}"), shape.elements(), codes.len()));
        }
        fits::<T>(&shape, &params)?;
        let mut storage = vec![bytemuck::Zeroable::zeroed(); T::storage_len(codes.len())];
        for (index, &value) in codes.iter().enumerate() {
            check_code(index, value, &params)?;
            T::set(&mut storage, index, value);
        }
        Ok(QuantizedTensor { storage, shape, params })
    }

    /// A tensor over packed storage that exists already; see [`QuantElem`] for the order inside a byte.
    ///
    /// # Errors
    /// Those of [`QuantizedTensor::from_codes`].
    pub fn from_storage(storage: Vec<T::Storage>, shape: Shape, params: QParams) -> Result<Self> {
        let units = T::storage_len(shape.elements());
        if storage.len() != units {
            return Err(Error::length(format!("storage of {} codes for a tensor of shape {shape:?}", T::NAME), units, storage.len()));
        }
        fits::<T>(&shape, &params)?;
        for index in 0..shape.elements() {
            check_code(index, T::get(&storage, index), &params)?;
        }
        Ok(QuantizedTensor { storage, shape, params })
    }

    /// The values, `scale · (code - zero_point)`.
    pub fn dequantize(&self) -> Tensor {
        let mut data = vec![0.0; self.shape.elements()];
        self.fill(&mut data);
        Tensor::from_shape(self.shape.clone(), data).expect("as many values as the shape has elements")
    }

    /// The values, into a buffer of the caller's.
    ///
    /// # Errors
    /// [`Error::Length`] when the buffer has not one place for each element.
    pub fn dequantize_into(&self, output: &mut [f32]) -> Result<()> {
        if output.len() != self.shape.elements() {
            return Err(Error::length("buffer to dequantize into", self.shape.elements(), output.len()));
        }
        self.fill(output);
        Ok(())
    }

    fn fill(&self, output: &mut [f32]) {
        let runs = self.params.granularity().runs(&self.shape).expect("checked at birth");
        for (run, parameter) in runs {
            dequantize_run::<T>(&self.storage, run.clone(), self.params.at(parameter), &mut output[run]);
        }
    }

    /// A copy of the entries `range` of `axis`, with the scales that belong to them.
    ///
    /// # Errors
    /// [`Error::Axis`], and [`Error::Parameter`] when the range leaves the axis or cuts a group.
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Result<Self> {
        let (outer, length, inner) = self.shape.around(axis)?;
        if range.start > range.end || range.end > length {
            return Err(Error::parameter("slice", range, format!("must lie within 0..{length}, the length of axis {axis}")));
        }
        let params = self.sliced_params(axis, &range)?;
        let shape = self.shape.with_axis(axis, range.len())?;
        let mut storage = vec![bytemuck::Zeroable::zeroed(); T::storage_len(shape.elements())];
        let mut to = 0;
        for o in 0..outer {
            for from in (o * length + range.start) * inner..(o * length + range.end) * inner {
                T::set(&mut storage, to, T::get(&self.storage, from));
                to += 1;
            }
        }
        Ok(QuantizedTensor { storage, shape, params })
    }

    fn sliced_params(&self, axis: usize, range: &Range<usize>) -> Result<QParams> {
        // Scales form a tensor of their own: the shape with every shared axis cut down. Slice that.
        let (shape, range) = match self.params.granularity() {
            Granularity::PerChannel { axis: channel } if channel == axis => return Ok(self.params.pick(range.clone())),
            Granularity::PerTensor | Granularity::PerChannel { .. } => return Ok(self.params.clone()),
            Granularity::PerGroup { axis: grouped, size } => {
                let shape = self.shape.with_axis(grouped, self.shape.axis(grouped)? / size)?;
                if grouped != axis {
                    (shape, range.clone())
                } else if !range.start.is_multiple_of(size) || !range.end.is_multiple_of(size) {
                    return Err(Error::parameter("slice", range, format!("cuts a group: begin and end at multiples of {size}")));
                } else {
                    (shape, range.start / size..range.end / size)
                }
            }
        };
        let (outer, length, inner) = shape.around(axis)?;
        let span = move |o: usize| (o * length + range.start) * inner..(o * length + range.end) * inner;
        Ok(self.params.pick((0..outer).flat_map(span)))
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Scales, zero points, range of codes.
    pub fn params(&self) -> &QParams {
        &self.params
    }

    /// The packed codes.
    pub fn storage(&self) -> &[T::Storage] {
        &self.storage
    }

    /// The code of a flat index.
    pub fn code(&self, index: usize) -> Option<i32> {
        (index < self.shape.elements()).then(|| T::get(&self.storage, index))
    }

    /// All codes in row-major order.
    pub fn codes(&self) -> Vec<i32> {
        (0..self.shape.elements()).map(|i| T::get(&self.storage, i)).collect()
    }

    /// Bytes held: packed codes, 4 for each scale, 4 for each zero point (none when all are 0). The shape is not counted.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(self.storage.as_slice()) + self.params.bytes()
    }
}

/// Shortest run that is worth a call of the vector kernels.
const VECTOR_RUN: usize = 32;

/// Codes of neighbouring elements with one scale: whole bytes by the vector kernels, which give the same codes.
fn quantize_run<T: QuantElem>(
    x: &[f32],
    (scale, zero_point): (f32, i32),
    (qmin, qmax): (i32, i32),
    storage: &mut [T::Storage],
    run: Range<usize>,
) -> Result<()> {
    if x.len() >= VECTOR_RUN {
        if let Some(codes) = T::as_i8_mut(storage) {
            return kernels::quantize_i8(x, scale, zero_point, qmin, qmax, &mut codes[run]);
        }
        if let Some(codes) = T::as_u8_mut(storage) {
            return kernels::quantize_u8(x, scale, zero_point, qmin, qmax, &mut codes[run]);
        }
    }
    for (i, &x) in run.zip(x) {
        T::set(storage, i, quantize(x, scale, zero_point, qmin, qmax));
    }
    Ok(())
}

fn dequantize_run<T: QuantElem>(storage: &[T::Storage], run: Range<usize>, (scale, zero_point): (f32, i32), output: &mut [f32]) {
    if output.len() >= VECTOR_RUN {
        let done = match (T::as_i8(storage), T::as_u8(storage)) {
            (Some(codes), _) => kernels::dequantize_i8(&codes[run.clone()], scale, zero_point, output).is_ok(),
            (_, Some(codes)) => kernels::dequantize_u8(&codes[run.clone()], scale, zero_point, output).is_ok(),
            _ => false,
        };
        if done {
            return;
        }
    }
    for (i, y) in run.zip(output) {
        *y = dequantize(T::get(storage, i), scale, zero_point);
    }
}

fn fits<T: QuantElem>(shape: &Shape, params: &QParams) -> Result<()> {
    let expected = params.granularity().parameters(shape)?;
    if params.scales().len() != expected {
        return Err(Error::length(
            format!("list of scales for shape {shape:?}, {:?}", params.granularity()),
            expected,
            params.scales().len(),
        ));
    }
    holds::<T>(params.qmin(), params.qmax())
}

/// Whether `T` has all codes `qmin..=qmax`.
pub(crate) fn holds<T: QuantElem>(qmin: i32, qmax: i32) -> Result<()> {
    match T::QMIN <= qmin && qmax <= T::QMAX {
        true => Ok(()),
        false => {
            let rule = format!("{} holds {} to {}: take a wider type, or a scheme of its range", T::NAME, T::QMIN, T::QMAX);
            Err(Error::parameter("range of codes", (qmin, qmax), rule))
        }
    }
}

fn check_code(index: usize, value: i32, params: &QParams) -> Result<()> {
    match (params.qmin()..=params.qmax()).contains(&value) {
        true => Ok(()),
        false => Err(Error::Code { index, value, qmin: params.qmin(), qmax: params.qmax() }),
    }
}

impl<T: QuantElem> fmt::Debug for QuantizedTensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let first: Vec<i32> = (0..self.shape.elements().min(SHOWN)).map(|i| T::get(&self.storage, i)).collect();
        let more = if self.shape.elements() > SHOWN { "…" } else { "" };
        write!(f, "QuantizedTensor<{}>{:?} {first:?}{more} {:?}", T::NAME, self.shape, self.params.granularity())
    }
}
