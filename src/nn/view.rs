//! Values where they lie while a model runs: an element type, a shape, and bytes in a buffer.

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::kernels::Aligned;
use crate::nn::quantized::StaticOutputMut;
use crate::tensor::DType;

/// A value that a step reads. Its dimensions are those of memory: an image that lies channels-last is `[n, h, w, c]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub dtype: DType,
    pub dims: &'a [usize],
    pub bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// The elements; `bool` and the small types are bytes.
    ///
    /// # Panics
    /// When `T` is not of the element type's size: operators look at `dtype` first.
    pub fn as_slice<T: Pod>(&self) -> &'a [T] {
        bytemuck::cast_slice(self.bytes)
    }

    pub fn f32(&self) -> &'a [f32] {
        self.as_slice()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// Indices and lengths, whatever integer type they come in.
    pub fn ints(&self) -> Result<impl ExactSizeIterator<Item = i64> + use<'a>> {
        let (wide, narrow): (&[i64], &[i32]) = match self.dtype {
            DType::I64 => (self.as_slice(), &[]),
            DType::I32 => (&[], self.as_slice()),
            other => return Err(Error::Type { what: "list of integers".into(), expected: "i64 or i32", got: other.name() }),
        };
        let length = wide.len() + narrow.len();
        Ok((0..length).map(move |i| if wide.is_empty() { i64::from(narrow[i]) } else { wide[i] }))
    }
}

/// A value that a step writes.
#[derive(Debug)]
pub(crate) struct ViewMut<'a> {
    pub dtype: DType,
    pub dims: &'a [usize],
    pub bytes: &'a mut [u8],
}

impl ViewMut<'_> {
    /// The elements, as [`View::as_slice`].
    ///
    /// # Panics
    /// As [`View::as_slice`].
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes)
    }

    pub fn f32(&mut self) -> &mut [f32] {
        self.as_mut_slice()
    }

    /// The memory as a layer with fixed grids writes it.
    pub fn codes_or_floats(&mut self) -> StaticOutputMut<'_> {
        match self.dtype {
            DType::F32 => StaticOutputMut::Float(self.f32()),
            _ => StaticOutputMut::Codes(self.bytes),
        }
    }
}

/// Type and shape of a value that a step writes, and the buffer it goes to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub dtype: DType,
    /// As in [`View`].
    pub dims: Vec<usize>,
    pub bytes: usize,
    pub buffer: usize,
}

/// What a step reads.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    find: &'a dyn Fn(usize) -> Option<View<'a>>,
    count: usize,
    channels_last: bool,
}

impl<'a> Inputs<'a> {
    pub fn new(find: &'a dyn Fn(usize) -> Option<View<'a>>, count: usize, channels_last: bool) -> Self {
        Inputs { find, count, channels_last }
    }

    /// Number of inputs, those left out included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Input `i`; `None` when it was left out.
    pub fn get(&self, i: usize) -> Option<View<'a>> {
        if i < self.count { (self.find)(i) } else { None }
    }

    /// Input `i`, which the operator can't do without.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it was left out.
    pub fn need(&self, i: usize) -> Result<View<'a>> {
        self.get(i).ok_or_else(|| Error::parameter("input", i, "was left out, and must be given"))
    }

    /// Whether images lie channels-last in this step.
    pub fn channels_last(&self) -> bool {
        self.channels_last
    }

    /// Where `axis` of an image `[n, c, h, w]` lies in this step; any other value's axes stay where they are.
    pub fn axis(&self, axis: usize, rank: usize) -> usize {
        physical_axis(axis, rank, self.channels_last)
    }
}

/// Where `axis` of `[n, c, h, w]` is found in memory.
pub(crate) fn physical_axis(axis: usize, rank: usize, channels_last: bool) -> usize {
    match (channels_last && rank == 4, axis) {
        (true, 1) => 3,
        (true, 2 | 3) => axis - 1,
        _ => axis,
    }
}

/// The dimensions in memory of a value of this shape.
pub(crate) fn physical_dims(dims: &[usize], channels_last: bool) -> Vec<usize> {
    match *dims {
        [n, c, h, w] if channels_last => vec![n, h, w, c],
        _ => dims.to_vec(),
    }
}

/// What a step writes: memory taken out of the executor's buffers for as long as the step runs.
#[derive(Debug)]
pub(crate) struct Outputs<'a> {
    memory: &'a mut [Aligned],
    targets: &'a [Target],
}

impl<'a> Outputs<'a> {
    pub fn new(memory: &'a mut [Aligned], targets: &'a [Target]) -> Self {
        Outputs { memory, targets }
    }

    /// Output `i`.
    pub fn get(&mut self, i: usize) -> ViewMut<'_> {
        let Target { dtype, dims, bytes, .. } = &self.targets[i];
        ViewMut { dtype: *dtype, dims, bytes: &mut self.memory[i].grow::<u8>(*bytes)[..*bytes] }
    }

    /// All outputs at once.
    pub fn each(&mut self) -> impl Iterator<Item = ViewMut<'_>> {
        self.memory.iter_mut().zip(self.targets).map(|(memory, target)| ViewMut {
            dtype: target.dtype,
            dims: &target.dims,
            bytes: &mut memory.grow::<u8>(target.bytes)[..target.bytes],
        })
    }
}
